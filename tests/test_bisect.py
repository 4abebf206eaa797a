"""History and bisect: steps and their labels, stopping, and finding a deliberately wrong pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GCN

import gnnfx
from gnnfx import api
from gnnfx.bisect import compare
from gnnfx.errors import InputError
from gnnfx.history import record
from gnnfx.ir.program import Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.ir.text import dump
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.pipeline import float_passes
from gnnfx.policy import PRESETS, Policy
from tests.models import IN, OUT, graph, make


class DoubleFirstRelu(Pass):
    """relu(x) becomes relu(x + x): a fault."""

    name = "double-first-relu"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        relu = next(rewriter.program.find("aten.relu.default"), None)
        if relu is None:
            return program
        rewriter.set_arg(relu, "self", rewriter.insert(relu, "aten.add.Tensor", relu.arg, relu.arg))
        ctx.did(relu, "doubled")
        return rewriter.finish()


@pytest.fixture
def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong pass runs third."""

    def passes(policy: Policy) -> list[Pass]:
        first, second, *others = float_passes(policy)
        return [first, second, DoubleFirstRelu(), *others]

    monkeypatch.setattr(api, "float_passes", passes)


def test_labels_number_the_runs_of_a_pass() -> None:
    history = record(make("gcn"), "fp32", graph(30, 90))
    labels = [step.label for step in history.steps]
    assert labels[:3] == ["trace", "canonicalize", "raise-message-passing"]
    assert len(set(labels)) == len(labels) > len(float_passes(PRESETS["fp32"]))
    assert "fuse-epilogue#3" in labels
    assert history.after("canonicalize#1") is history.after("canonicalize")
    assert history.after(labels[-1]).program is history.program


def test_history_ends_where_optimize_ends() -> None:
    history = record(make("gcn"), "int8", graph(30, 90))
    optimized = gnnfx.optimize(make("gcn"), "int8", graph(30, 90))
    assert dump(history.program) == str(optimized.ir())
    remarks = [remark for step in history.steps for remark in step.remarks]
    assert all(r.pass_name == s.label.split("#")[0] for s in history.steps for r in s.remarks)
    assert any(remark.done for remark in remarks)


@pytest.mark.parametrize("label", ["trace", "fuse-aggregate", "canonicalize#2"])
def test_stops_after_a_pass(label: str) -> None:
    whole = record(make("gcn"), "fp32", graph(30, 90))
    stopped = record(make("gcn"), "fp32", graph(30, 90), stop_after=label)
    assert stopped.steps[-1].label == label
    assert dump(stopped.program) == dump(whole.after(label).program)


@pytest.mark.parametrize("label", ["fuse-everything", "canonicalize#9", "quantize"])
def test_an_unknown_pass_is_named_with_those_that_ran(label: str) -> None:
    with pytest.raises(InputError, match=rf"no pass '{label}' ran.*trace, canonicalize.*lower"):
        record(make("gcn"), "fp32", graph(30, 90), stop_after=label)


def test_writes_one_text_a_step(tmp_path: Path) -> None:
    history = record(make("sage"), "fp32", graph(30, 90))
    files = history.write(tmp_path / "new" / "folder")
    assert files[0].name == "00-trace.txt"
    assert [file.read_text() for file in files] == [dump(s.program) for s in history.steps]


@pytest.mark.parametrize("policy", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["gcn", "gat", "custom-sum"])
def test_no_pass_is_wrong(name: str, policy: str) -> None:
    found = gnnfx.bisect(make(name), policy, graph(40, 200))
    assert found.culprit is None
    lossy = [change.size for change in found.changes if change.numerics is Numerics.LOSSY]
    assert all(0 < size < 0.2 for size in lossy)
    assert bool(lossy) == (policy == "int8")


@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_finds_the_wrong_pass_and_its_first_value(wrong_pass: None, policy: str) -> None:
    found = gnnfx.bisect(make("gcn"), policy, graph(40, 200))
    culprit = found.culprit
    assert culprit is not None
    assert (culprit.label, culprit.instr) == ("double-first-relu", "relu")
    assert 0.01 < culprit.size < 10
    assert [change.label for change in found.changes if not change.allowed] == [culprit.label]
    columns = [list(column.cells) for column in found.table().columns]
    assert columns[3].count("WRONG") == 1
    assert columns[3].index("WRONG") == columns[0].index("double-first-relu")


def test_a_wrong_trace_is_told_from_a_wrong_pass() -> None:
    torch.manual_seed(0)
    model, other = GCN(IN, 16, 2, OUT), GCN(IN, 16, 2, OUT)
    culprit = compare(record(other, "fp32", graph(40, 200)), model).culprit
    assert culprit is not None
    assert culprit.label == "trace"
