"""What training graphs call in place of torch's functions: the same values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gnnfx.backend import training_ops
from gnnfx.passes.fold_attention_scores import spread


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (4, 3)])
def test_gathered_rows_give_their_gradients_back(
    index_dtype: torch.dtype, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, edges in ((50, 400), (50, 0), (1, 7)):
        index = torch.randint(rows, (edges,), generator=generator).to(index_dtype)
        x, y = (torch.randn(rows, *shape, dtype=dtype).requires_grad_() for _ in range(2))
        y.data.copy_(x.data)
        weights = torch.randn(edges, *shape, generator=generator, dtype=dtype)
        got, want = training_ops.gather(x, index), y[index.long()]
        assert torch.equal(got, want)
        (got * weights).sum().backward()
        (want * weights).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("attention_shape", [(1, 4, 5), (4, 5)])
def test_scores_of_heads_are_one_product(attention_shape: tuple[int, ...]) -> None:
    x = torch.randn(30, 20, dtype=torch.float64, requires_grad=True)
    attention = torch.randn(*attention_shape, dtype=torch.float64, requires_grad=True)
    want = (x.view(30, 4, 5) * attention).sum(-1)
    got = functional.linear(x, spread(attention))
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(want)
    for mine, theirs in zip(
        torch.autograd.grad(got, (x, attention), grad),
        torch.autograd.grad(want, (x, attention), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
