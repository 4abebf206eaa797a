"""Inputs as codes: equal to dequantized ones everywhere, and to floats where integers read them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE, HeteroConv, SAGEConv, SimpleConv

import gnnfx
from gnnfx import InputCodes, Policy, Quantize
from gnnfx.errors import InputError

CHANNELS = 32
POLICIES = {
    "int8": Policy(Quantize(layers="all")),
    "4-bit": Policy(Quantize(activation_bits=4, layers="all")),
    "2-bit": Policy(Quantize(weight_bits=2, activation_bits=2, layers="all")),
}
MODELS = {
    "gcn": lambda: GCN(CHANNELS, 16, 2, 5),
    "gcn-widens": lambda: GCN(CHANNELS, 64, 2, 5),  # scales the rows of x first
    "sage": lambda: GraphSAGE(CHANNELS, 16, 2, 5),
    "gin": lambda: GIN(CHANNELS, 16, 2, 5),
    "gat": lambda: GAT(CHANNELS, 16, 2, 5, heads=2),
}


def _graph(nodes: int = 60, edges: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, CHANNELS, generator=generator)
    return x, torch.randint(nodes, (2, edges), generator=generator)


def _optimized(name: str, policy: str, calibrated: bool = True) -> gnnfx.OptimizedModule:
    torch.manual_seed(1)
    calibration = [_graph()] if calibrated else None
    return gnnfx.optimize(MODELS[name](), POLICIES[policy], _graph(), calibration=calibration)


@pytest.fixture(scope="module")
def sage() -> gnnfx.OptimizedModule:
    return _optimized("sage", "int8")


@pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "uncalibrated"])
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *((name, "int8") for name in MODELS),
        ("sage", "4-bit"),
        ("gcn-widens", "4-bit"),
        ("gin", "2-bit"),
    ],
)
@pytest.mark.filterwarnings("ignore:rounding leaves little")
def test_codes_stand_for_their_values(name: str, policy: str, calibrated: bool) -> None:
    opt = _optimized(name, policy, calibrated)
    x, edge_index = _graph(seed=5)
    codes = opt.quantize_inputs(x)
    assert codes.nbytes * 8 == x.numel() * codes.bits
    got = opt(codes, edge_index)
    # Without calibration, the scale of dequantized values may differ in its last bit.
    torch.testing.assert_close(
        got, opt(codes.dequantize(), edge_index), rtol=0, atol=0 if calibrated else 1e-5
    )
    if name != "gcn-widens":
        torch.testing.assert_close(got, opt(x, edge_index), rtol=0, atol=0 if calibrated else 1e-5)
    n_id = torch.tensor([4, 9, 11, 2])
    part = torch.tensor([[0, 1, 2], [3, 3, 0]])
    torch.testing.assert_close(
        opt(codes[n_id], part),
        opt(codes.dequantize()[n_id], part),
        rtol=0,
        atol=0 if calibrated else 1,
    )


class _Skips(nn.Module):
    """Reads its input in integers, and in float32 for what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv(CHANNELS, CHANNELS, root_weight=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index) + x.tanh()
        return out


def test_what_reads_floats_reads_dequantized_codes_and_is_named() -> None:
    x, edge_index = _graph()
    opt = gnnfx.optimize(_Skips(), POLICIES["int8"], (x, edge_index), calibration=[(x, edge_index)])
    codes = opt.quantize_inputs(x)
    got = opt(codes, edge_index)
    assert torch.equal(got, opt(codes.dequantize(), edge_index))
    assert not torch.equal(got, opt(x, edge_index))
    left = [text for layer in opt.report.layers for text in layer.left]
    assert any(text.startswith("reads input x in float32") for text in left)


class _Residual(nn.Module):
    """What reads the codes of x adds x itself to its result, in the same op."""

    def __init__(self, layer: nn.Module, sends: bool) -> None:
        super().__init__()
        self.layer, self.sends = layer, sends

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.layer(x, edge_index) if self.sends else self.layer(x)
        return out + x


@pytest.mark.parametrize(
    ("layer", "sends"),
    [(lambda: nn.Linear(CHANNELS, CHANNELS), False), (SimpleConv, True)],
    ids=["linear", "aggregate"],
)
def test_a_residual_of_codes_is_dequantized(layer: Callable[[], nn.Module], sends: bool) -> None:
    example = _graph()
    torch.manual_seed(0)
    model = _Residual(layer(), sends)
    opt = gnnfx.optimize(model, POLICIES["int8"], example, calibration=[example])
    assert "residual=x" in opt.ir()
    codes = opt.quantize_inputs(example[0])
    assert torch.equal(opt(codes, example[1]), opt(codes.dequantize(), example[1]))


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv((CHANNELS, CHANNELS), 16)

    def forward(self, x: Tensor, other: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv((x, other), edge_index)
        return out


def test_several_inputs_by_name() -> None:
    x, edge_index = _graph()
    example = (x, x + 1, edge_index)
    opt = gnnfx.optimize(_TwoInputs(), POLICIES["int8"], example, calibration=[example])
    codes = opt.quantize_inputs(x=x, other=x + 1)
    assert sorted(codes) == ["other", "x"]
    expected = opt(*example)
    for given in (codes, {**codes, "x": x}, {**codes, "other": x + 1}):
        assert torch.equal(opt(**given, edge_index=edge_index), expected)


def test_features_of_several_types() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = HeteroConv(
                {
                    ("a", "to", "b"): SAGEConv(CHANNELS, 16),
                    ("b", "to", "a"): SAGEConv(CHANNELS, 16),
                }
            )

        def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Tensor]) -> Any:
            return self.conv(x_dict, edge_index_dict)

    x, edge_index = _graph()
    x_dict = {"a": x, "b": x[:40] + 1}
    edges = edge_index % 40
    example = (x_dict, {("a", "to", "b"): edges, ("b", "to", "a"): edges})
    opt = gnnfx.optimize(Net(), POLICIES["int8"], example, calibration=[example])
    codes = opt.quantize_inputs(x_dict)
    assert all(isinstance(c, InputCodes) for c in codes.values())
    got, expected = opt(codes, example[1]), opt(*example)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_files(sage: gnnfx.OptimizedModule, tmp_path: Path) -> None:
    x, edge_index = _graph()
    codes = sage.quantize_inputs(x)
    expected = sage(codes, edge_index)
    buffer = io.BytesIO()
    torch.save(codes, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=True)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(codes.state_dict(), tmp_path / "codes")
    again = InputCodes.from_state_dict(safetensors.load_file(tmp_path / "codes"))
    gnnfx.save(sage, tmp_path / "sage.gnnfx")
    modules = [
        sage,
        copy.deepcopy(sage),
        pickle.loads(pickle.dumps(sage)),
        gnnfx.load(tmp_path / "sage.gnnfx"),
    ]
    for module in modules:
        for given in (codes, read, again):
            assert torch.equal(module(given, edge_index), expected)


def test_devices_and_rows(sage: gnnfx.OptimizedModule) -> None:
    x, _ = _graph()
    codes = sage.quantize_inputs(x)
    assert codes.to("meta").device.type == "meta"
    assert codes.shape == x.shape
    assert len(codes[5:9]) == 4
    assert torch.equal(codes[x[:, 0] > 0].dequantize(), codes.dequantize()[x[:, 0] > 0])
    assert torch.equal(sage.quantize_inputs(codes).codes, codes.codes)
    for rows in (3, torch.tensor(3), (0, 1)):
        with pytest.raises(InputError, match="rows must be a slice"):
            codes[rows]


def test_compiled(sage: gnnfx.OptimizedModule) -> None:
    x, edge_index = _graph()
    module = pickle.loads(pickle.dumps(sage))
    codes = sage.quantize_inputs(x)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(codes, edge_index), sage(codes, edge_index))
    small = codes[:30]
    torch.testing.assert_close(compiled(small, edge_index % 30), sage(small, edge_index % 30))


def test_changed_weights_are_read(sage: gnnfx.OptimizedModule) -> None:
    x, edge_index = _graph()
    module = copy.deepcopy(sage)
    codes = module.quantize_inputs(x)
    module(codes, edge_index)
    state = {
        name: t * 2 if name.endswith(".scale") and "weight" in name else t
        for name, t in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
    assert torch.equal(module(codes, edge_index), module(x, edge_index))
    assert not torch.equal(module(codes, edge_index), sage(codes, edge_index))


def test_wrong_codes_are_refused(sage: gnnfx.OptimizedModule) -> None:
    x, edge_index = _graph()
    codes = sage.quantize_inputs(x)
    narrow = _optimized("sage", "4-bit").quantize_inputs(x)
    with pytest.raises(InputError, match="'x' is read as codes of 8 bits"):
        sage(narrow, edge_index)
    other = InputCodes.of(codes.codes, codes.scale * 2, codes.zero_point, CHANNELS, 8)
    with pytest.raises(InputError, match="make them with this module's quantize_inputs"):
        sage(other, edge_index)
    thin = InputCodes.of(codes.codes[:, :8], codes.scale, codes.zero_point, 8, 8)
    with pytest.raises(InputError, match=r"'x' must be f32\[N, 32\], got shape \(60, 8\)"):
        sage(thin, edge_index)
    with pytest.raises(InputError, match=r"'edge_index' is read in torch\.int64 alone"):
        sage(x, codes)
    with pytest.raises(InputError, match="layout says 3 channels"):
        InputCodes.from_state_dict({**codes.state_dict(), "layout": torch.tensor([3, 8])})


def test_wrong_inputs_are_refused(sage: gnnfx.OptimizedModule) -> None:
    x, edge_index = _graph()
    with pytest.raises(InputError, match="'x' holds NaN or Inf"):
        sage.quantize_inputs(x / 0)
    with pytest.raises(InputError, match="'x' must be f32"):
        sage.quantize_inputs(x[:, :5])
    with pytest.raises(InputError, match="'edge_index' is not read as codes"):
        sage.quantize_inputs(edge_index=edge_index)
    with pytest.raises(InputError, match="got 'y'"):
        sage.quantize_inputs(y=x)
    floats = gnnfx.optimize(MODELS["sage"](), "fp32", (x, edge_index))
    with pytest.raises(InputError, match="policy 'fp32'"):
        floats.quantize_inputs(x)
    with pytest.raises(InputError, match=r"'x' is read in torch\.float32 alone"):
        floats(sage.quantize_inputs(x), edge_index)
