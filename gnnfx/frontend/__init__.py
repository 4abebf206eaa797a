"""From a torch module to a raised program."""
