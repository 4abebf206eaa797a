"""gnnfx.compress: stages follow from the policy, and a run that was killed ends as any other."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN

import gnnfx
from gnnfx import Compressed, Policy, Prune, Quantize
from gnnfx.errors import ArtifactError, InputError, PolicyError
from tests.models import IN, OUT, GraphClassifier, graph, make
from tests.test_finetune import graphs

EPOCHS = 3
STRUCTURED = Policy(prune=Prune(0.5), quantize=Quantize(layers="all"))
SINGLE = Policy(
    prune=Prune(0.75, method="fine-grained", schedule="cubic", end=2),
    quantize=Quantize(4, 8, layers="all"),
)
POLICIES = {"structured": STRUCTURED, "fine-grained": SINGLE}


def nodes() -> Data:
    x, edge_index = graph(60, 200)
    part = torch.arange(60) % 3
    masks = {name: part == n for n, name in enumerate(("train_mask", "val_mask", "test_mask"))}
    return Data(x=x, edge_index=edge_index, y=x[:, :OUT].argmax(1), **masks)


def run(policy: str, folder: Path | None = None, **changes: Any) -> Compressed:
    arguments = {"epochs": EPOCHS, "checkpoint_dir": folder, **changes}
    torch.manual_seed(0)
    model = GCN(IN, 16, 2, OUT, norm="batch", dropout=0.5).eval()
    return gnnfx.compress(model, POLICIES[policy], nodes(), **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, Compressed]:
    return {policy: run(policy, folder / policy) for policy in POLICIES}


def assert_same(one: Compressed, other: Compressed) -> None:
    """Bit for bit, whatever the timings were."""
    assert one.module.ir() == other.module.ir()
    tensors = other.module.tensors()
    for name, tensor in one.module.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
    for left, right in zip(one.report.stages, other.report.stages, strict=True):
        assert (left.validation, left.test, left.nonzero) == (
            right.validation,
            right.test,
            right.nonzero,
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_each_stage_is_reported(policy: str, finished: dict[str, Compressed]) -> None:
    found = finished[policy]
    stages = {stage.name: stage for stage in found.report.stages}
    assert list(stages) == ["dense", "prune", "fine-tune", "train-rounded", "convert"]
    dense, tuned, integers = (stages[n] for n in ("dense", "fine-tune", "convert"))
    assert tuned.flops < 0.7 * dense.flops
    assert integers.weight_bytes is not None
    assert tuned.weight_bytes is not None
    assert integers.weight_bytes < tuned.weight_bytes
    assert all(s.test is not None for s in stages.values())
    assert [n for n, s in stages.items() if s.latency_ms is None] == ["train-rounded"]
    remarks = " ".join(text for layer in found.module.report.layers for text in layer.done)
    if policy == "structured":
        assert "8 of 16 channels removed" in remarks
        assert tuned.parameters < 0.6 * dense.parameters
    else:
        assert "75% of convs.0.lin.weight set to zero" in remarks
        # A quarter of each matrix is left through all training, in the integers too.
        codes = [t for t in found.module.tensors().values() if t.dtype in (torch.int8, torch.uint8)]
        assert codes
        assert tuned.nonzero < 0.4 * dense.nonzero
        assert stages["train-rounded"].nonzero <= tuned.nonzero
    assert "int" in "".join(op for layer in found.module.report.layers for op in layer.runs_as)
    assert "train-rounded" in str(found.report)
    assert len(found.report.to_json()) > 100


def test_a_run_that_was_interrupted_twice_ends_as_any_other(
    finished: dict[str, Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the schedule prunes, and again while what is left trains with rounding."""
    left, real = 0, torch.optim.Adam.step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    for left in (2, 2 * EPOCHS + 2):  # noqa: B007  (read by step)
        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.Adam, "step", step)
            with pytest.raises(KeyboardInterrupt):
                run("fine-grained", tmp_path)
    assert_same(run("fine-grained", tmp_path), finished["fine-grained"])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from tests.test_compress import EPOCHS, run
torch.set_num_threads(int(sys.argv[3]))  # sums may round otherwise on other numbers of threads
steps, real = 0, torch.optim.Adam.step
def step(*args, **kwargs):
    global steps
    steps += 1
    if steps == 2 * EPOCHS:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
torch.optim.Adam.step = step
run("structured", Path(sys.argv[2]))
"""


def test_a_process_that_was_killed_is_taken_up_by_another(
    finished: dict[str, Compressed], tmp_path: Path
) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", KILLED, root, str(tmp_path), threads]
    died = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    done = sorted(path.name for path in tmp_path.glob("*.gnnfx-stage"))
    assert done == ["dense.gnnfx-stage", "fine-tune.gnnfx-stage", "prune.gnnfx-stage"]
    assert_same(run("structured", tmp_path), finished["structured"])


def test_a_folder_of_another_run_is_refused(
    finished: dict[str, Compressed], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"checkpoint_dir holds dense\.gnnfx-stage of a run with"):
        run("structured", folder / "structured", seed=1)
    shutil.copytree(folder / "structured", tmp_path, dirs_exist_ok=True)
    (tmp_path / "prune.gnnfx-stage").write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match=r"prune\.gnnfx-stage does not start like"):
        run("structured", tmp_path)


def test_graphs_from_loaders() -> None:
    torch.manual_seed(0)
    loader = DataLoader(graphs(), batch_size=8, shuffle=True)
    prune = Prune(0.5, criterion="taylor", schedule="iterative", end=4)
    found = gnnfx.compress(
        GraphClassifier().eval(),
        Policy(prune=prune, quantize=Quantize(layers="all")),
        loader,
        task="graph-classification",
        validation=loader,
        test=loader,
        epochs=6,
    )
    assert found.report.stages[-1].test == found.report.stages[-1].validation
    assert found.report.stages[-1].validation > 0.8
    batch = next(iter(loader))
    assert found.module(batch.x, batch.edge_index, batch.batch).shape == (8, OUT)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"policy": "fp32"}, PolicyError, "neither prunes nor quantizes"),
        ({"policy": "int8", "model": None}, InputError, r"must be a torch\.nn\.Module"),
        ({"data": Data(x=torch.rand(3, IN))}, InputError, "argument 'edge_index' is missing"),
        ({"data": Data(*graph(4, 9))}, InputError, r"data lacks \['y', 'train_mask'"),
        ({"task": "graph-classification"}, InputError, "validation must be a loader"),
    ],
)
def test_wrong_input_is_named(changes: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"model": make("gcn"), "policy": STRUCTURED, "data": nodes(), **changes}
    with pytest.raises(error, match=message):
        gnnfx.compress(**arguments)


def test_optimize_prunes_single_weights_and_quantizes_them() -> None:
    model, inputs = make("gcn"), graph(30, 100)
    policy = Policy(prune=Prune(0.75, method="global"), quantize=Quantize(layers="all"))
    optimized = gnnfx.optimize(model, policy, inputs, calibration=[inputs])
    remarks = " ".join(text for layer in optimized.report.layers for text in layer.done)
    assert "of convs.0.lin.weight set to zero" in remarks
    assert "int8" in " ".join(op for layer in optimized.report.layers for op in layer.runs_as)
    weights = [t for t in optimized.tensors().values() if t.dtype == torch.int8]
    assert sum(int((w == 0).sum()) for w in weights) >= 0.75 * sum(w.numel() for w in weights)
