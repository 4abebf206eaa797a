"""Test accuracy of quantized training: float, INT8 and INT4, with and without Degree-Quant.

    python benchmarks/qat.py --root data
    python benchmarks/qat.py --root data --datasets REDDIT-BINARY --bits 8 4
    python benchmarks/qat.py --quick

Each data set, model, method and seed is one run: published splits or ten folds, the epoch selected
on validation, accuracy or error on the test part of the program that runs (integers for every
method but FP32, in all layers but the first of data sets of graphs).  Outcomes are lines of a JSON
file; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from environment import RESULTS, TABLE_WIDTH
from rich.console import Console

from gnnfx import graph_qat, qat
from gnnfx.demo import DATA_ROOT

NODE_DATASETS = ("Cora", "CiteSeer", "PubMed")
MODELS = ("GCN", "GAT", "GIN")


def main() -> None:
    """Parse arguments, run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    datasets = (*NODE_DATASETS, *graph_qat.DATASETS)
    parser.add_argument("--datasets", nargs="+", choices=datasets, default=list(datasets))
    parser.add_argument("--models", nargs="+", choices=qat.MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=qat.METHODS, default=list(qat.EXECUTED))
    parser.add_argument("--bits", nargs="+", type=int, choices=(8, 4, 2), default=[8, 4])
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds or folds, from 0")
    parser.add_argument("--epochs", type=int, default=200, help="most epochs to train")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs and graphs")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS / "qat.jsonl")
    options = parser.parse_args()

    outcomes: list[qat.Outcome] = []
    common = {
        "methods": options.methods,
        "bits": options.bits,
        "epochs": options.epochs,
        "quick": options.quick,
        "root": options.root,
        # Quick runs are of fewer epochs and graphs, and belong in no table of results.
        "out": None if options.quick else options.out,
        "console": Console(stderr=True),
    }
    for dataset in options.datasets:
        if dataset in graph_qat.DATASETS:
            outcomes += graph_qat.run(dataset, folds=options.seeds, **common)
            continue
        for model in options.models:
            outcomes += qat.run(dataset, model, seeds=options.seeds, **common)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(qat.table(outcomes, errors=graph_qat.NUMBERS))
    if not options.quick:
        console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
