"""Optimize every layer and model that PyG's own tests call, and compare with eager PyG.

    git clone --depth 1 https://github.com/pyg-team/pytorch_geometric
    python benchmarks/conformance.py pytorch_geometric/test/nn

Runs PyG's test files for convolutions, models, aggregations and pooling, and catches every
outermost call of a `torch_geometric.nn` module.  A call counts if its module, in eval mode, maps
tensors to tensors and does so twice alike.  Each one goes through `gnnfx.optimize(module, "fp32")`
with the arguments of the call as its example, and what comes out is compared with eager PyG.
Layers that cache their first graph are compared without a cache: `optimize` never answers for one
graph with what it knows of another.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

import gnnfx

_SETTLED = ("optimized", "not counted")
FOLDERS = ("conv", "models", "aggr", "pool")
RTOL = 1e-4


class Catcher:
    """A pytest plugin that tries `optimize` on every outermost module call of a test."""

    def __init__(self, results: Path, per_class: int, earlier: list[dict[str, Any]]) -> None:
        self.results = results
        self.per_class = per_class
        self.configurations: Counter[str] = Counter()
        self.test = ""
        self.depth = 0
        self.known = {r["configuration"]: r for r in earlier if r["outcome"] in _SETTLED}
        self.call = nn.Module.__call__

    def pytest_configure(self) -> None:
        catcher, call = self, self.call

        def caught(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = type(module).__module__
            counts = catcher.depth == 0 and catcher.test and name.startswith("torch_geometric.nn")
            with catcher.inside():
                if counts and _is_lazy(module):
                    _draw_parameters(module, args, kwargs)
                if counts and not _is_lazy(module):
                    catcher.record(module, args, kwargs)
                return call(module, *args, **kwargs)

        nn.Module.__call__ = caught  # type: ignore[method-assign]

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self.test = item.nodeid
        try:
            return (yield)
        finally:
            self.test = ""

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = _spec((args, kwargs))
        key = sha256(f"{_configuration(module)} {inputs}".encode()).hexdigest()[:16]
        row = self.known.get(key)
        if row is None:
            self.configurations[type(module).__name__] += 1
            if self.configurations[type(module).__name__] > self.per_class:
                return
            state = torch.get_rng_state()
            row = {"class": type(module).__name__, "call": inputs, "configuration": key}
            row |= attempt(module, args, kwargs)
            torch.set_rng_state(state)
            self.known[key] = row
        with self.results.open("a") as file:
            file.write(json.dumps(row | {"test": self.test}) + "\n")


def _is_lazy(module: nn.Module) -> bool:
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


def _draw_parameters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give a module that was made without the sizes of its inputs the parameters of this call."""
    state = torch.get_rng_state()
    given_args, given_kwargs = _copy((args, kwargs))
    with contextlib.suppress(Exception), torch.no_grad():  # the test's own call says what is wrong
        module(*given_args, **given_kwargs)
    torch.set_rng_state(state)


def attempt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What became of one call: its outcome, the reason, and seconds to compile."""
    try:
        eager = _without_cache(_copy(module).eval())
        given_args, given_kwargs = _copy((args, kwargs))
        with torch.no_grad():
            torch.manual_seed(1)
            first_args, first_kwargs = _copy((args, kwargs))
            expected = _copy(eager)(*first_args, **first_kwargs)
            torch.manual_seed(2)
            second_args, second_kwargs = _copy((args, kwargs))
            again = _copy(eager)(*second_args, **second_kwargs)
    except Exception as error:
        return {"outcome": "not counted", "reason": f"eager raises {_first_line(error)}"}
    if (reason := _not_counted((args, kwargs), expected, again)) is not None:
        return {"outcome": "not counted", "reason": reason}
    start = time.perf_counter()
    try:
        optimized = gnnfx.optimize(eager, "fp32", given_args, example_kwargs=given_kwargs)
        seconds = time.perf_counter() - start
        got = optimized(*args, **kwargs)
    except gnnfx.errors.MismatchError as error:
        return {"outcome": "mismatch", "reason": _first_line(error)}
    except Exception as error:
        return {"outcome": "refused", "reason": _first_line(error)}
    if (difference := _difference(expected, got)) is not None:
        return {"outcome": "mismatch", "reason": difference}
    kept = getattr(optimized.report, "kept", ())
    whole = [reason for path, reason in kept if path == ""]
    outcome = "unoptimized" if whole else "optimized"
    reason = "; ".join(f"{path or '(top)'}: {reason}" for path, reason in kept)
    return {"outcome": outcome, "reason": reason, "seconds": round(seconds, 2)}


def _copy(value: Any) -> Any:
    """A deep copy; tensors that deepcopy refuses (sparse, or with a history) are cloned."""
    tensors: list[Tensor] = [leaf for leaf in pytree.tree_leaves(value) if _is_odd(leaf)]
    if isinstance(value, nn.Module):
        values = [v for module in value.modules() for v in vars(module).values()]
        tensors += [v for v in values if _is_odd(v)]
    return copy.deepcopy(value, {id(t): t.detach().clone() for t in tensors})


def _without_cache(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if getattr(module, "cached", False) is True:
            vars(module).update({n: None for n in vars(module) if n.startswith("_cached_")})
            vars(module)["cached"] = False
    return model


def _is_odd(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.layout != torch.strided or not leaf.is_leaf)


def _not_counted(given: Any, expected: Any, again: Any) -> str | None:
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(given)):
        return "no tensors go in"
    leaves = [leaf for leaf in pytree.tree_leaves(expected) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        return f"not only tensors come out: {kinds}"
    if _difference(expected, again) is not None:
        return "two runs in eval mode differ"
    return None


def _difference(expected: Any, got: Any) -> str | None:
    wanted, found = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    if len(wanted) != len(found):
        return f"{len(found)} outputs, expected {len(wanted)}"
    for number, (want, have) in enumerate(zip(wanted, found, strict=True)):
        if not isinstance(want, Tensor):
            continue
        want, have = _dense(want), _dense(have)
        if want.shape != have.shape or want.dtype != have.dtype:
            return f"output {number} is {_spec(have)}, expected {_spec(want)}"
        if want.numel() and not torch.allclose(
            have.double(), want.double(), rtol=RTOL, atol=RTOL * _scale(want), equal_nan=True
        ):
            worst = (have.double() - want.double()).abs().max()
            return f"output {number} differs by {float(worst):.3g}"
    return None


def _dense(value: Tensor) -> Tensor:
    value = value.detach()
    return value.to_dense() if value.layout != torch.strided else value.as_subclass(Tensor)


def _scale(value: Tensor) -> float:
    finite = value.double().abs()
    finite = finite[finite.isfinite()]
    return float(finite.max()) if finite.numel() else 1.0


def _spec(value: Any) -> str:
    """Types and shapes of arguments, short and stable."""
    if isinstance(value, Tensor):
        kind = "" if type(value) is Tensor else type(value).__name__ + " "
        layout = "" if value.layout == torch.strided else f" {value.layout}"
        return f"{kind}{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{layout}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_spec(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_spec, value)) + ")"
    return repr(value) if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def _configuration(module: nn.Module) -> str:
    """Everything but the values of the weights that tells two modules apart in eval mode."""
    plain = (bool, int, float, str, list, tuple, type(None))
    return "; ".join(
        f"{path} {type(m).__name__} "
        + ", ".join(
            f"{k}={v}"
            for k, v in sorted(vars(m).items())
            if isinstance(v, plain) and k not in ("training", "dropout")
        )
        + ", ".join(f"{k} {_spec(v)}" for k, v in m.named_parameters(recurse=False))
        for path, m in module.named_modules()
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _rows(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def summarize(results: Path, console: Console) -> None:
    rows = _rows(results)
    counted = [r for r in rows if r["outcome"] != "not counted"]
    outcomes = Counter(r["outcome"] for r in counted)
    table = Table(title=f"PyG {torch_geometric.__version__}, torch {torch.__version__}")
    for column in ("outcome", "calls", "share"):
        table.add_column(column, justify="left" if column == "outcome" else "right")
    for outcome, count in outcomes.most_common():
        table.add_row(outcome, str(count), f"{count / len(counted):.1%}")
    table.add_row("counted", str(len(counted)), "")
    table.add_row("not counted", str(len(rows) - len(counted)), "")
    console.print(table)
    reasons = Counter(
        (r["class"], r["outcome"], r["reason"]) for r in counted if r["outcome"] != "optimized"
    )
    for (name, outcome, reason), count in sorted(reasons.items()):
        console.print(f"{count:4d} {outcome} {name}: {reason}", soft_wrap=True, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tests", type=Path, help="PyG's folder test/nn")
    parser.add_argument("--output", type=Path, default=Path("conformance.jsonl"))
    parser.add_argument(
        "--resume", type=Path, nargs="*", default=[], help="outputs whose failures are tried anew"
    )
    parser.add_argument("--per-class", type=int, default=10**9, help="configurations to try")
    parser.add_argument("--only", default="", help="pytest -k expression")
    arguments = parser.parse_args()
    earlier = [row for path in arguments.resume for row in _rows(path)]
    arguments.output.write_text("")
    folders = [str(arguments.tests / folder) for folder in FOLDERS]
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-k", arguments.only]
    catcher = Catcher(arguments.output, arguments.per_class, earlier)
    pytest.main([*folders, *options], plugins=[catcher])
    summarize(arguments.output, Console(width=200))


if __name__ == "__main__":
    main()
