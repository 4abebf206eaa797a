"""Inputs as integer codes: features that do not change, quantized once and stored small.

    codes = opt.quantize_inputs(x)        # int8, or two or four values a byte
    opt(codes, edge_index)

A module computes from codes what it computes from the values that they stand for:
`opt(codes, edge_index)` equals `opt(codes.dequantize(), edge_index)`.  Integer ops read the codes
themselves; what reads the input in float32 gets a dequantized copy in each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnnfx.errors import InputError
from gnnfx.kernels.quantize import BITS, code_dtype, packed_channels

_LAYOUT = "layout"


@dataclass(frozen=True, eq=False)
class InputCodes:
    """A float32 tensor [N, ..., C] as codes: value = scale * (code - zero_point).

    codes: int8 [N, ..., C], or uint8 [N, ..., packed C] with two int4 or four int2 codes a byte.
    scale, zero_point: 0-d float32 and int32.
    channels, bits: C, and the width of a code.
    made_with: scale and zero point as numbers, which tell codes of one module from another's.

    Rows are selected as those of a tensor: `codes[n_id]`.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    channels: int
    bits: int
    made_with: tuple[float, int]

    @property
    def shape(self) -> torch.Size:
        """The shape of the values."""
        return torch.Size((*self.codes.shape[:-1], self.channels))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self.codes.nbytes

    def dim(self) -> int:
        return self.codes.dim()

    def __len__(self) -> int:
        return self.codes.shape[0]

    def __getitem__(self, rows: Any) -> InputCodes:
        """The codes of some rows: a slice, a mask, or indices in a vector or list."""
        picked = self.codes[rows] if isinstance(rows, (slice, list, Tensor)) else None
        if picked is None or picked.dim() != self.dim():
            given = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else repr(rows)
            raise InputError(f"rows must be a slice, a mask or a vector of indices, got {given}")
        return self._with(picked, self.scale, self.zero_point)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> InputCodes:
        """The same codes on another device."""
        tensors = (self.codes, self.scale, self.zero_point)
        return self._with(*(t.to(device, non_blocking=non_blocking) for t in tensors))

    def dequantize(self) -> Tensor:
        """The values that the codes stand for, float32."""
        values: Tensor = torch.ops.gnnfx.dequantize(
            self.codes, self.scale, self.zero_point, self.channels, self.bits
        )
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors, for `torch.save` or safetensors."""
        layout = torch.tensor([self.channels, self.bits])
        return {
            "codes": self.codes,
            "scale": self.scale,
            "zero_point": self.zero_point,
            _LAYOUT: layout,
        }

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Tensor]) -> InputCodes:
        """What `state_dict` wrote; raises InputError for tensors that are not that."""
        names = ("codes", "scale", "zero_point", _LAYOUT)
        if sorted(tensors) != sorted(names):
            raise InputError(f"expected the tensors {sorted(names)}, got {sorted(tensors)}")
        codes, scale, zero_point, layout = (tensors[name] for name in names)
        channels, bits = (int(v) for v in layout) if tuple(layout.shape) == (2,) else (0, 0)
        fits = bits in BITS and codes.dim() > 0 and codes.dtype == code_dtype(bits)
        if not fits or codes.shape[-1] != packed_channels(channels, bits):
            raise InputError(
                f"{_LAYOUT} says {channels} channels of {bits} bits, but codes are {codes.dtype} "
                f"{tuple(codes.shape)}"
            )
        return InputCodes.of(codes, scale, zero_point, channels, bits)

    @staticmethod
    def of(
        codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int
    ) -> InputCodes:
        """Codes with their scale and zero point also as numbers."""
        made_with = (float(scale), int(zero_point))
        return InputCodes(codes, scale, zero_point, channels, bits, made_with)

    def _with(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> InputCodes:
        return InputCodes(codes, scale, zero_point, self.channels, self.bits, self.made_with)

    def __repr__(self) -> str:
        return f"InputCodes(shape={tuple(self.shape)}, bits={self.bits}, device={self.device})"


# `torch.load` then reads codes without running what a file says.
torch.serialization.add_safe_globals([InputCodes])
