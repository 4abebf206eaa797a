"""Let the largest entry of an empty index be -1.

PyG counts graphs with `int(batch.max()) + 1 if batch.numel() > 0 else 0`.  Capturing takes every
size to be more than 1, so that the program has the first branch alone, which fails without nodes.

    h: i64[] = aten.max.default(batch)
    n: int[B] = aten.item.default(h)
  becomes
    o: i64[1] = aten.new_full.default(batch, [1], -1)
    c: i64[N + 1] = aten.cat.default([batch, o])
    h: i64[] = aten.max.default(c)
    n: int[B] = aten.item.default(h)
"""

from __future__ import annotations

import torch
from torch import fx

_aten = torch.ops.aten
_ITEM = (_aten.item.default, _aten._local_scalar_dense.default)
_INTEGERS = (torch.int64, torch.int32)


def extend_indices(graph: fx.Graph) -> None:
    """Edit every maximum of an integer vector that becomes a number.

    Edited nodes have lost their "val", which has to be inferred anew.
    """
    for highest in graph.find_nodes(op="call_function", target=_aten.max.default):
        index = highest.args[0]
        value = index.meta.get("val")
        if value is None or value.dim() != 1 or value.dtype not in _INTEGERS:
            continue
        if not all(user.target in _ITEM for user in highest.users):
            continue
        with graph.inserting_before(highest):
            one = graph.call_function(_aten.new_full.default, (index, [1], -1))
            extended = graph.call_function(_aten.cat.default, ([index, one],))
        for node in (one, extended):
            node.meta = {key: value for key, value in highest.meta.items() if key != "val"}
        highest.args = (extended,)
        del highest.meta["val"]
