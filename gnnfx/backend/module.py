"""The module that `gnnfx.optimize` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnfx.backend.call import Call
from gnnfx.backend.coded import CodedInputs
from gnnfx.backend.direct import direct_forward
from gnnfx.backend.input_codes import InputCodes
from gnnfx.backend.inputs import Inputs
from gnnfx.backend.split import split
from gnnfx.errors import AssumptionError, InputError
from gnnfx.frontend.signature import map_named_atoms
from gnnfx.graph_cache import GraphCache
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, retarget
from gnnfx.ir.types import IntType, TensorType, axis_names, size_of
from gnnfx.kernels.memory import Workspace
from gnnfx.kernels.structure import own_structure
from gnnfx.report import Report


class OptimizedModule(nn.Module):
    """Does what the model did, for graphs of any size, in eval mode.

    Called as the model was in the example; the input model is not referred to.
    report: what was done to each layer.
    call: the form of a call.
    """

    def __init__(
        self, call: Call, program: Program, report: Report, eager: nn.Module | None = None
    ) -> None:
        super().__init__()
        self._eager = eager
        # A saved tensor has no strides, and sums may round otherwise with other strides.
        dense = {name: tensor.contiguous() for name, tensor in program.tensors.items()}
        program = replace(program, tensors=dense)
        parts = split(program)
        self.report = report
        self.call = call
        self._ir = dump(program)
        self._names = {i.name: i.param for i in program.find("param")}
        self._inputs = Inputs(call, program, parts)
        self._takes_sparse = call.takes_sparse
        self._gives_one = call.out_spec.is_leaf()
        self._structure_inputs = tuple(i.type for i in parts.structure.inputs)
        self._structure_results = tuple(i.type for i in parts.structure.results)
        self._feature = parts.feature.module()
        self._structure = parts.structure.module()
        self._make_direct()
        self._cache = GraphCache(self._compute)
        self._workspace = Workspace()
        self._handle = own_structure(self)
        self._register_state_dict_hook(_drop_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forget_scales)  # type: ignore[no-untyped-call]
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs; raises InputError for arguments that the example had otherwise."""
        return (self._uncompiled if self._takes_sparse else self._forward)(args, kwargs)

    @torch.compiler.disable(reason="torch.compile takes no sparse matrices")  # type: ignore[untyped-decorator]
    def _uncompiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._forward(args, kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._eager is None:  # torch.compile cannot leave a graph from within a try block
            return self._run(args, kwargs)
        try:
            return self._run(args, kwargs)
        except AssumptionError:
            return self._eager(*args, **kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        results = self.run(self._inputs.bind(args, kwargs))
        if self._gives_one:
            return results[0]
        return pytree.tree_unflatten(list(results), self.call.out_spec)

    def run(self, leaves: Sequence[Any]) -> Sequence[Any]:
        """The program's results for its inputs, which must be what the program takes.

        Autocast changes nothing: the program computes in the dtypes it was made for.
        """
        device = next((t.device.type for t in leaves if isinstance(t, Tensor)), "cpu")
        if not torch.is_autocast_enabled(device):
            return self._run_parts(leaves)
        with torch.autocast(device, enabled=False):
            return self._run_parts(leaves)

    def _run_parts(self, leaves: Sequence[Any]) -> Sequence[Any]:
        tensors, sizes = self._inputs.graph(leaves)
        if torch.compiler.is_exporting():
            # An exported program has no memory of graphs: it computes their structure each time.
            values = self._inputs.compute_traced(self._structure, tensors, sizes)
            return self._feature(*leaves, *values)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():
            values = torch.ops.gnnfx.structure(tensors, sizes, self._handle)
        else:
            values = self._cache.lookup(tensors, sizes)
        parts, coded = self._coded.expand(leaves)
        if torch.compiler.is_compiling() or not all(map(_is_plain, parts)):
            forward = type(self._feature).forward if coded is None else coded[0]
            return forward(self._feature, *parts, *values)  # type: ignore[no-any-return]
        direct = self._direct if coded is None else coded[1]
        with self._workspace.lend():
            return direct(*parts, *values)  # type: ignore[no-any-return]

    def quantize_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Features as integer codes, to be passed in place of the float tensors from now on.

        Arguments as in a call, of which any may be left out: the codes of a lone one, else a dict
        of codes by argument.  Containers come back with codes for all features that the program
        reads as codes; their width and, with calibration, their scale are the program's.

        Raises InputError for arguments of which the program reads none as codes.
        """
        names = self.call.signature.names
        given = dict(zip(names, args, strict=False))
        if len(args) > len(names) or (wrong := [n for n in kwargs if n not in names or n in given]):
            got = f"{len(args)} arguments" if len(args) > len(names) else f"{wrong[0]!r}"
            raise InputError(f"expected some of the arguments {list(names)}, each once, got {got}")
        readable = [self.call.leaves[position] for position in self._coded.positions]
        made: set[str] = set()

        def codes(leaf: str, value: Any) -> Any:
            if leaf not in readable:
                return value
            made.add(leaf)
            checked = self._inputs.check(leaf, value)
            if isinstance(checked, InputCodes):
                return checked
            return self._coded.quantize(self.call.leaves.index(leaf), leaf, checked)

        results = map_named_atoms(codes, {**given, **kwargs})
        for name in results:
            if not any(leaf == name or leaf.startswith((f"{name}[", f"{name}.")) for leaf in made):
                raise InputError(
                    f"argument {name!r} is not read as codes under policy {self.report.policy!r}; "
                    f"expected {readable or 'a policy that quantizes what reads it'}"
                )
        return next(iter(results.values())) if len(results) == 1 else results

    def parts(
        self, *args: Any, **kwargs: Any
    ) -> tuple[tuple[fx.GraphModule, list[Any]], tuple[fx.GraphModule, list[Any]]]:
        """What a call runs, with the inputs of each: once per graph, and each time."""
        leaves = self._inputs.bind(args, kwargs)
        tensors, sizes = self._inputs.graph(leaves)
        given = self._inputs.compute(lambda *values: values, tensors, sizes)
        values = self._cache.lookup(tensors, sizes)
        return (self._structure, given), (self._feature, [*leaves, *values])

    def ir(self) -> str:
        """The optimized program as text."""
        return self._ir

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the program as they are now, by the names they have in `ir()`."""
        values = {str(n.target): n.name for n in self._feature.graph.nodes if n.op == "get_attr"}
        return {self._names[values[key]]: t for key, t in self._feature.state_dict().items()}

    def added(self) -> list[str]:
        """Names of the modules and tensors in this module that are not of its program."""
        names = [*self._modules, *self._parameters, *self._buffers]
        return [name for name in names if name not in ("_feature", "_structure")]

    def forget(self) -> None:
        """Release what was remembered of graphs seen so far, and the memory of the last call."""
        self._cache.forget()
        self._workspace.release()

    def lookup_structure(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """What the program needs to know of one graph."""
        return self._cache.lookup(tensors, sizes)

    def fake_structure(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Empty tensors of the shapes that `lookup_structure` gives, for symbolic tracing."""
        known: dict[str, Any] = {}
        for type_, value in zip(self._structure_inputs, [*tensors, *sizes], strict=False):
            if isinstance(type_, TensorType):
                known.update(zip(map(str, type_.shape), value.shape, strict=True))
            elif isinstance(type_, IntType):
                known[str(type_.value)] = value
        device = tensors[0].device if tensors else None
        return [
            torch.empty([_evaluate(d, known) for d in t.shape], dtype=t.dtype, device=device)
            for t in self._structure_results
            if isinstance(t, TensorType)
        ]

    def __getattr__(self, name: str) -> Any:
        """Modules and tensors of the model, which live in the feature part."""
        own = self.__dict__.get("_modules", {})
        feature = own.get("_feature")
        if feature is not None and name not in own:
            for members in (feature._modules, feature._parameters, feature._buffers):
                if name in members:
                    return members[name]
        return super().__getattr__(name)

    def _compute(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        plain = all(map(_is_plain, tensors))
        structure = self._direct_structure if plain else self._structure
        return self._inputs.compute(structure, tensors, sizes)

    def _make_direct(self) -> None:
        """The functions that a call runs when nobody traces it."""
        self._direct = direct_forward(self._feature, self._feature.graph)
        self._direct_structure = direct_forward(self._structure, self._structure.graph)
        self._coded = CodedInputs(self._feature, self._inputs.channels)

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModule:
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (device := _device(self)) != before and device is not None:
            for module in (self._feature, self._structure):
                retarget_module(module, device)
            self._ir = retarget(self._ir, device)
            self._make_direct()
            self.forget()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._make_direct()
        self._cache = GraphCache(self._compute)
        self._workspace = Workspace()
        self._handle = own_structure(self)

    def __getstate__(self) -> dict[str, Any]:
        remade = ("_direct", "_direct_structure", "_coded", "_cache", "_workspace", "_handle")
        return {k: v for k, v in self.__dict__.items() if k not in remade}


class KeptModel(OptimizedModule):
    """A model of which nothing could be captured: it runs as it is, in eval mode."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.report = report
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs."""
        return self.model(*args, **kwargs)

    def ir(self) -> str:
        """Why there is no program."""
        return "\n".join(f"# kept as it is: {reason}" for _, reason in self.report.kept) + "\n"

    def forget(self) -> None:
        """Nothing is remembered of any graph."""

    def quantize_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputError: nothing is quantized in a model that runs as it is."""
        raise InputError(f"the model runs as it is and reads no codes: {self.report.kept[0][1]}")

    def _apply(self, fn: Any, recurse: bool = True) -> KeptModel:
        nn.Module._apply(self, fn, recurse)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


def _is_plain(leaf: Any) -> bool:
    """Whether a value needs nothing of torch's dispatcher: no gradient, no fake or subclass."""
    return not isinstance(leaf, Tensor) or (type(leaf) is Tensor and not leaf.requires_grad)


def _evaluate(dim: int | str, known: dict[str, Any]) -> Any:
    """The size that a dimension stands for.

    A size that the graph's contents decide gets one fresh symbol for the whole expression, as
    torch can bind a symbol only where it is a size by itself.
    """
    if isinstance(dim, int):
        return dim
    if dim not in known:
        if all(name in known for name in axis_names(dim)):
            known[dim] = size_of(dim, known)
        else:
            known[dim] = torch.library.get_ctx().new_dynamic_size()
    return known[dim]


_PREFIX = "_feature."


def _drop_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """Tensors are saved under the names that the model gave them."""
    for key in [k for k in state if k.startswith(prefix + _PREFIX)]:
        state[prefix + key.removeprefix(prefix + _PREFIX)] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    for key in [k for k in state if k.startswith(prefix) and not k.startswith(prefix + "_eager.")]:
        state[prefix + _PREFIX + key.removeprefix(prefix)] = state.pop(key)


def _forget_scales(module: OptimizedModule, incompatible: Any) -> None:
    module._coded.forget()


def _device(module: nn.Module) -> torch.device | None:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else None


def retarget_module(module: fx.GraphModule, device: torch.device) -> None:
    """Create constants on another device from now on."""
    for node in module.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.update_kwarg("device", device)
    module.recompile()
