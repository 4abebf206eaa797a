"""A forward function that calls ops past torch's dispatcher, and reads tensors where they lie.

On small graphs the dispatcher, and the search for each tensor in a module, would take longer than
the kernels.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from gnnfx.backend.lent import lent_form
from gnnfx.ir.op import find_op


def direct_forward(module: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    """A graph on the tensors of `module` as a function of plain tensors that need no gradient."""
    source = _Source()
    last = {used: node for node in graph.nodes for used in node.all_input_nodes}
    inputs: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs.append(node.name)
            continue
        if node.op == "output":
            source.lines.append(f"return {source.value(node.args[0])}")
            break
        source.lines.append(f"{node.name} = {_expression(source, module, node)}")
        if done := [used.name for used in node.all_input_nodes if last[used] is node]:
            source.lines.append(f"del {', '.join(done)}")
    text = "\n    ".join([f"def forward({', '.join(inputs)}):", *source.lines])
    exec(compile(text, "<direct forward>", "exec"), source.constants)
    forward: Callable[..., Any] = source.constants["forward"]
    return forward


class _Source:
    """Lines of a function, and what they name that has no spelling of its own."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}

    def constant(self, value: Any) -> str:
        """A name for a value that stays as it is."""
        name = f"_gnnfx_{len(self.constants)}"
        self.constants[name] = value
        return name

    def value(self, argument: Any) -> str:
        """How an argument is written."""
        if isinstance(argument, fx.Node):
            return argument.name
        if isinstance(argument, (tuple, list)):
            parts = ", ".join(map(self.value, argument))
            return f"[{parts}]" if isinstance(argument, list) else f"({parts},)"
        if isinstance(argument, slice):
            parts = ", ".join(map(self.value, (argument.start, argument.stop, argument.step)))
            return f"{self.constant(slice)}({parts})"
        if argument is None or isinstance(argument, (bool, int, str)):
            return repr(argument)
        return self.constant(argument)


def _expression(source: _Source, module: nn.Module, node: fx.Node) -> str:
    if node.op == "get_attr":
        return _tensor(source, module, str(node.target))
    if node.op == "call_module":
        called: Any = module.get_submodule(str(node.target))
    elif node.target is operator.getitem:
        return f"{source.value(node.args[0])}[{source.value(node.args[1])}]"
    else:
        called = lent_form(node.target)
    args, kwargs = list(node.args), dict(node.kwargs)
    if (op := find_op(node.target)) is not None:
        called = op.run
        bound = inspect.signature(op.reference).bind(*args, **kwargs)
        bound.apply_defaults()
        args, kwargs = list(bound.arguments.values()), {}
    written = [source.value(a) for a in args]
    written += [f"{name}={source.value(a)}" for name, a in kwargs.items()]
    return f"{source.constant(called)}({', '.join(written)})"


def _tensor(source: _Source, module: nn.Module, path: str) -> str:
    """A tensor of the module as it is in each call: loading and moving may replace it."""
    *owners, name = path.split(".")
    owner = module.get_submodule(".".join(owners))
    held: Any = next((d for d in (owner._parameters, owner._buffers) if name in d), None)
    if held is None:
        value = operator.attrgetter(path)(module)
        if isinstance(value, Tensor):
            raise TypeError(f"{path!r} is a tensor that is neither a parameter nor a buffer")
        return source.constant(value)
    return f"{source.constant(held)}[{name!r}]"
