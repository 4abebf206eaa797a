"""Groups of channels that must go together, found by following every axis through a program.

    h: f32[N, 16] = aten.linear.default(x, w0, b0)
    y: f32[N, 5] = aten.linear.default(h, w1)

has one group of 16 units: unit i is row i of w0, entry i of b0 and column i of w1.  Units are
equal in what they touch, so a group is what a ratio applies to.  Inputs and outputs keep their
width, and so does what meets an op that no rule follows.  A message-passing layer that something
leads around is a group as well, of one unit: all that belongs to the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
from rich.table import Table

from gnnfx.ir.program import Instr, Program
from gnnfx.pruning.follow import followed, keep_all
from gnnfx.pruning.labels import Labels, Layout
from gnnfx.pruning.layers import find_layers, passes_messages
from gnnfx.pruning.norm_rules import STATISTICS, norm_tensors
from gnnfx.pruning.rules import Flow

Positions = tuple[tuple[str, int, tuple[int, ...]], ...]
OUTPUT = "is an output of the model"


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes or stays as one: (tensor, axis, positions along it), and its label."""

    label: int
    slices: Positions


@dataclass(frozen=True, slots=True)
class Group:
    """Units that touch the same tensors.

    name: the tensors it is a width of, the first first.
    kind: 'channels', 'heads' if each unit is a block of another axis, or 'layers'.
    kept: why its units cannot be removed, or None if they can.
    """

    name: str
    kind: str
    units: tuple[Unit, ...]
    kept: str | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that lose slices with a unit."""
        return tuple(dict.fromkeys(name for name, _, _ in self.units[0].slices))


@dataclass(frozen=True)
class Groups:
    """All groups of a program.

    values: the root label of every position along each axis, by name of the value or tensor.
    depends: edges from a label to the labels that go with it.
    statistics: tensors that shrink with their group but are no weights.
    norm_scales: scales of batch norms and instance norms.
    """

    groups: tuple[Group, ...]
    values: dict[str, tuple[Labels | None, ...]]
    depends: nx.DiGraph
    statistics: frozenset[str]
    norm_scales: frozenset[str]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def removable(self) -> list[Group]:
        return [g for g in self.groups if g.kept is None]

    def removed_with(self, labels: set[int]) -> set[int]:
        """`labels` and every label that goes with one of them."""
        gone = set(labels)
        for label in labels & set(self.depends):
            gone |= nx.descendants(self.depends, label)
        return gone

    def table(self) -> Table:
        """One row a group."""
        table = Table(title="channel groups")
        for column in ("group", "kind", "units", "tensors", "kept because"):
            table.add_column(column)
        for group in self.groups:
            row = (group.name, group.kind, str(len(group.units)), "\n".join(group.tensors))
            table.add_row(*row, group.kept or "")
        return table

    def to_networkx(self) -> nx.Graph:
        """Groups by number and tensors by name, joined where a group is a width of a tensor."""
        drawing = nx.Graph()
        for key, group in enumerate(self.groups):
            facts = {"kind": group.kind, "units": len(group.units), "kept": group.kept}
            drawing.add_node(key, bipartite=0, **facts)
            for tensor, axis, _ in group.units[0].slices:
                drawing.add_node(tensor, bipartite=1)
                drawing.add_edge(key, tensor, axis=axis)
        return drawing


def value_key(instr: Instr) -> str:
    """Where `Groups.values` has the axes of `instr`: tensors stand under their own names."""
    return instr.param if instr.op == "param" else f"%{instr.name}"


def find_groups(program: Program) -> Groups:
    """The groups of a float program whose batch norms are still there."""
    flow = Flow()
    for instr in program.instrs:
        if instr.op != "return":
            flow.layouts[instr.name] = followed(flow, instr, program)
    for instr in program.results:
        keep_all(flow, instr, OUTPUT)
    flow.channels.settle()
    return _collect(program, flow)


def _collect(program: Program, flow: Flow) -> Groups:
    root = flow.channels.root
    values = {
        name: tuple(None if axis is None else tuple(map(root, axis)) for axis in layout.axes)
        for name, layout in _tensor_layouts(program, flow)
    }
    depends = nx.DiGraph()
    heads: set[int] = set()
    for label, factors in flow.channels.products:
        depends.add_edges_from((root(f), root(label)) for f in factors)
        heads.update(root(f) for f in factors[:-1])
    kept = _reasons(flow, depends)
    names = {i.param for i in program.instrs if i.op == "param"}
    statistics = norm_tensors(program, *STATISTICS)
    slices, places = _slices(values, names), _places(values)
    members: dict[tuple[frozenset[tuple[str, int]], str | None, bool], list[Unit]] = {}
    for label in sorted(places):
        if label in depends and depends.in_degree(label):
            continue
        gone = {label} | (nx.descendants(depends, label) if label in depends else set())
        touched: dict[tuple[str, int], list[int]] = {}
        for other in sorted(gone):
            for (tensor, axis), positions in slices.get(other, {}).items():
                touched.setdefault((tensor, axis), []).extend(positions)
        if all(tensor in statistics for tensor, _ in touched):
            continue
        parts = tuple((t, axis, tuple(sorted(p))) for (t, axis), p in touched.items())
        signature = (frozenset(places[label]), kept.get(label), label in heads)
        members.setdefault(signature, []).append(Unit(label, parts))
    groups = [
        Group(_name(units[0], program), "heads" if head else "channels", _ordered(units), reason)
        for (_, reason, head), units in members.items()
    ]
    groups += _layers(program)
    return Groups(tuple(groups), values, depends, statistics, norm_tensors(program, "weight"))


def _layers(program: Program) -> Iterator[Group]:
    """Message-passing layers that can go, and why the others stay."""
    layers = find_layers(program)
    removable = [layer for layer in layers if layer.removable]
    found: list[tuple[tuple[str, ...], str | None]] = [(r.tensors, None) for r in removable]
    for reduction in program.find("scatter"):
        if any(reduction in layer.alone for layer in removable) or not passes_messages(reduction):
            continue
        path = reduction.module.rpartition(".")[0]
        readers = [i for i in program.instrs if f"{i.module}.".startswith(f"{path}.")]
        params = [i.param for reader in readers for i in reader.inputs if i.op == "param"]
        own = tuple(dict.fromkeys(params))
        known = any(reduction in layer.alone for layer in layers)
        why = "is not zero where its own weights are" if known else "has no path around it"
        found.append((own, why))
    for number, (tensors, reason) in enumerate(found, start=1):
        shapes = [(name, program.tensors[name].shape) for name in tensors]
        if shapes:
            slices = tuple((n, 0, tuple(range(s[0] if s else 1))) for n, s in shapes)
            unit = Unit(-number, slices)
            yield Group(_name(unit, program), "layers", (unit,), reason)


def _ordered(units: list[Unit]) -> tuple[Unit, ...]:
    """Units by their positions in the first tensor."""
    return tuple(sorted(units, key=lambda unit: unit.slices[0][2]))


def _tensor_layouts(program: Program, flow: Flow) -> Iterator[tuple[str, Layout]]:
    for instr in program.instrs:
        layout = flow.layouts.get(instr.name)
        if isinstance(layout, Layout):
            yield value_key(instr), layout


def _reasons(flow: Flow, depends: nx.DiGraph) -> dict[int, str]:
    """Why a label stays; a factor of a label that stays does so too."""
    kept: dict[int, str] = {}
    for label, reason in flow.channels.kept.items():
        root = flow.channels.root(label)
        kept.setdefault(root, reason)
        for factor in nx.ancestors(depends, root) if root in depends else ():
            kept.setdefault(factor, reason)
    return kept


def _slices(
    values: dict[str, tuple[Labels | None, ...]], names: set[str]
) -> dict[int, dict[tuple[str, int], list[int]]]:
    """Positions in the model's tensors by label."""
    found: dict[int, dict[tuple[str, int], list[int]]] = {}
    for name in (n for n in values if n in names):
        for axis, labels in enumerate(values[name]):
            for position, label in enumerate(labels or ()):
                found.setdefault(label, {}).setdefault((name, axis), []).append(position)
    return found


def _places(values: dict[str, tuple[Labels | None, ...]]) -> dict[int, set[tuple[str, int]]]:
    """The axes that each label lies along."""
    found: dict[int, set[tuple[str, int]]] = {}
    for name, axes in values.items():
        for axis, labels in enumerate(axes):
            for label in labels or ():
                found.setdefault(label, set()).add((name, axis))
    return found


def _name(unit: Unit, program: Program) -> str:
    """The first matrix that makes the channels, or else the first tensor."""
    makes = [t for t, axis, _ in unit.slices if axis == 0 and program.tensors[t].dim() > 1]
    return (makes or [t for t, _, _ in unit.slices])[0]
