"""The module that `gnnfx.prepare` returns: the model's program, trainable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnfx.backend.call import Call
from gnnfx.backend.inputs import Inputs
from gnnfx.backend.module import retarget_module
from gnnfx.backend.split import Split
from gnnfx.backend.training_graph import (
    EDGE_WEIGHTS,
    PROTECT,
    QUANTIZERS,
    WEIGHTS,
    quantized_weights,
    site,
    training_graph,
)
from gnnfx.errors import InputError
from gnnfx.fake_quantize import DynamicQuantizer, FakeQuantizer, ProtectiveMask, WeightQuantizer
from gnnfx.frontend.trace import Traced, trace
from gnnfx.frontend.training import trace_training
from gnnfx.graph_cache import GraphCache
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump
from gnnfx.kernels.degree import DEGREE_BUCKETS
from gnnfx.kernels.memory import Workspace
from gnnfx.pass_manager import PassContext, Remark
from gnnfx.passes.choose_qparams import weight_bits
from gnnfx.passes.fold_attention_scores import spread


@dataclass(frozen=True)
class Origin:
    """What a prepared module was made from; its copies share it and nothing changes it.

    program: the observed program, with the names of the tensors that training changes.
    parts: the same, split into what runs once per graph and what runs each call.
    """

    traced: Traced
    program: Program
    parts: Split
    ctx: PassContext
    policy: str

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise InputError(
            "a prepared module cannot be pickled; expected its state_dict(), which the same model, "
            "prepared alike, loads"
        )


class PreparedModule(nn.Module):
    """Computes what the model computes, in train and eval mode, rounded as integer kernels round.

    Parameters and buffers have the model's names; what training learns about ranges lies beside
    them under `_quantizers` and `_weights`.  What depends on the graph alone is computed once.
    Under torch.compile it runs as it does without, also inside of a step that is compiled.
    """

    _structure: fx.GraphModule

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__()
        self._origin = origin
        quantize = origin.ctx.policy.quantize
        _mirror(self, model, origin.program)
        if quantize is not None:
            training = quantize.training
            quantizers, weights = nn.ModuleDict(), nn.ModuleDict()
            for observe in origin.program.find("observe"):
                name, bits = observe.args["name"], observe.args["bits"]
                buckets = 1 if observe.args["bucket"] is None else DEGREE_BUCKETS
                quantizers[site(name)] = FakeQuantizer(name, bits, training, buckets)
            widths = weight_bits(origin.program, quantize)
            for name, param in quantized_weights(origin.program).items():
                # An attention vector for each head, [..., H, C], has a step a head.
                channels, bits = int(param.shape[-2]), widths[param.param]
                weights[site(name)] = WeightQuantizer(channels, bits, training)
            self.add_module(QUANTIZERS, quantizers)
            self.add_module(WEIGHTS, weights)
            self.add_module(EDGE_WEIGHTS, DynamicQuantizer())
            self.add_module(PROTECT, ProtectiveMask(*(training.protect or (0.0, 0.0))))
        self._inputs = Inputs(Call.of(origin.traced), origin.program, origin.parts)
        device = next((t.device for t in [*self.parameters(), *self.buffers()]), None)
        self._build(device)
        self.train()

    # Ranges, masks and the memory of graphs are state that every call reads and changes: little
    # worth compiling is left between them, and compiled code would draw other masks.
    @torch.compiler.disable(reason="quantizers change state in each call")  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs; raises InputError for arguments that the example had otherwise."""
        leaves = self._inputs.bind(args, kwargs)
        tensors, sizes = self._inputs.graph(leaves)
        if (leaf := self._inputs.needs_gradient(tensors)) is not None:
            raise InputError(
                f"argument {leaf!r} requires a gradient; what depends on the graph alone is "
                f"computed once a graph, and no gradient reaches it"
            )
        values = self._cache.lookup(tensors, sizes)
        with self._workspace.lend():
            results = self._forward(self, *leaves, *values)
        return pytree.tree_unflatten(list(results), self._origin.traced.out_spec)

    def ir(self) -> str:
        """The program that is trained, as text."""
        return dump(self._origin.program)

    def traced(
        self, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> Traced:
        """What was captured of the model, with this module's tensors as they are now.

        args, kwargs: other example inputs.  Raises InputError if they are of another form than
        those of the first example, or if this module rounds.
        """
        origin = self._origin
        if origin.ctx.policy.quantize is not None:
            raise InputError(
                f"model was prepared with policy {origin.policy!r} and rounds; expected a model "
                f"or a module prepared in float (gnnfx.convert makes integers of this one)"
            )
        mine = {**_named(self), **_named(self, buffers=True)}
        now = {n: mine[n].detach().clone() for n in origin.traced.program.tensors}
        program = replace(origin.traced.program.copy(), tensors=now)
        if args is None and kwargs is None:
            return replace(origin.traced, program=program)
        self._inputs.bind(args or (), kwargs or {})
        example = origin.traced.signature.bind(args or (), kwargs or {})
        return replace(origin.traced, program=program, example=example)

    @property
    def origin(self) -> Origin:
        """What this module was made from."""
        return self._origin

    def quantizers(self) -> dict[str, FakeQuantizer]:
        """The quantizer of each rounded activation, by name of the value."""
        found = self._modules.get(QUANTIZERS) or nn.ModuleDict()
        return {q.name: q for q in found.children() if isinstance(q, FakeQuantizer)}

    def weight_steps(self) -> dict[str, Tensor]:
        """The step of each output channel or head of every rounded weight, by the weight's name."""
        found = dict((self._modules.get(WEIGHTS) or nn.ModuleDict()).named_children())
        steps = {}
        for name, param in quantized_weights(self._origin.program).items():
            if isinstance(quantizer := found.get(site(name)), WeightQuantizer):
                weight = self.get_parameter(param.param).detach()
                rows = weight if len(param.shape) == 2 else spread(weight)
                steps[param.param] = quantizer.step(rows).detach()
        return steps

    def freeze_ranges(self, frozen: bool = True) -> None:
        """Keep the ranges of all activations as they are, or let them follow the values again."""
        for quantizer in self.quantizers().values():
            quantizer.frozen.fill_(frozen)

    def forget(self) -> None:
        """Release what was remembered of graphs seen so far, and buffers."""
        self._cache.forget()
        self._workspace.release()

    def _build(self, device: torch.device | None) -> None:
        """Generate the code of both parts for `device`."""
        quantize = self._origin.ctx.policy.quantize
        each_layer = quantize is not None and quantize.training.mask == "layer"
        densities = self._origin.traced.densities
        graph = training_graph(self._origin.parts.feature, self, each_layer, densities)
        module = fx.GraphModule(self, graph, class_name="Training")
        structure = self._origin.parts.structure.module()
        if device is not None:
            retarget_module(module, device)
            retarget_module(structure, device)
        self._forward = type(module).forward
        # Set past nn.Module: it holds no state, and must not show up among the model's modules.
        self.__dict__["_structure"] = structure
        self._cache = GraphCache(self._compute)
        # What the backward pass still needs is in use, and stays as it is.
        self._workspace = Workspace()
        self._device = device

    def _compute(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return self._inputs.compute(self._structure, tensors, sizes)

    def _apply(self, fn: Any, recurse: bool = True) -> PreparedModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = next((t.device for t in [*self.parameters(), *self.buffers()]), None)
        if device != self._device:
            self._build(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        remade = ("_forward", "_structure", "_cache", "_workspace")
        return {k: v for k, v in self.__dict__.items() if k not in remade}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._build(self._device)


def captured(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    training: bool = False,
) -> Traced:
    """`model` as a program: traced, or what a module prepared in float was made from."""
    if isinstance(model, PreparedModule):
        return model.traced(args, kwargs)
    return trace_training(model, args, kwargs) if training else trace(model, args, kwargs)


def said_of(model: nn.Module) -> list[Remark]:
    """What was done to a prepared module before, as its pruning."""
    return list(model.origin.ctx.remarks) if isinstance(model, PreparedModule) else []


def _mirror(prepared: nn.Module, model: nn.Module, program: Program) -> None:
    """Give `prepared` modules, parameters and buffers under the names of `model`, copied.

    Values are the program's where it has them: pruning made them smaller than the model's.
    Constants of the program that the model keeps under no name are buffers that are not saved.
    """
    for path, _ in model.named_modules():
        _submodule(prepared, path)
    parameters, buffers = _named(model), _named(model, buffers=True)
    # Of tied parameters, the program may know any one name.
    values = {id(p): program.tensors[n] for n, p in parameters.items() if n in program.tensors}
    copies: dict[int, Tensor] = {}
    for name, parameter in parameters.items():
        value = values.get(id(parameter), parameter).detach().clone()
        copy = nn.Parameter(value, requires_grad=parameter.requires_grad)
        owner, leaf = _owner(prepared, name)
        owner.register_parameter(leaf, copies.setdefault(id(parameter), copy))  # type: ignore[arg-type]
    saved = set(model.state_dict())
    for name, buffer in buffers.items():
        value = program.tensors.get(name, buffer).detach().clone()
        owner, leaf = _owner(prepared, name)
        owner.register_buffer(leaf, value, persistent=name in saved)
    for name, tensor in program.tensors.items():
        if name not in parameters and name not in buffers:
            owner, leaf = _owner(prepared, name)
            owner.register_buffer(leaf, tensor.detach().clone(), persistent=False)


def _named(module: nn.Module, buffers: bool = False) -> dict[str, Tensor]:
    """All parameters or buffers of `module`, tied ones under each of their names."""
    found = module.named_buffers if buffers else module.named_parameters
    return dict(found(remove_duplicate=False))


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return _submodule(root, path), leaf


def _submodule(root: nn.Module, path: str) -> nn.Module:
    """The module at `path`, made if there is none."""
    module = root
    for part in path.split(".") if path else []:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    return module
