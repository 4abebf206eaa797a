"""Integer codes of float tensors: code = clamp(rint(y * (1 / scale)) + zero_point, qmin, qmax).

The reciprocal is rounded to float32 first: `torch.fake_quantize_per_tensor_affine` rounds the same.
`scale` is a 0-d float32 tensor and `zero_point` a 0-d int32 tensor.  Codes of 8 bits are int8;
codes of 4 and 2 bits lie two and four a byte along the last dim, lowest bits first, in uint8.
`row_scale` [rows] multiplies each row first, so that y = x * row_scale[:, None].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import arguments, num_bytes
from gnnfx.kernels.launch import numba_impl, triton_impl

BITS = (8, 4, 2)
SMALLEST_SCALE, GREATEST_SCALE = 2.0**-126, 2.0**126  # whose reciprocals are normal numbers


def code_range(bits: int) -> tuple[int, int]:
    """Least and greatest code of `bits`."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def packed_channels(channels: int, bits: int) -> int:
    """Entries in the last dim of the codes of `channels` channels."""
    return -(-channels // (8 // bits))


def code_dtype(bits: int) -> torch.dtype:
    """The dtype that holds codes of `bits`."""
    return torch.int8 if bits == 8 else torch.uint8


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 codes [..., C] as stored: themselves, or uint8 [..., ceil(C * bits / 8)]."""
    if bits == 8:
        return codes
    per_byte = 8 // bits
    missing = packed_channels(codes.shape[-1], bits) * per_byte - codes.shape[-1]
    fields = torch.nn.functional.pad(codes, (0, missing)).unflatten(-1, (-1, per_byte))
    shifts = torch.arange(per_byte, device=codes.device) * bits
    packed: Tensor = (fields.int() & (2**bits - 1)) << shifts
    return packed.sum(-1).to(torch.uint8)


def unpack(packed: Tensor, channels: int, bits: int) -> Tensor:
    """int8 codes [..., channels] of what `pack` made."""
    if bits == 8:
        return packed
    shifts = torch.arange(8 // bits, device=packed.device) * bits
    fields: Tensor = (packed[..., None].int() >> shifts) & (2**bits - 1)
    sign = 2 ** (bits - 1)
    codes = torch.sub(fields ^ sign, sign).to(torch.int8)
    return codes.flatten(-2)[..., :channels].contiguous()


def to_codes(y: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """int8 codes of float32 `y` by the rounding rule; NaN gets the code of 0."""
    low, high = code_range(bits)
    steps = torch.round(y * (1.0 / scale))
    steps = torch.where(steps.isnan(), 0.0, steps)
    return (steps + zero_point).clamp(low, high).to(torch.int8)


def check_bits(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits}")


def check_codes(codes: Tensor, channels: int, bits: int) -> None:
    """Raise ValueError unless `codes` can hold `channels` codes of `bits` in its last dim."""
    check_bits(bits)
    if codes.dtype != code_dtype(bits):
        raise ValueError(f"codes of {bits} bits are {code_dtype(bits)}, got {codes.dtype}")
    if codes.dim() == 0 or codes.shape[-1] != packed_channels(channels, bits):
        want = packed_channels(channels, bits)
        got = tuple(codes.shape)
        raise ValueError(f"{channels} codes of {bits} bits are {want} entries a row, got {got}")


def _check_input(x: Tensor, bits: int, row_scale: Tensor | None) -> None:
    check_bits(bits)
    if x.dtype != torch.float32 or x.dim() == 0:
        raise ValueError(f"x must be float32 with rows, got {x.dtype} {tuple(x.shape)}")
    check_row_scale(x, row_scale)


def check_row_scale(x: Tensor, row_scale: Tensor | None) -> None:
    """Raise ValueError unless `row_scale`, if there is one, has one number for each row of `x`."""
    if row_scale is not None and (row_scale.dim() != 1 or row_scale.shape[0] != x.shape[0]):
        raise ValueError(
            f"row_scale must be [{x.shape[0]}], one a row of x, got {tuple(row_scale.shape)}"
        )


def check_kept(x: Tensor, kept: Tensor | None) -> None:
    """Raise ValueError unless `kept`, if there is one, says yes or no of each row of `x`."""
    if kept is not None and (kept.dtype != torch.bool or kept.shape != x.shape[:1]):
        got = f"{kept.dtype} {tuple(kept.shape)}"
        raise ValueError(f"kept must be bool [{x.shape[0]}], one a row of x, got {got}")


def of_each_row(values: Tensor, x: Tensor) -> Tensor:
    """`values` [rows] in the form that goes with all values of `x` [rows, ...]."""
    return values.view(-1, *(1,) * (x.dim() - 1))


def scale_rows(x: Tensor, row_scale: Tensor | None) -> Tensor:
    """`x` [rows, ...] with each row times its `row_scale` [rows], if there is one."""
    return x if row_scale is None else x * of_each_row(row_scale, x)


def choose_qparams_reference(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that just cover float32 `x` [rows, ...] times `row_scale` [rows].

    symmetric: scale = max|y| / qmax, zero point 0.  Otherwise, with lo = min(y, 0) and
    hi = max(y, 0): scale = (hi - lo) / (qmax - qmin), zero point = rint(qmin - lo / scale).
    """
    y = torch.cat([scale_rows(x, row_scale).flatten(), x.new_zeros(1)])
    return qparams_of_range(y.min(), y.max(), bits, symmetric)


def qparams_of_range(
    low: Tensor, high: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover low..high, 0-d float32 with 0 between them."""
    qmin, qmax = code_range(bits)
    width = torch.maximum(high, -low) if symmetric else high - low
    scale = (width / (qmax if symmetric else qmax - qmin)).clamp(SMALLEST_SCALE, GREATEST_SCALE)
    scale = torch.where(width > 0, scale, 1.0)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = torch.round(qmin - low / scale).clamp(qmin, qmax)
    return scale, torch.where(width > 0, zero_point, 0.0).to(torch.int32)


def choose_qparams_fake(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _check_input(x, bits, row_scale)
    return x.new_empty(()), x.new_empty((), dtype=torch.int32)


def choose_qparams_cost(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> Cost:
    """Two comparisons an element; `x` and `row_scale` are read, 8 bytes written."""
    return Cost(flops=2 * x.numel(), bytes=num_bytes(x, row_scale) + 8)


def quantize_reference(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    """Codes of float32 `x` [..., C] times `row_scale`: [..., C packed]."""
    return pack(to_codes(scale_rows(x, row_scale), scale, zero_point, bits), bits)


def quantize_fake(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    _check_input(x, bits, row_scale)
    shape = (*x.shape[:-1], packed_channels(x.shape[-1], bits))
    return x.new_empty(shape, dtype=code_dtype(bits))


def quantize_cost(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Cost:
    """About four operations an element; `x` is read and its codes are written."""
    rows = x.numel() // max(x.shape[-1], 1)
    codes = rows * packed_channels(x.shape[-1], bits)
    return Cost(4 * x.numel(), num_bytes(x, row_scale, scale, zero_point) + codes)


def dequantize_reference(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Tensor:
    """scale * (code - zero_point), float32 [..., channels]."""
    return scale * (unpack(codes, channels, bits).int() - zero_point).float()


def dequantize_fake(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Tensor:
    check_codes(codes, channels, bits)
    return codes.new_empty((*codes.shape[:-1], channels), dtype=torch.float32)


def dequantize_cost(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Cost:
    """Codes are read and floats are written; two operations for each."""
    values = codes.numel() // max(codes.shape[-1], 1) * channels
    return Cost(2 * values, num_bytes(codes, scale, zero_point) + 4 * values)


def fake_quantize_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """What `x` times `row_scale` becomes by quantizing and dequantizing: float32 of the same shape.

    Rows that are `kept`, bool [rows], are not rounded.
    """
    scaled = scale_rows(x, row_scale)
    codes = to_codes(scaled, scale, zero_point, bits)
    y = scale * (codes.int() - zero_point).float()
    return y if kept is None else torch.where(of_each_row(kept, x), scaled, y)


def fake_quantize_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    _check_input(x, bits, row_scale)
    check_kept(x, kept)
    return x.new_empty(x.shape)


def fake_quantize_cost(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> Cost:
    """About six operations an element; `x` is read and as much is written."""
    return Cost(6 * x.numel(), num_bytes(x, x, row_scale, scale, zero_point, kept))


def sample_qparams(scale: float, zero_point: int, device: str) -> tuple[Tensor, Tensor]:
    """`scale` and `zero_point` as the ops take them."""
    return (
        torch.tensor(scale, device=device),
        torch.tensor(zero_point, dtype=torch.int32, device=device),
    )


def _sample_inputs(device: str) -> Iterator[tuple[Tensor, int, int]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (1, 1), (33, 64), (9, 7), (0, 8), (13,), (4, 2, 3), (6, 16), (600, 257)]
    for i, shape in enumerate(shapes):
        for bits in BITS:
            low, high = code_range(bits)
            x = torch.randn(shape, generator=generator) * high
            if i % 2:
                x = torch.round(x * 2) / 2  # ties
            yield x.to(device), bits, (0, 1, low, high)[i % 4]
    extreme = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.5, -0.0, 1e-40]])
    yield extreme.repeat(3, 3).to(device), 8, 3


def choose_qparams_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    for x, bits, zero_point in _sample_inputs(device):
        if not x.isfinite().all():
            continue
        row_scale = torch.rand(x.shape[0], device=device) if zero_point else None
        for symmetric in (True, False):
            yield arguments(choose_qparams_reference, x, bits, symmetric, row_scale)
            yield arguments(choose_qparams_reference, x.abs() + 1, bits, symmetric)
    for x in (torch.zeros(3, 4), torch.full((2, 20), 1e-44), torch.full((2, 20), -3e38)):
        yield arguments(choose_qparams_reference, x.to(device), 8, False)
        yield arguments(choose_qparams_reference, x.to(device), 8, True)


def quantize_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    for x, bits, zero_point in _sample_inputs(device):
        for scale in (1.0, 0.37):
            qparams = sample_qparams(scale, zero_point, device)
            row_scale = torch.rand(x.shape[0], device=device) * 2 if scale == 0.37 else None
            yield arguments(quantize_reference, x, *qparams, bits, row_scale)


def fake_quantize_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(1)
    for i, args in enumerate(quantize_samples(device)):
        x = args[0]
        assert isinstance(x, Tensor)
        kept = (torch.rand(x.shape[0], generator=generator) < 0.3).to(device) if i % 4 < 2 else None
        yield (*args, kept)


def dequantize_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    for x, bits, zero_point in _sample_inputs(device):
        qparams = sample_qparams(0.37, zero_point, device)
        codes = quantize_reference(x, *qparams, bits)
        yield arguments(dequantize_reference, codes, *qparams, x.shape[-1], bits)


CHOOSE_QPARAMS = register(
    OpDef(
        "choose_qparams",
        choose_qparams_reference,
        choose_qparams_fake,
        choose_qparams_cost,
        choose_qparams_samples,
        impls=(
            numba_impl("gnnfx.kernels.quantize_numba", "choose_qparams"),
            triton_impl("gnnfx.kernels.quantize_triton", "choose_qparams"),
        ),
    )
)
QUANTIZE = register(
    OpDef(
        "quantize",
        quantize_reference,
        quantize_fake,
        quantize_cost,
        quantize_samples,
        impls=(
            numba_impl("gnnfx.kernels.quantize_numba", "quantize"),
            triton_impl("gnnfx.kernels.quantize_triton", "quantize"),
        ),
    )
)
DEQUANTIZE = register(
    OpDef(
        "dequantize",
        dequantize_reference,
        dequantize_fake,
        dequantize_cost,
        dequantize_samples,
        impls=(
            numba_impl("gnnfx.kernels.quantize_numba", "dequantize"),
            triton_impl("gnnfx.kernels.quantize_triton", "dequantize"),
        ),
    )
)
FAKE_QUANTIZE = register(
    OpDef(
        "fake_quantize",
        fake_quantize_reference,
        fake_quantize_fake,
        fake_quantize_cost,
        fake_quantize_samples,
        impls=(
            numba_impl("gnnfx.kernels.quantize_numba", "fake_quantize"),
            triton_impl("gnnfx.kernels.quantize_triton", "fake_quantize"),
        ),
    )
)
