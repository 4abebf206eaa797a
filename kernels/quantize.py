"""Quantizers: codes = clamp(rint(x * row_scale / scale) + zero_point), and their inverses.

Codes of 8 bits are int8.  Codes of 4 and 2 bits are packed along the last dimension into uint8,
two or four a byte, the lowest bits first.  Rounding is half to even in float32; NaN becomes the
code of zero and infinities saturate.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, register
from gnnfx.kernels.launch import numba_impl


def code_range(bits: int) -> tuple[int, int]:
    """Lowest and highest signed code of `bits` bits; raises ValueError for other than 8, 4, 2."""
    if bits not in (8, 4, 2):
        raise ValueError(f"bits must be 8, 4 or 2, got {bits}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def packed_width(channels: int, bits: int) -> int:
    """Bytes that `channels` codes take."""
    return (channels * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 codes [..., C] in storage form: themselves for 8 bits, uint8 [..., C * bits / 8]."""
    if bits == 8:
        return codes
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte))
    fields = padded.to(torch.int32).unflatten(-1, (-1, per_byte)) & (2**bits - 1)
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int32) * bits
    return (fields << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, channels: int, bits: int) -> Tensor:
    """int8 codes [..., channels] of their storage form."""
    if bits == 8:
        return packed
    shifts = torch.arange(8 // bits, device=packed.device, dtype=torch.int32) * bits
    fields = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)
    signed = torch.where(fields >= 2 ** (bits - 1), fields - 2**bits, fields)
    return signed.flatten(-2)[..., :channels].to(torch.int8)


def to_codes(y: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The rounding rule that every op shares: unpacked int8 codes of float32 `y`."""
    qmin, qmax = code_range(bits)
    steps = (y / scale).nan_to_num(nan=0.0)
    return (steps.round().clamp(-(2.0**30), 2.0**30) + zero_point).clamp(qmin, qmax).to(torch.int8)


def _scaled(x: Tensor, row_scale: Tensor | None) -> Tensor:
    if row_scale is None:
        return x
    return x * row_scale.view(-1, *(1,) * (x.dim() - 1))


def _require_float(x: Tensor, row_scale: Tensor | None) -> None:
    if x.dtype != torch.float32 or x.dim() == 0:
        raise ValueError(f"x must be a float32 tensor with rows, got {x.dtype} {tuple(x.shape)}")
    if row_scale is not None and row_scale.dim() != 1:
        raise ValueError(f"row_scale must be a vector, got {tuple(row_scale.shape)}")


# choose_qparams


def choose_qparams_reference(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale (f32, 0-d) and zero point (i32, 0-d) that cover the range of `x` now."""
    qmin, qmax = code_range(bits)
    if x.numel() == 0:
        return x.new_ones(()), x.new_zeros((), dtype=torch.int32)
    y = _scaled(x, row_scale)
    lo, hi = y.amin().clamp(max=0), y.amax().clamp(min=0)
    width = torch.maximum(-lo, hi) / qmax if symmetric else (hi - lo) / (qmax - qmin)
    scale = torch.where(width > 0, width.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    if symmetric:
        return scale, torch.zeros((), dtype=torch.int32, device=x.device)
    zero_point = (qmin - (lo / scale).round()).clamp(qmin, qmax)
    return scale, torch.where(width > 0, zero_point, 0).to(torch.int32)


def choose_qparams_fake(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _require_float(x, row_scale)
    code_range(bits)
    return x.new_empty(()), x.new_empty((), dtype=torch.int32)


def choose_qparams_cost(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> Cost:
    """Two comparisons a value; everything is read once."""
    return Cost(2 * x.numel(), x.nbytes + (row_scale.nbytes if row_scale is not None else 0))


def choose_qparams_samples(device: str = "cpu") -> Iterator[tuple[Tensor, int, bool, Tensor | None]]:
    for x, scale in _float_samples(device):
        for symmetric in (True, False):
            yield x, 8, symmetric, None
            yield x, 4, symmetric, scale


# quantize


def quantize_reference(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    """Codes of `x` [R, ..., C], each row multiplied by `row_scale` [R] first."""
    return pack(to_codes(_scaled(x, row_scale), scale, zero_point, bits), bits)


def quantize_fake(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    _require_float(x, row_scale)
    code_range(bits)
    if bits == 8:
        return x.new_empty(x.shape, dtype=torch.int8)
    return x.new_empty((*x.shape[:-1], packed_width(x.shape[-1], bits)), dtype=torch.uint8)


def quantize_cost(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Cost:
    """A division, a rounding and a clamp a value; floats in, codes out."""
    rows = 1 if x.dim() == 1 else x.numel() // max(x.shape[-1], 1)
    codes = rows * packed_width(x.shape[-1], bits)
    return Cost(4 * x.numel(), x.nbytes + codes + (row_scale.nbytes if row_scale is not None else 0))


def quantize_samples(
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Tensor, Tensor, int, Tensor | None]]:
    for x, row_scale in _float_samples(device):
        for bits in (8, 4, 2):
            for zero_point in (0, -(2 ** (bits - 1)), 1):
                scale = torch.tensor(0.037 * 2 ** (8 - bits), device=device)
                zero = torch.tensor(zero_point, dtype=torch.int32, device=device)
                yield x, scale, zero, bits, row_scale if zero_point else None


# dequantize


def dequantize_reference(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Tensor:
    """float32 values [..., channels] of codes: scale * (code - zero_point)."""
    return (unpack(codes, channels, bits).to(torch.int32) - zero_point).float() * scale


def dequantize_fake(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Tensor:
    code_range(bits)
    return codes.new_empty((*codes.shape[:-1], channels), dtype=torch.float32)


def dequantize_cost(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Cost:
    values = codes.numel() // max(codes.shape[-1], 1) * channels
    return Cost(2 * values, codes.nbytes + 4 * values)


def dequantize_samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, Tensor, int, int]]:
    for x, scale, zero_point, bits, row_scale in quantize_samples(device):
        codes = quantize_reference(x, scale, zero_point, bits, row_scale)
        yield codes, scale, zero_point, x.shape[-1], bits


# fake_quantize


def fake_quantize_reference(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    """What `dequantize(quantize(x))` gives: the simulation of integer execution."""
    codes = to_codes(_scaled(x, row_scale), scale, zero_point, bits)
    return (codes.to(torch.int32) - zero_point).float() * scale


def fake_quantize_fake(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    _require_float(x, row_scale)
    code_range(bits)
    return x.new_empty(x.shape)


def fake_quantize_cost(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Cost:
    scales = row_scale.nbytes if row_scale is not None else 0
    return Cost(6 * x.numel(), 2 * x.nbytes + scales)


# dequantize_weight


def dequantize_weight_reference(codes: Tensor, scale: Tensor, channels: int, bits: int = 8) -> Tensor:
    """float32 weights [O, channels] of symmetric codes with a scale [O] an output channel."""
    return unpack(codes, channels, bits).float() * scale[:, None]


def dequantize_weight_fake(codes: Tensor, scale: Tensor, channels: int, bits: int = 8) -> Tensor:
    code_range(bits)
    if codes.dim() != 2 or scale.shape != codes.shape[:1]:
        raise ValueError(
            f"scale must have one entry a row of codes, got {tuple(scale.shape)} for "
            f"{tuple(codes.shape)}"
        )
    return codes.new_empty((codes.shape[0], channels), dtype=torch.float32)


def dequantize_weight_cost(codes: Tensor, scale: Tensor, channels: int, bits: int = 8) -> Cost:
    values = codes.shape[0] * channels
    return Cost(values, codes.nbytes + scale.nbytes + 4 * values)


def dequantize_weight_samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int, int]]:
    for bits in (8, 4, 2):
        for shape in ((3, 5), (8, 16), (1, 1)):
            codes = torch.randint(*code_range(bits), shape, dtype=torch.int8)
            scale = torch.rand(shape[0], device=device) + 0.01
            yield pack(codes, bits).to(device), scale, shape[1], bits


# observe


def observe_reference(x: Tensor, name: str) -> Tensor:
    """`x` itself; calibration records it under `name`."""
    return x.clone()


def observe_fake(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def observe_cost(x: Tensor, name: str) -> Cost:
    return Cost(0, 2 * x.nbytes)


def observe_samples(device: str = "cpu") -> Iterator[tuple[Tensor, str]]:
    for x, _ in _float_samples(device):
        yield x, "x"


def _float_samples(device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Values over several scales, with ties, signed zeros, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(0)
    for shape in [(7, 5), (33, 64), (4, 128), (1, 1), (0, 8), (5, 3, 6), (9,), (300, 40)]:
        x = torch.randn(shape, generator=generator) * 2
        rows = torch.rand(shape[0], generator=generator) + 0.1
        if x.numel() >= 35:
            flat = x.flatten()
            flat[:4] = torch.tensor([0.0185, -0.0185, 0.0555, -0.0])
            if x.dim() == 2 and shape[1] == 64:
                flat[4:7] = torch.tensor([float("inf"), -float("inf"), float("nan")])
        yield x.to(device), rows.to(device)


def _finite_samples(samples: Iterator[tuple[Tensor, int, bool, Tensor | None]]) -> Iterator[
    tuple[Tensor, int, bool, Tensor | None]
]:
    return (s for s in samples if bool(s[0].isfinite().all()))


_NUMBA = "gnnfx.kernels.quantize_numba"

CHOOSE_QPARAMS = register(
    OpDef(
        "choose_qparams",
        choose_qparams_reference,
        choose_qparams_fake,
        choose_qparams_cost,
        lambda device="cpu": _finite_samples(choose_qparams_samples(device)),
        impls=(numba_impl(_NUMBA, "choose_qparams"),),
    )
)
QUANTIZE = register(
    OpDef(
        "quantize",
        quantize_reference,
        quantize_fake,
        quantize_cost,
        quantize_samples,
        impls=(numba_impl(_NUMBA, "quantize"),),
    )
)
DEQUANTIZE = register(
    OpDef(
        "dequantize",
        dequantize_reference,
        dequantize_fake,
        dequantize_cost,
        dequantize_samples,
        impls=(numba_impl(_NUMBA, "dequantize"),),
    )
)
FAKE_QUANTIZE = register(
    OpDef(
        "fake_quantize",
        fake_quantize_reference,
        fake_quantize_fake,
        fake_quantize_cost,
        quantize_samples,
    )
)
DEQUANTIZE_WEIGHT = register(
    OpDef(
        "dequantize_weight",
        dequantize_weight_reference,
        dequantize_weight_fake,
        dequantize_weight_cost,
        dequantize_weight_samples,
    )
)
OBSERVE = register(
    OpDef("observe", observe_reference, observe_fake, observe_cost, observe_samples, (), True)
)
