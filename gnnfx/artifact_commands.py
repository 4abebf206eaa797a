"""What `gnnfx optimize` and `gnnfx inspect` do."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from gnnfx.api import optimize
from gnnfx.artifact import Artifact, save
from gnnfx.backend.module import OptimizedModule
from gnnfx.ir.types import TensorType
from gnnfx.model_file import load_model


def optimize_file(where: str, policy: str, output: Path) -> OptimizedModule:
    """Optimize the model that FILE.py:FUNCTION makes, and save it to `output`."""
    made = load_model(where)
    optimized = optimize(made.model, policy, made.args, example_kwargs=made.kwargs)
    save(optimized, output)
    return optimized


def tensor_table(artifact: Artifact) -> Table:
    """One row a tensor."""
    table = Table(title="tensors")
    for column in ("name", "type", "bytes"):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for name, tensor in artifact.tensors.items():
        type_ = TensorType(tensor.dtype, tuple(tensor.shape))
        table.add_row(name, str(type_), f"{tensor.nbytes:,}")
    return table


def summary(path: Path, artifact: Artifact) -> str:
    """One line: where it is, what it is, and how large."""
    stored = {id(tensor): tensor.nbytes for tensor in artifact.tensors.values()}
    return (
        f"{path}: {path.stat().st_size:,} bytes, {sum(stored.values()):,} of them tensors, "
        f"saved by gnnfx {artifact.version}"
    )
