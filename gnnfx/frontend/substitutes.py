"""Functions that cannot be captured, or that take long, replaced by ones that compute the same.

While a model is captured, the names under which PyG's modules and those of the model hold such a
function refer to its replacement.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnfx.frontend.sparse import SparseMatrix, known_lines


def _ptr2index(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Rows of a sparse matrix are known already; expanding them would make a size of its own."""

    def ptr2index(ptr: Tensor, output_size: int | None = None) -> Tensor:
        known = known_lines(ptr)
        return original(ptr, output_size) if known is None else known

    return ptr2index


def _index2ptr(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Torch's conversion takes a plain integer as the size; counting what lies below does not."""

    def index2ptr(index: Tensor, size: Any = None) -> Tensor:
        if size is None:
            return original(index, size)
        return torch.searchsorted(index, torch.arange(size + 1, device=index.device))

    return index2ptr


def _to_edge_index(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_edge_index(adj: Any) -> Any:
        if type(adj) is not SparseMatrix:
            return original(adj)
        return torch.stack([adj.row, adj.col]), adj.value

    return to_edge_index


def _use_segment_matmul(original: Callable[..., bool]) -> Callable[..., bool]:
    """Which of two equal ways is faster is gnnfx's to decide; never branch on the data for it."""

    def use_segment_matmul_heuristic(*args: Any, **kwargs: Any) -> bool:
        return False

    return use_segment_matmul_heuristic


def _scatter(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One op for what PyG spells in three to ten, each of which takes time to capture."""

    def scatter(
        src: Tensor, index: Tensor, dim: int = 0, dim_size: Any = None, reduce: str = "sum"
    ) -> Tensor:
        rows = dim_size is not None and src.dim() and dim in (0, -src.dim())
        plain = rows and src.is_floating_point() and index.dim() == 1 and reduce in _REDUCES
        if not plain:
            return original(src, index, dim, dim_size, reduce)
        return torch.ops.gnnfx.scatter(src, index, dim_size, _REDUCES[reduce])  # type: ignore[no-any-return]

    return scatter


def _hetero_linear(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Rows of each type times the weight of the type, in place of slices of sorted rows."""

    def forward(self: Any, x: Tensor, type_vec: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], self.out_channels)
        for number in range(self.num_types):
            rows = (type_vec == number).nonzero()[:, 0]
            out = out.index_copy(0, rows, x.index_select(0, rows) @ self.weight[number])
        return out if self.bias is None else out + self.bias[type_vec]

    return forward


def _is_plain_hgt(layer: Any) -> bool:
    """Whether rows and messages of an HGTConv are PyG's own, so that they fit together."""
    owner = sys.modules["torch_geometric.nn.conv.hgt_conv"].HGTConv
    names = "message", "_construct_src_node_feat"
    return all(getattr(type(layer), name) is getattr(owner, name) for name in names)


def _hgt_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    """All heads of an edge type times one matrix, in place of a linear layer for each head.

    Keys are multiplied with what PyG multiplies each of their edges' scores with.
    """

    def _construct_src_node_feat(
        self: Any,
        k_dict: dict[str, Tensor],
        v_dict: dict[str, Tensor],
        edge_index_dict: dict[Any, Any],
    ) -> Any:
        if not _is_plain_hgt(self):
            return original(self, k_dict, v_dict, edge_index_dict)
        keys, values, offset, rows = [], [], {}, 0
        for edge_type in edge_index_dict:
            heads = slice(self.edge_types_map[edge_type], None, len(self.edge_types))
            priors = self.p_rel["__".join(edge_type)].view(-1, 1, 1)
            key, value = k_dict[edge_type[0]], v_dict[edge_type[0]]
            keys.append(_by_head(key, self.k_rel.weight[heads] * priors))
            values.append(_by_head(value, self.v_rel.weight[heads]))
            offset[edge_type] = rows
            rows = rows + key.size(0)
        return torch.cat(keys), torch.cat(values), offset

    return _construct_src_node_feat


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """Rows [N, H, C] times the weights [H, C, C] of their heads."""
    blocks = torch.block_diag(*[weight[head] for head in range(weight.shape[0])])
    rows: Tensor = x.flatten(1) @ blocks
    return rows.view(x.shape)


def _hgt_message(original: Callable[..., Any]) -> Callable[..., Any]:
    """Scores of keys that `_hgt_rows` made."""

    def message(self: Any, *, edge_attr: Tensor, **of: Any) -> Any:
        return original(self, edge_attr=1 if _is_plain_hgt(self) else edge_attr, **of)

    return message


class FillByCopy(TorchFunctionMode):
    """`masked_fill_` of a permuted view: torch's functional form loses the strides of the view.

    What it then takes for the base of the view holds the right numbers at wrong places.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.masked_fill_:
            filled = args[0].masked_fill(*args[1:], **(kwargs or {}))
            return args[0].copy_(filled)
        return func(*args, **(kwargs or {}))


# A product of no rows is 1 in PyG, and 0 in gnnfx's op.
_REDUCES = {
    "sum": "sum",
    "add": "sum",
    "mean": "mean",
    "min": "min",
    "amin": "min",
    "max": "max",
    "amax": "max",
}
_HGT = "torch_geometric.nn.conv.hgt_conv", "HGTConv"
_METHODS = {
    ("torch_geometric.nn.dense.linear", "HeteroLinear", "forward"): _hetero_linear,
    (*_HGT, "_construct_src_node_feat"): _hgt_rows,
    (*_HGT, "message"): _hgt_message,
}
# Modules that PyG writes for a layer's `propagate` and `edge_updater`.
_GENERATED = ("_propagate", "_edge_updater")
_SUBSTITUTES = {
    "torch_geometric.index.ptr2index": _ptr2index,
    "torch_geometric.index.index2ptr": _index2ptr,
    "torch_geometric.utils.sparse.to_edge_index": _to_edge_index,
    "torch_geometric.utils._scatter.scatter": _scatter,
    "torch_geometric.backend.use_segment_matmul_heuristic": _use_segment_matmul,
}


@contextmanager
def substituted(model: nn.Module) -> Iterator[None]:
    """Let PyG's modules and those of `model` see the replacements."""
    replacements: dict[int, Any] = {}
    for path, make in _SUBSTITUTES.items():
        home, _, name = path.rpartition(".")
        original = getattr(sys.modules.get(home), name, None)
        if original is not None:
            replacements[id(original)] = make(original)
    own = {type(m).__module__ for m in model.modules()}
    methods: list[tuple[type, str, Any]] = []
    for (module_name, owner, name), make in _METHODS.items():
        if module_name in sys.modules:
            cls = getattr(sys.modules[module_name], owner)
            if (method := getattr(cls, name, None)) is not None:
                methods.append((cls, name, method))
                setattr(cls, name, make(method))
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for module_name, module in list(sys.modules.items()):
        if module_name.endswith(_GENERATED) and hasattr(module, "is_compiling"):
            # PyG leaves out the hooks on messages while it is compiled; they belong to the model.
            changed.append((vars(module), "is_compiling", vars(module)["is_compiling"]))
            vars(module)["is_compiling"] = lambda: False
        if module is None or not (module_name in own or module_name.startswith("torch_geometric")):
            continue
        space = vars(module)
        for name, value in list(space.items()):
            if id(value) in replacements:
                changed.append((space, name, value))
                space[name] = replacements[id(value)]
    try:
        yield
    finally:
        for space, name, value in changed:
            space[name] = value
        for cls, name, method in methods:
            setattr(cls, name, method)
