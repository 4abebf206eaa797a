"""How a model is called and what it gives back, as plain data without its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from gnnfx.frontend.signature import Signature
from gnnfx.frontend.trace import Traced


@dataclass(frozen=True)
class Call:
    """The form of a call.

    arguments: names of the arguments that the example had, in order.
    leaves: names of the program's inputs, in order, as leaves of the arguments.
    constants: leaves that are no inputs of the program, with the value they must have.
    out_spec: how the program's results nest in what the module returns.
    """

    signature: Signature
    arguments: tuple[str, ...]
    leaves: tuple[str, ...]
    constants: dict[str, Any]
    out_spec: pytree.TreeSpec

    @staticmethod
    def of(traced: Traced) -> Call:
        """The call that a model was traced with."""
        return Call(
            traced.signature,
            tuple(traced.example),
            traced.leaves,
            traced.constants,
            traced.out_spec,
        )

    @property
    def takes_sparse(self) -> bool:
        """Whether an argument is, or holds, a sparse matrix."""
        matrices = {leaf.removesuffix(".cols") for leaf in self.leaves if leaf.endswith(".cols")}
        return any(f"{matrix}.value" in self.leaves for matrix in matrices)

    def __reduce__(self) -> tuple[Any, ...]:
        # A TreeSpec warns when it is unpickled, so its containers are pickled in its place.
        results = pytree.tree_unflatten([0] * self.out_spec.num_leaves, self.out_spec)
        return _with_results, ({**vars(self), "out_spec": None}, results)

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        """Copies of a module share the form of their calls, which never changes."""
        return self


def _with_results(fields: dict[str, Any], results: Any) -> Call:
    return Call(**{**fields, "out_spec": pytree.tree_structure(results)})
