"""Test accuracy of quantized training: float, INT8 and INT4, with and without Degree-Quant.

    python benchmarks/qat.py --root data --out benchmarks/results/qat.json

Each data set, model, method and seed is one run: published splits, the epoch selected on
validation, accuracy on the test nodes of the program that runs (integers for every method but
FP32, in all layers).  A run that was interrupted goes on from its JSON file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from run import RESULTS, TABLE_WIDTH

from gnnfx import qat
from gnnfx.demo import DATA_ROOT

DATASETS = ("Cora", "CiteSeer", "PubMed")
MODELS = ("GCN", "GAT", "GIN")


def main() -> None:
    """Parse arguments, run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=qat.MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=qat.METHODS, default=list(qat.EXECUTED))
    parser.add_argument("--bits", nargs="+", type=int, choices=(8, 4, 2), default=[8, 4])
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=200, help="most epochs to train")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of Planetoid's files")
    parser.add_argument("--out", type=Path, default=RESULTS / "qat.json")
    options = parser.parse_args()

    outcomes: list[qat.Outcome] = []
    for dataset in options.datasets:
        for model in options.models:
            outcomes += qat.run(
                dataset,
                model,
                methods=options.methods,
                bits=options.bits,
                seeds=options.seeds,
                epochs=options.epochs,
                root=options.root,
                out=options.out,
                console=Console(stderr=True),
            )
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(qat.table(outcomes))
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
