"""save and load: an equal module, no code, and a clear refusal of any other file."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch_geometric.nn import GCN, GCNConv

import gnnfx
from gnnfx import artifact_file
from gnnfx.backend.call import Call
from gnnfx.errors import ArtifactError, InputError
from gnnfx.frontend.signature import Signature
from gnnfx.ir.text import restore
from tests.bits import same_bits
from tests.models import IN, NODE_MODELS, OUT, UGLY, GraphClassifier, graph, make

Made = tuple[gnnfx.OptimizedModule, gnnfx.OptimizedModule]


def round_trip(module: gnnfx.OptimizedModule, folder: Path) -> gnnfx.OptimizedModule:
    """Saved and loaded; what can be read off both must be equal."""
    path = folder / "model.gnnfx"
    gnnfx.save(module, path)
    loaded = gnnfx.load(path)
    assert type(loaded) is type(module)
    assert loaded.ir() == module.ir()
    assert loaded.report == module.report
    assert str(loaded.report) == str(module.report)
    assert loaded.call == module.call
    assert loaded.training == module.training
    state = module.state_dict()
    assert list(loaded.state_dict()) == list(state)
    assert same_bits(loaded.state_dict(), state)
    strides = {name: t.stride() for name, t in module.tensors().items()}
    assert {name: t.stride() for name, t in loaded.tensors().items()} == strides
    assert [p.name for p in folder.iterdir()] == [path.name]
    return loaded


@pytest.mark.parametrize("policy", ["fp32", "int8", "int4", "int8-calibrated", "int4-calibrated"])
@pytest.mark.parametrize("name", NODE_MODELS)
def test_every_model_gives_the_same_bits(tmp_path: Path, name: str, policy: str) -> None:
    bits, _, calibrated = policy.partition("-")
    data = [graph(60, 240)] if calibrated else None
    module = gnnfx.optimize(make(name), bits, graph(40, 160), calibration=data)
    loaded = round_trip(module, tmp_path)
    for inputs in [graph(50, 300), *(ugly() for ugly in UGLY.values())]:
        assert same_bits(loaded(*inputs), module(*inputs))
    x, edge_index = graph(30, 90)
    for wrong in [(x,), (x[:, 1:], edge_index), (x, edge_index + 9), (x.double(), edge_index)]:
        assert refusal(loaded, *wrong) == refusal(module, *wrong)


def refusal(module: gnnfx.OptimizedModule, *args: Any, **kwargs: Any) -> str:
    """What a module says of a wrong call."""
    with pytest.raises(InputError) as error:
        module(*args, **kwargs)
    return str(error.value)


class Forms(nn.Module):
    """Nested inputs and outputs, numbers, names and defaults."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv = GCNConv(IN, OUT)
        self.form = form

    def forward(
        self,
        parts: dict[str, Tensor],
        pair: tuple[Tensor, ...],
        count: int,
        *,
        mode: str = "sum",
        scale: float = 0.5,
        limits: list[int] = [1, 2],  # noqa: B006  (a default that JSON holds)
        extra: Tensor | None = None,
    ) -> Any:
        y = self.conv(parts["x"], pair[0]) * scale * count
        y = y + pair[1][:, None] if mode == "add" else y
        y = y if extra is None else y + extra
        match self.form:
            case "tensor":
                return y
            case "list":
                return [y, [y + 1]]
            case "dict":
                return {"y": y, "more": (y + 1, None), 3: OrderedDict(b=y, a=y * 2)}
            case "set":
                return POINT(y, y)
            case _:
                return {("a", "b"): y}


POINT = namedtuple("POINT", ["x", "y"])


def forms_call(nodes: int, edges: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, edge_index = graph(nodes, edges)
    return ({"x": x}, (edge_index, torch.rand(nodes)), nodes), {
        "mode": "add",
        "extra": torch.ones(nodes, OUT),
    }


@pytest.mark.parametrize("form", ["tensor", "list", "dict"])
def test_nested_calls(tmp_path: Path, form: str) -> None:
    args, kwargs = forms_call(30, 90)
    module = gnnfx.optimize(Forms(form), "fp32", args, example_kwargs=kwargs)
    loaded = round_trip(module, tmp_path)
    args, kwargs = forms_call(50, 300)
    assert same_bits(loaded(*args, **kwargs), module(*args, **kwargs))
    for wrong in [{**kwargs, "mode": "sum"}, {**kwargs, "unknown": 1}, {}]:
        assert refusal(loaded, *args, **wrong) == refusal(module, *args, **wrong)


class Dense(nn.Module):
    """Nothing that depends on a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)  # type: ignore[no-any-return]


def test_without_a_structure_part(tmp_path: Path) -> None:
    x, _ = graph(30, 90)
    module = gnnfx.optimize(Dense(), "fp32", (x,))
    assert same_bits(round_trip(module, tmp_path)(x), module(x))


def test_a_batch_of_graphs(tmp_path: Path) -> None:
    batch = torch.arange(4).repeat_interleave(10)
    module = gnnfx.optimize(GraphClassifier(), "int8", (*graph(40, 160), batch))
    assert same_bits(
        round_trip(module, tmp_path)(*graph(40, 90), batch), module(*graph(40, 90), batch)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An int8 module and what loading makes of it."""
    module = gnnfx.optimize(make("gat"), "int8", graph(40, 160), calibration=[graph(60, 240)])
    return module, round_trip(module, tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to("cpu")]
)
def test_a_loaded_module_can_be_copied(made: Made, copied: Callable[..., Any]) -> None:
    module, loaded = made
    again = copied(loaded)
    assert again.ir() == loaded.ir()
    assert same_bits(again(*graph(30, 90)), module(*graph(30, 90)))


def test_a_loaded_module_can_be_saved(made: Made, tmp_path: Path) -> None:
    for name, each in zip("ab", made, strict=True):
        gnnfx.save(each, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Numbered(nn.Module):
    """Makes a tensor of its own, on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(20, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index) + torch.arange(len(x), device=x.device)[:, None]
        return out


def test_another_device(tmp_path: Path) -> None:
    """The meta device stands for one that this machine may lack: nothing is run."""
    module = gnnfx.optimize(Numbered(), "int8", graph(40, 160))
    moved = copy.deepcopy(module).to("meta")
    gnnfx.save(module, tmp_path / "model")
    loaded = gnnfx.load(tmp_path / "model", device="meta")
    assert loaded.ir() == moved.ir() != module.ir()
    assert "device=torch.device('meta')" in loaded.ir()
    assert {t.device.type for t in loaded.state_dict().values()} == {"meta"}
    for part in (loaded._feature, loaded._structure):
        devices = {n.kwargs["device"] for n in part.graph.nodes if n.kwargs.get("device")}
        assert devices <= {torch.device("meta")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_loaded_module_can_be_compiled(made: Made) -> None:
    torch._dynamo.reset()
    module, loaded = made
    compiled = torch.compile(loaded, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for sizes in [(30, 100), (50, 300)]:
            torch.testing.assert_close(compiled(*graph(*sizes)), module(*graph(*sizes)))


def test_changed_weights_are_saved(tmp_path: Path) -> None:
    module = gnnfx.optimize(make("gcn"), "fp32", graph(40, 160))
    module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()})
    assert same_bits(round_trip(module, tmp_path)(*graph(30, 90)), module(*graph(30, 90)))


class Tied(nn.Module):
    """Two names for one weight, one that is stored transposed, and a view of a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(IN, IN), nn.Linear(IN, IN)
        self.second.weight = self.first.weight
        self.third = nn.Linear(IN, IN)
        self.third.weight = nn.Parameter(torch.randn(IN, IN).t())
        self.register_buffer("shift", torch.randn(4, IN).t().contiguous().t()[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu())) + self.shift  # type: ignore[no-any-return]


def test_weights_of_any_layout(tmp_path: Path) -> None:
    x = torch.randn(9, IN)
    module = gnnfx.optimize(Tied(), "fp32", (x,))
    assert same_bits(round_trip(module, tmp_path)(x), module(x))


SHARED = """\
program shared(x: f32[N, 6])
  a: f32[6, 6] = param('a')
  b: f32[6, 6] = param('b.weight')
  row: f32[6] = param('row')
  y: f32[N, 6] = linear(x, a, row)
  z: f32[N, 6] = linear(y, b, None)
  return (z,)
"""


def test_one_tensor_of_two_names_is_stored_once(tmp_path: Path) -> None:
    weight, x = torch.randn(6, 6), torch.randn(9, 6)
    program = restore(SHARED, {"b.weight": weight, "row": weight[2], "a": weight})
    out_spec = pytree.tree_structure(x)
    call = Call(Signature.of(Dense()), ("x",), ("x",), {}, out_spec)
    module = gnnfx.OptimizedModule(call, program, gnnfx.Report("none", (), 0, 0))
    loaded = round_trip(module, tmp_path)
    assert same_bits(loaded(x), module(x))
    _, stored = artifact_file.read(tmp_path / "model.gnnfx")
    assert sorted(t.shape for t in stored.values()) == [(6,), (6, 6)]
    tensors = loaded.tensors()
    assert tensors["a"].data_ptr() == tensors["b.weight"].data_ptr() != tensors["row"].data_ptr()


def test_loading_needs_no_torch_geometric_and_no_model_class(made: Made, tmp_path: Path) -> None:
    inputs, module = graph(30, 90), made[0]
    gnnfx.save(module, tmp_path / "model.gnnfx")
    torch.save({"inputs": inputs, "want": module(*inputs)}, tmp_path / "data.pt")
    code = """
        import sys
        sys.modules["torch_geometric"] = None
        import torch, gnnfx
        module = gnnfx.load(sys.argv[1] + "/model.gnnfx")
        data = torch.load(sys.argv[1] + "/data.pt")
        assert torch.equal(module(*data["inputs"]), data["want"])
        assert not any(n.startswith(("torch_geometric.", "tests")) for n in sys.modules)
        print("loaded")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.stdout.strip() == "loaded", result.stderr


# What cannot be saved


class Default(nn.Module):
    """A default value that JSON does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(IN, OUT)

    def forward(self, x: Tensor, reduce: Any = torch.sum, size: Any = (1, 2)) -> Tensor:
        return self.lin(x)  # type: ignore[no-any-return]


class Outside(nn.Module):
    """An op of another library."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.tests_artifact.twice(x)  # type: ignore[no-any-return]


@torch.library.custom_op("tests_artifact::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def other_dtype() -> gnnfx.OptimizedModule:
    return gnnfx.optimize(make("gcn"), "fp32", graph(40, 160)).half()


def of_form(form: str) -> gnnfx.OptimizedModule:
    args, kwargs = forms_call(30, 90)
    return gnnfx.optimize(Forms(form), "fp32", args, example_kwargs=kwargs)


def with_a_head() -> gnnfx.OptimizedModule:
    module = gnnfx.optimize(make("gcn"), "fp32", graph(40, 160))
    module.head = nn.ReLU()
    return module


X = torch.randn(9, IN)
UNSAVABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "default": (
        lambda: gnnfx.optimize(Default(), "fp32", (X,)),
        "argument 'reduce' of forward defaults to <built-in method sum",
    ),
    "namedtuple": (lambda: of_form("set"), "the model returns a "),
    "tuple-keys": (lambda: of_form("edge types"), "the keys [('a', 'b')]; expected strings"),
    "other-op": (
        lambda: gnnfx.optimize(Outside(), "fp32", (X,)),
        "no op is called 'tests_artifact.twice.default'",
    ),
    "added": (with_a_head, "the module holds ['head'] beside its program"),
    "other-dtype": (other_dtype, "tensor 'convs.0.bias' is f16[16]"),
}


@pytest.mark.parametrize(("make_module", "message"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_a_file_cannot_hold(
    tmp_path: Path, make_module: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ArtifactError) as error:
        gnnfx.save(make_module(), tmp_path / "model.gnnfx")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_optimized_modules_are_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"an OptimizedModule of gnnfx\.optimize, got GCN"):
        gnnfx.save(GCN(IN, 8, 2), tmp_path / "model.gnnfx")


def test_only_regular_files_are_replaced(made: Made, tmp_path: Path) -> None:
    path, folder, link = tmp_path / "model", tmp_path / "folder", tmp_path / "link"
    path.write_text("old")
    folder.mkdir()
    link.symlink_to(path)
    for taken in (folder, link):
        with pytest.raises(ArtifactError, match="is not a regular file; it is not overwritten"):
            gnnfx.save(made[0], taken)
    assert path.read_text() == "old"
    gnnfx.save(made[0], path)
    gnnfx.load(link)
    with pytest.raises(ArtifactError, match="could not be written"):
        gnnfx.save(made[0], tmp_path / "nowhere" / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link", "model"]


def test_permissions_and_names_are_those_of_any_file(made: Made, tmp_path: Path) -> None:
    path, other = tmp_path / ("n" * 255), tmp_path / "other"
    gnnfx.save(made[0], path)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_failed_save_leaves_the_old_file(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    path.write_text("old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtifactError, match="No space left"):
        gnnfx.save(made[0], path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# Files that are refused


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small artifact."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "model"
    gnnfx.save(gnnfx.optimize(GCN(4, 3, 1), "int8", (torch.randn(9, 4), graph(9, 20)[1])), path)
    return path.read_bytes()


def rewritten(data: bytes, edit: Callable[[dict[str, Any]], Any], folder: Path) -> Path:
    """The file with an edited document and a fitting digest, as someone might forge it."""
    path = folder / "forged"
    path.write_bytes(data)
    document, tensors = artifact_file.read(path)
    del document["sha256"]
    edit(document)
    artifact_file.write(path, document, tensors)
    return path


def edit_program(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        assert old in document["program"]
        document["program"] = document["program"].replace(old, new)

    return edit


FORGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda d: d.update(format=2), "has format version 2; expected 1"),
    "newer": (lambda d: d.update(gnnfx="99.0"), "was saved by gnnfx 99.0; expected 0."),
    "no-version": (lambda d: d.update(gnnfx="new"), "'new' is not a version"),
    "no-program": (lambda d: d.pop("program"), "cannot be read: 'program'"),
    "no-tensor": (lambda d: d["tensors"].popitem(), "there is no tensor 'convs.0.lin.weight"),
    "other-tensor": (lambda d: d["tensors"].update(w="w"), "cannot be read: 'w'"),
    "no-leaves": (lambda d: d["call"].update(leaves=[]), "2 inputs and 1 results, the call 0 and"),
    "no-call": (lambda d: d.update(call=None), "document that cannot be read"),
    "no-results": (
        lambda d: d["call"].update(out_spec='[1, {"type": "builtins.list", "context": "null", '
                                            '"children_spec": []}]'),
        "has 2 inputs and 1 results, the call 2 and 0",
    ),
    "import": (
        lambda d: d["call"].update(
            out_spec='[1, {"type": "collections.defaultdict", "context": '
            '{"default_factory_module": "os", "default_factory_name": "getcwd", '
            '"dict_context": []}, "children_spec": []}]'
        ),
        "'collections.defaultdict' is not a container of results",
    ),
    "report": (lambda d: d["report"].update(speed=3), "unexpected keyword argument 'speed'"),
    "op": (edit_program("aten.pow.Tensor_Scalar(", "structure("), "no op is called 'structure'"),
    "file-op": (
        edit_program("aten.pow.Tensor_Scalar(", "aten.save.default("),
        "no op is called 'aten.save",
    ),
    "namespace": (
        edit_program("aten.pow.Tensor_Scalar(", "prims.sum.default("),
        "no op is called 'prims.sum",
    ),
    "in-place": (edit_program("aten.pow.Tensor_Scalar", "aten.pow_.Scalar"), "does more than"),
    "cut": (lambda d: d.update(program=d["program"][:300]), "to be `return value`"),
    "nested": (lambda d: d.update(call="[" * 100), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), FORGED.values(), ids=FORGED)
def test_forged_documents(
    small: bytes, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = rewritten(small, edit, tmp_path)
    with pytest.raises(ArtifactError, match="forged") as error:
        gnnfx.load(path)
    assert message in str(error.value)


def loads_or_is_refused(path: Path) -> None:
    with suppress(ArtifactError):
        assert type(gnnfx.load(path)) is gnnfx.OptimizedModule


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_forged_programs(small: bytes, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Any text is a program or is refused: nothing else is raised."""

    def edit(document: dict[str, Any]) -> None:
        text = document["program"]
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        pieces = ["(", ")", "[", "'", "\\", "\n", "  # ", ", ", " = ", "x", "9" * 30, "N", "**9"]
        new = data.draw(st.one_of(st.text(max_size=4), st.sampled_from([*pieces, *text.split()])))
        document["program"] = text[:at] + new + text[at + length :]

    loads_or_is_refused(rewritten(small, edit, tmp_path_factory.getbasetemp()))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_forged_values(small: bytes, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Any JSON in any place of the document is taken or refused: nothing else is raised."""
    others: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], ["x"], {}, {"x": 1}, [[[]]]]

    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        key = data.draw(st.sampled_from(sorted(document)))
        while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(list(keys)))
        place[key] = data.draw(st.sampled_from(others))

    loads_or_is_refused(rewritten(small, edit, tmp_path_factory.getbasetemp()))


OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not start like an artifact"),
    "text": (b"import os; os.abort()\n" * 9, "does not start like an artifact"),
    "pickle": (pickle.dumps(make), "does not start like an artifact"),
    "zip": (b"PK\x03\x04" + b"\0" * 90, "does not start like an artifact"),
    "huge-header": (b"\xff" * 7 + b"\x7f" + b"{}", "does not start like an artifact"),
}


@pytest.mark.parametrize(("data", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="other") as error:
        gnnfx.load(path)
    assert message in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", str(tmp_path / "a" / "b")):
        with pytest.raises(ArtifactError, match="is not a file; expected an artifact"):
            gnnfx.load(path)


def test_a_header_longer_than_the_file(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes((2**62).to_bytes(8, "little") + small[8:])
    with pytest.raises(ArtifactError, match="is cut short"):
        gnnfx.load(path)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "cpu:x", 3.5])
def test_devices_that_are_not_there(small: bytes, tmp_path: Path, device: Any) -> None:
    path = tmp_path / "model"
    path.write_bytes(small)
    with pytest.raises(InputError, match="device must be one that this machine has, got"):
        gnnfx.load(path, device=device)


def refuse(data: bytes, folder: Path) -> None:
    path = folder / "damaged"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        gnnfx.load(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_changed_byte_is_seen(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(small) - 1))
        changed[at] ^= data.draw(st.integers(1, 255))
    if changed != small:
        refuse(bytes(changed), tmp_path_factory.getbasetemp())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_cut_is_seen(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    start = data.draw(st.integers(0, len(small)))
    end = data.draw(st.integers(start, len(small)))
    for damaged in (small[:start], small[:start] + small[end:], small + small[start:end]):
        if damaged != small:
            refuse(damaged, tmp_path_factory.getbasetemp())


def test_every_single_byte_counts(small: bytes, tmp_path: Path) -> None:
    for at in range(0, len(small)):
        changed = bytearray(small)
        changed[at] ^= 1
        refuse(bytes(changed), tmp_path)


def test_the_text_is_json_in_the_safetensors_header(small: bytes) -> None:
    header = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
    document = json.loads(header["__metadata__"]["gnnfx"])
    assert document["program"].startswith("program GCN(x: f32[N, 4]")
    assert document["format"] == artifact_file.FORMAT
