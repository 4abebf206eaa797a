"""Attention on rows of every number of edges up to some chunks, against the references."""

import pytest
import torch
from torch import Tensor

from gnnfx.kernels import attend_dot, attend_gat, attend_gatv2

_DEGREES = [*range(20), 31, 32, 33, 64, 65, 100, 0]
_SOURCES = 23


def _graph(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    rowptr = torch.tensor([0, *_DEGREES]).cumsum(0).int()
    return rowptr, torch.randint(_SOURCES, (sum(_DEGREES),), generator=draw).int()


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("with_edges", [False, True])
def test_gat_adds_scores_of_edges_and_nodes(heads: int, with_edges: bool) -> None:
    draw = torch.Generator().manual_seed(heads)
    rowptr, src = _graph(draw)
    x = torch.randn(_SOURCES, heads, 8, generator=draw)
    a_src = torch.randn(_SOURCES, heads, generator=draw)
    a_dst = torch.randn(len(_DEGREES), heads, generator=draw)
    a_edge = torch.randn(len(src), heads, generator=draw) if with_edges else None
    args = x, a_src, a_dst, rowptr, src, a_edge
    torch.testing.assert_close(attend_gat.ATTEND_GAT.run(*args), attend_gat.reference(*args))


@pytest.mark.parametrize(("heads", "channels"), [(4, 16), (3, 7), (1, 40)])
@pytest.mark.parametrize("zero_point", [0, -77, 127])
def test_zero_points_of_keys_and_values(heads: int, channels: int, zero_point: int) -> None:
    draw = torch.Generator().manual_seed(channels)
    rowptr, src = _graph(draw)
    codes = torch.randint(-128, 128, (_SOURCES, heads, channels), generator=draw).to(torch.int8)
    targets = torch.randn(len(_DEGREES), heads, channels, generator=draw)
    scores = targets[:, :, 0].contiguous()
    qparams = torch.tensor(0.02), torch.tensor(zero_point, dtype=torch.int32)
    values = (codes.float() - zero_point) * 0.02

    got = attend_gat.QUANTIZED_ATTEND_GAT.run(
        codes, *qparams, scores[:_SOURCES], scores, rowptr, src
    )
    wanted = attend_gat.reference(values, scores[:_SOURCES], scores, rowptr, src)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    got = attend_dot.QUANTIZED_ATTEND_DOT.run(
        targets, codes, *qparams, codes, *qparams, rowptr, src
    )
    wanted = attend_dot.reference(targets, values, values, rowptr, src)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)

    rows = torch.randint(-128, 128, targets.shape, generator=draw).to(torch.int8)
    att = torch.randn(heads, channels, generator=draw)
    got = attend_gatv2.QUANTIZED_ATTEND_GATV2.run(codes, *qparams, rows, *qparams, att, rowptr, src)
    others = (rows.float() - zero_point) * 0.02
    wanted = attend_gatv2.reference(values, others, att, rowptr, src)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("heads", "channels"), [(4, 16), (3, 7), (8, 64)])
@pytest.mark.parametrize("quantized", [False, True])
def test_gatv2_adds_what_edges_have(heads: int, channels: int, quantized: bool) -> None:
    draw = torch.Generator().manual_seed(heads)
    rowptr, src = _graph(draw)
    order = torch.randperm(len(src), generator=draw).int()
    edge = torch.randn(len(src), heads, channels, generator=draw)
    att = torch.randn(heads, channels, generator=draw) / channels**0.5
    codes = [
        torch.randint(-128, 128, (rows, heads, channels), generator=draw).to(torch.int8)
        for rows in (_SOURCES, len(_DEGREES))
    ]
    x_src, x_dst = ((c.float() - 5) * 0.02 for c in codes)
    wanted = attend_gatv2.reference(x_src, x_dst, att, rowptr, src, edge, order)
    shared = att, rowptr, src, edge, order
    if quantized:
        qparams = torch.tensor(0.02), torch.tensor(5, dtype=torch.int32)
        got = attend_gatv2.QUANTIZED_ATTEND_GATV2.run(
            codes[0], *qparams, codes[1], *qparams, *shared
        )
    else:
        got = attend_gatv2.ATTEND_GATV2.run(x_src, x_dst, *shared)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
