"""quantized_sparse_linear: `sparse_linear` on integers, for float inputs that are mostly zeros.

    S[i, o] = sum over the k with x[i, k] != 0 of (q[i, k] - zero_point) * weight_t[k, o]

with q the codes of x.  A zero has the code `zero_point` and adds nothing, so S is that of
`quantized_linear` on the codes of the whole input, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, register
from gnnfx.kernels import linear, quantize, sparse_linear
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.launch import numba_impl


def reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    bits: int = 8,
) -> Tensor:
    """float32 `x` [N, K] with codes of `bits` bits, int8 codes `weight_t` [K, O]: float32 [N, O].

    `weight_scale` [O] is of symmetric codes, one a byte whatever their width; `bias` [O].
    """
    operands = x, scale, zero_point, weight_t, weight_scale, bias, bits
    return _composed(quantize.quantize_reference, linear.reference, *operands)


def _composed(
    to_codes: Callable[..., Tensor],
    product: Callable[..., Tensor],
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    bits: int,
) -> Tensor:
    """The same by two ops for dense inputs."""
    codes, weight = to_codes(x, scale, zero_point, bits), weight_t.t().contiguous()
    return product(codes, scale, zero_point, weight, weight_scale, x.shape[1], bias, bits=bits)


def fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    bits: int = 8,
) -> Tensor:
    quantize.check_bits(bits)
    if weight_t.dtype != torch.int8 or weight_scale.shape != weight_t.shape[1:]:
        got = f"{weight_t.dtype} {tuple(weight_t.shape)} and {tuple(weight_scale.shape)}"
        raise ValueError(f"weight_t must be int8 [K, O] and weight_scale [O], got {got}")
    return sparse_linear.fake(x, weight_t, bias)


def cost(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    bits: int = 8,
) -> Cost:
    """Reading x finds its zeros; what they save depends on the values and is not counted."""
    dense = sparse_linear.cost(x, weight_t, bias)
    return Cost(dense.flops, dense.bytes + num_bytes(scale, zero_point, weight_scale))


def dense(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    bits: int = 8,
) -> Tensor:
    """What takes over where the input is not sparse, or not on a CPU."""
    operands = x.contiguous(), scale, zero_point, weight_t, weight_scale, bias, bits
    return _composed(torch.ops.gnnfx.quantize, torch.ops.gnnfx.quantized_linear, *operands)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(9)
    for i, (x, weight_t, bias) in enumerate(sparse_linear.samples(device)):
        bits = (8, 4, 2)[i % 3]
        low, high = quantize.code_range(bits)
        qparams = quantize.sample_qparams(0.7 / high, (0, 1, low)[i // 2 % 3], device)
        shape, width = weight_t.shape, (8, 4)[i % 2]
        least, most = quantize.code_range(width)
        codes = torch.randint(least + 1, most + 1, shape, generator=generator, dtype=torch.int8)
        weight_scale = torch.rand(shape[1], generator=generator).to(device)
        yield x, *qparams, codes.to(device), weight_scale, bias, bits


QUANTIZED_SPARSE_LINEAR = register(
    OpDef(
        "quantized_sparse_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.quantized_sparse_linear_numba", "quantized_sparse_linear"),
            Impl("composed", "cuda", dense, lambda *args: None),
        ),
    )
)
