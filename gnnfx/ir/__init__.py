"""The intermediate representation: typed programs on top of `torch.fx`."""
