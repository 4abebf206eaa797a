"""Passes of gnnfx: one file a pass.  The order they run in is the list in `gnnfx.pipeline`."""

if __name__ != "gnnfx.passes":
    raise ImportError("this folder is the package gnnfx.passes; install with `pip install -e .`")
