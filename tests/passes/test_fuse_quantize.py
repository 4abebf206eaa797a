"""fuse-quantize: a linear layer rounds what it alone reads."""

from __future__ import annotations

import torch

from gnnfx.ir.text import dump, parse
from gnnfx.passes.fuse_quantize import FuseQuantize
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

PROGRAM = """\
program layer(x: f32[N, 8], s: f32[], z: i32[], deg: f32[N])
  w: i8[3, 8] = param('w')
  ws: f32[3] = param('ws')
  q: u8[N, 4] = quantize(x, s, z, 4{row_scale})
  y: f32[N, 3] = quantized_linear(q, s, z, w, ws, 8, None, None, 'relu', None, None, 4)  # lin
{more}
"""
SHARED = """\
  d: f32[N, 8] = dequantize(q, s, z, 8, 4)
  return (y, d)"""


def test_codes_of_one_reader_go() -> None:
    before, after, _ = rewrite(FuseQuantize(), PROGRAM.format(row_scale="", more="  return (y,)"))
    assert body(after) == ["quantized_linear"]
    fused = next(after.find("quantized_linear"))
    assert (fused.arg.name, fused.args["bits"], fused.module) == ("x", 4, "lin")
    for program in (before, after):
        program.tensors |= {
            "w": torch.arange(-12, 12).reshape(3, 8).to(torch.int8),
            "ws": torch.tensor([0.5, 1.0, 0.1]),
        }
    x = 3 * torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    check_values(before, after, x, torch.tensor(0.7), torch.tensor(2).int(), torch.ones(9))
    check_second_run(FuseQuantize(), after)
    assert dump(parse(dump(after))) == dump(after)


def test_codes_of_several_readers_and_of_scaled_rows_stay() -> None:
    for row_scale, more in (("", SHARED), (", deg", "  return (y,)")):
        before, after, _ = rewrite(FuseQuantize(), PROGRAM.format(row_scale=row_scale, more=more))
        assert after is before
