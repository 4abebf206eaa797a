"""What `convert` keeps of quantized training: every code, and the speed of integers.

    python benchmarks/conversion.py --root data

Each model is trained for some epochs with Degree-Quant at 8 and 4 bits and converted.  The codes of
every rounding site of the integer module are compared with those that its simulation rounds to, on
the whole graph or on a batch of test graphs: once with every site given what the simulation has
before it, so that what differs is a tie by itself, which may be once in ten thousand and by one
code, and once in a plain call, where what follows from a tie differs, too.  The integer module then
takes turns with one that was quantized after training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, TABLE_WIDTH, environment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx
from torch.nn import functional
from torch_geometric.data import Batch

import gnnfx
from gnnfx import graph_qat, qat
from gnnfx.backend.module import OptimizedModule
from gnnfx.backend.prepared import PreparedModule
from gnnfx.demo import DATA_ROOT, load
from gnnfx.kernels.quantize import pack, unpack
from gnnfx.measure import Spread, interleaved_seconds

_GRAPHS = 256  # of a data set of graphs: half of them train, half are compared


@dataclass(frozen=True)
class Row:
    """One converted model.

    sites: values that are rounded and found in the integer module, of `of_sites`.
    codes: all of these sites.
    ties, most: codes that the simulation does not have although what is before it equals the
        simulation's, and by how much they differ at most.
    different: codes that the simulation does not have in a plain call.
    seconds, ratio: of a call of the integer module, and its time over that of the one quantized
        after training.
    """

    workload: str
    bits: int
    sites: int
    of_sites: int
    codes: int
    ties: int
    most: int
    different: int
    seconds: Spread
    ratio: Spread


@dataclass(frozen=True)
class Workload:
    """A model, what trains it and what it is compared on."""

    name: str
    build: Any
    training: tuple[tuple[Any, ...], Tensor, Any]
    compared: tuple[Any, ...]
    skip: tuple[str, ...] = ()


def main() -> None:
    """Parse arguments, measure, write JSON, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of the data sets")
    parser.add_argument("--epochs", type=int, default=50, help="of training before conversion")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds to time each model")
    parser.add_argument("--out", type=Path, default=RESULTS / "conversion.json")
    options = parser.parse_args()
    rows = [
        _measure(workload, bits, options.epochs, options.budget)
        for workload in _workloads(options.root)
        for bits in (8, 4)
    ]
    write(options.out, {"environment": environment(), "rows": [asdict(row) for row in rows]})
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(_table(rows))
    console.print(f"written: {options.out}")


def _workloads(root: Path) -> Iterator[Workload]:
    for dataset in ("Cora", "CiteSeer", "PubMed"):
        for model in ("GCN", "GAT", "GIN"):
            data, classes = load(dataset, root=root, seed=0, normalize=model != "GIN")
            call, sizes = (data.x, data.edge_index), (model, data.num_features, classes)
            training = call, data.y, data.train_mask
            yield Workload(f"{dataset} {model}", lambda s=sizes: qat.build(*s), training, call)
    for dataset in ("REDDIT-BINARY", "PROTEINS", "ESOL"):
        graphs = graph_qat.load(dataset, root)
        order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0))
        chosen = [graphs[i] for i in order[:_GRAPHS].tolist()]
        half = len(chosen) // 2
        first, second = Batch.from_data_list(chosen[:half]), Batch.from_data_list(chosen[half:])
        calls = [(b.x, b.edge_index, b.batch) for b in (first, second)]
        outputs = 1 if dataset in graph_qat.NUMBERS else 2
        features = chosen[0].num_features
        yield Workload(
            f"{dataset} GIN",
            lambda f=features, o=outputs: graph_qat.GraphGIN(f, o),
            (calls[0], first.y, slice(None)),
            calls[1],
            graph_qat.GraphGIN.FLOAT,
        )


def _measure(workload: Workload, bits: int, epochs: int, budget: float) -> Row:
    simulation = _trained(workload, "DQ", bits, epochs)
    integers = gnnfx.convert(simulation)
    before = _trained(workload, "PTQ", bits, epochs)
    call = workload.compared
    after = qat.executed(before, "PTQ", bits, workload.build, [workload.training[0]], workload.skip)
    wanted = _simulated_codes(simulation, call)
    alone, plain = _differences(integers, call, wanted), _differences(integers, call, wanted, False)
    with torch.no_grad():
        times = interleaved_seconds(
            {"trained": lambda: integers(*call), "after": lambda: after(*call)}, budget=budget
        )
    return Row(
        workload.name,
        bits,
        len(alone),
        len(wanted),
        sum(difference.numel() for difference in alone.values()),
        sum(int((difference != 0).sum()) for difference in alone.values()),
        max(int(difference.max()) for difference in alone.values()),
        sum(int((difference != 0).sum()) for difference in plain.values()),
        Spread.of(times["trained"]),
        Spread.of([a / b for a, b in zip(times["trained"], times["after"], strict=True)]),
    )


def _trained(workload: Workload, method: qat.Method, bits: int, epochs: int) -> PreparedModule:
    """The module in eval mode after some epochs of full batches."""
    torch.manual_seed(0)
    call, labels, chosen = workload.training
    policy = replace(qat.policy(method, bits), skip=workload.skip)
    module = gnnfx.prepare(workload.build(), policy, call).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
    for _ in range(epochs):
        out = module(*call)[chosen]
        wanted = labels[chosen]
        numbers = wanted.is_floating_point()
        loss = functional.mse_loss if numbers else functional.cross_entropy
        optimizer.zero_grad()
        loss(out.view_as(wanted) if numbers else out, wanted).backward()
        optimizer.step()
    return module.eval()


def _simulated_codes(simulation: PreparedModule, call: tuple[Any, ...]) -> dict[str, Tensor]:
    """The codes of each rounding site of the simulation, int8 [rows, C]."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, quantizer in simulation.quantizers().items():

        def keep(module: Any, args: Any, out: Tensor, name: str = name) -> None:
            scale, zero_point = module.qparams()
            found[name] = (out / scale).round().add(zero_point).to(torch.int8)

        hooks.append(quantizer.register_forward_hook(keep))
    with torch.no_grad():
        simulation(*call)
    for hook in hooks:
        hook.remove()
    return found


def _differences(
    module: OptimizedModule, call: tuple[Any, ...], wanted: dict[str, Tensor], mended: bool = True
) -> dict[str, Tensor]:
    """How far codes are from those wanted, int32 [rows, C], by site of an integer module.

    mended: give what follows a site the codes that are wanted there.
    """
    program, inputs = module.parts(*call)[1]
    comparison = _Comparison(program, wanted, mended)
    with torch.no_grad():
        comparison.run(*inputs)
    return comparison.differences


class _Comparison(fx.Interpreter):
    """Runs the feature part, and compares what is written with a scale by the site of the scale."""

    def __init__(self, program: fx.GraphModule, wanted: dict[str, Tensor], mended: bool) -> None:
        super().__init__(program)
        self.differences: dict[str, Tensor] = {}
        self._wanted = wanted
        self._mended = mended

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if not isinstance(n.target, torch._ops.OpOverload) or not isinstance(result, Tensor):
            return result
        names = [argument.name for argument in n.target._schema.arguments]
        given: dict[str, Any] = dict(zip(names, n.args, strict=False)) | n.kwargs
        quantizes = n.target is torch.ops.gnnfx.quantize.default
        scale = given.get("scale" if quantizes else "out_scale")
        if not isinstance(scale, fx.Node):
            return result
        bits = given.get("bits" if quantizes else "out_bits", 8)
        site = str(scale.target).replace(".", "_").removesuffix("_scale")
        if (wanted := self._wanted.get(site)) is None:
            return result
        # What is packed into bytes has room for channels that there are none of.
        codes = unpack(result, result.shape[-1] * (8 // bits), bits).clone()
        channels = wanted.shape[1]
        self.differences[site] = (codes[:, :channels].int() - wanted.int()).abs()
        if not self._mended:
            return result
        codes[:, :channels] = wanted
        return pack(codes, bits)


def _table(rows: list[Row]) -> Table:
    table = Table(title="converted modules: codes beside the simulation's, and time of a call")
    table.add_column("workload", no_wrap=True)
    columns = "bits", "sites", "codes", "ties", "by", "different", "ms", "to after training"
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.workload,
            str(row.bits),
            f"{row.sites} of {row.of_sites}",
            f"{row.codes:,}",
            f"{row.ties:,}",
            str(row.most),
            f"{row.different:,}",
            f"{1e3 * row.seconds.median:.2f}",
            f"{row.ratio.median:.2f} ({row.ratio.q1:.2f}-{row.ratio.q3:.2f})",
        )
    return table


if __name__ == "__main__":
    main()
