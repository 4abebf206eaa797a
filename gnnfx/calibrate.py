"""Run calibration data through a program and observe the marked values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from gnnfx.errors import CalibrationError
from gnnfx.ir.program import Instr, Program
from gnnfx.observers import Observer, Range, bucket_name, make_observer
from gnnfx.policy import Quantize


def calibrate(
    program: Program, samples: Iterable[tuple[Any, ...]], quantize: Quantize
) -> dict[str, Range]:
    """The range of each `observe` instruction of `program`, by its name.

    Of one whose rows are in buckets, the range of each bucket, by `bucket_name`.

    samples: inputs of the program, one tuple a run; at least one run.
    Raises CalibrationError if there are no samples, or a value holds NaN or Inf.
    """
    observers: dict[str, Observer] = {}
    runner = _Recorder(program, observers, quantize)
    count = 0
    for count, sample in enumerate(samples, start=1):
        runner.sample = count - 1
        with torch.no_grad():
            runner.run(*sample)
    if count == 0:
        raise CalibrationError(
            "calibration is empty; expected at least one tuple of forward arguments"
        )
    return {name: observer.range for name, observer in observers.items()}


class _Recorder(fx.Interpreter):
    def __init__(self, program: Program, observers: dict[str, Observer], quantize: Quantize):
        super().__init__(program.module())
        self.observers = observers
        self.quantize = quantize
        self.sample = 0

    def run_node(self, n: fx.Node) -> Any:
        if n.target is not torch.ops.gnnfx.observe.default:
            return super().run_node(n)
        (x, *_), _ = self.fetch_args_kwargs_from_env(n)
        observe = Instr(n)
        name, bucket = observe.args["name"], observe.args["bucket"]
        if x.numel() and bucket is None:
            self._observe(x, observe, name)
        elif x.numel():
            of_row = self.env[bucket.node]
            for number in of_row.unique().tolist():
                self._observe(x[of_row == number], observe, bucket_name(name, number))
        return x

    def _observe(self, x: Tensor, observe: Instr, name: str) -> None:
        module = observe.module
        if not bool(x.isfinite().all()):
            where = f"value {name!r}" + (f" of module {module!r}" if module else "")
            raise CalibrationError(
                f"calibration: {where} holds NaN or Inf in sample {self.sample}; "
                f"expected finite values"
            )
        if name not in self.observers:
            self.observers[name] = make_observer(self.quantize, observe.args["bits"])
        self.observers[name].update(x)
