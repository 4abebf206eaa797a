"""`torch.compile(model, backend="gnnfx")`, which needs no import of gnnfx.

Dynamo hands over one graph for each stretch of Python code that it can capture, with its own
symbols for sizes and its own guards on everything it took for granted.  A graph in inference is
optimized as `gnnfx.optimize` would; a graph in training runs as it is.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.descriptors import (
    BufferAOTInput,
    ParamAOTInput,
    PlainAOTInput,
)
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.export.exported_program import _override_composite_implicit_decomp

from gnnfx.compiled_graph import CompiledGraph, Given
from gnnfx.errors import PolicyError, TraceError
from gnnfx.policy import Policy, as_policy

logger = logging.getLogger(__name__)


def backend(
    module: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What Dynamo calls in place of `module`; `inputs` are those of the first call.

    options: {"policy": ...}, a preset name or a Policy that does not prune; 'fp32' by default.

    Raises PolicyError for other options or policies.
    """
    policy = _policy(options or {})
    if _needs_gradients(module, inputs):
        _say_training()
        return module.forward
    return _inference(module, inputs, policy)


def _policy(options: Mapping[str, Any]) -> Policy:
    if unknown := sorted(set(options) - {"policy"}):
        raise PolicyError(f"options of backend 'gnnfx' must be among ['policy'], got {unknown}")
    policy = as_policy(options.get("policy", "fp32"))
    if policy.prune is not None:
        raise PolicyError(
            "backend 'gnnfx' got a policy that prunes; expected one without, as a compiled model "
            "keeps its parameters: prune with gnnfx.optimize or gnnfx.Pruner, then compile"
        )
    return policy


def _needs_gradients(module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether a backward pass may follow: a part of the graph may turn gradients on by itself."""
    if not torch.is_grad_enabled():
        switches = module.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled)
        return any(node.args == (True,) for node in switches)
    tensors = [*module.parameters(), *(i for i in inputs if isinstance(i, Tensor))]
    return any(t.requires_grad for t in tensors)


@functools.cache
def _say_training() -> None:
    logger.warning(
        "a graph that needs gradients runs as it is; backend 'gnnfx' optimizes what is called "
        "under torch.no_grad() or torch.inference_mode()"
    )


def _inference(module: fx.GraphModule, inputs: Sequence[Any], policy: Policy) -> Callable[..., Any]:
    """`module` made functional by AOT Autograd, which also undoes aliasing and replays writes."""
    made: list[CompiledGraph] = []

    def compile_graph(graph: fx.GraphModule, fakes: Sequence[Any]) -> Callable[..., Any]:
        try:
            given = _given(graph, module, inputs)
        except TraceError as error:
            logger.warning("a graph runs as it is: %s", error)
            return make_boxed_func(graph.forward)
        made.append(CompiledGraph(graph, given, policy))
        return made[-1]

    # The front end keeps this one composition too: passes look for it.
    keep = {torch.ops.aten.linear.default: lambda *args, **kwargs: NotImplemented}
    compile_ = aot_autograd(fw_compiler=compile_graph, inference_compiler=compile_graph)
    with _override_composite_implicit_decomp(keep):
        run = compile_(module, list(inputs))
    # AOT Autograd calls its compiler amid fake tensors; weights are real.
    for compiled in made:
        compiled.prepare()
    return run


def _given(graph: fx.GraphModule, module: fx.GraphModule, inputs: Sequence[Any]) -> list[Given]:
    """What each input of `graph` is; raises TraceError for one that is none of the module's."""
    names = [n.name for n in module.graph.find_nodes(op="placeholder")]
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    metadata = torch._guards.TracingContext.get().fw_metadata
    assert metadata is not None
    found: list[Given] = []
    nodes = graph.graph.find_nodes(op="placeholder")
    for number, node in enumerate(nodes):
        match node.meta.get("desc"):
            case PlainAOTInput(idx=position):
                name, value = _label(names[position]), inputs[position]
            case ParamAOTInput(target=name) | BufferAOTInput(target=name):
                value = own[name]
            case other:
                raise TraceError(f"it is given {other}, which its code did not ask for")
        # Dynamo marks the tensors that belong to modules.
        stays = hasattr(value, "_dynamo_static_input_type") or isinstance(value, nn.Parameter)
        written = metadata.input_info[number].mutates_data
        if isinstance(value, torch.SymInt):
            value = value.node.hint  # its number now; asking for int(value) would fix the size
        found.append(Given(name, value, weight=stays and not written))
    return found


def _label(name: str) -> str:
    """The user's word for what Dynamo calls `l_self_modules_lin_parameters_weight_`, say."""
    bare = re.sub(r"^l_(self_)?|_$", "", name)
    return re.sub(r"(^|(?<=_))(modules|parameters|buffers)_", "", bare) or name
