"""Modules import only from lower layers.  Imports are read with `ast`, inside functions too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"gnnfx": "gnnfx", "passes": "gnnfx.passes", "kernels": "gnnfx.kernels"}

# Lowest first.  A row holds packages and modules that know nothing of each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("gnnfx.errors", "gnnfx.agreement", "gnnfx.heap"),
    ("gnnfx.noise", "gnnfx.ranks", "gnnfx.tasks", "gnnfx.trials", "gnnfx.tuned"),
    ("gnnfx.figures",),
    ("gnnfx.ir", "gnnfx.artifact_file", "gnnfx.model_file", "gnnfx.shown_errors"),
    ("gnnfx.training_policy", "gnnfx.graph_cache", "gnnfx.checkpoints"),
    ("gnnfx.policy",),
    ("gnnfx.observers", "gnnfx.pruning"),
    ("gnnfx.kernels",),
    ("gnnfx.measure", "gnnfx.pass_manager", "gnnfx.ranges"),
    ("gnnfx.fake_quantize",),
    ("gnnfx.passes",),
    ("gnnfx.frontend", "gnnfx.report", "gnnfx.calibrate", "gnnfx.rounding"),
    ("gnnfx.backend",),
    ("gnnfx.pipeline", "gnnfx.artifact", "gnnfx.verify_outputs"),
    ("gnnfx.fallback", "gnnfx.tune"),
    ("gnnfx.api", "gnnfx.compression_report", "gnnfx.compiled_graph"),
    ("gnnfx.dynamo", "gnnfx.prepare", "gnnfx.finetune", "gnnfx.history"),
    ("gnnfx.bisect", "gnnfx.html", "gnnfx.pruner"),
    ("gnnfx.compress",),
    ("gnnfx",),
    ("gnnfx.demo", "gnnfx.artifact_commands", "gnnfx.dump"),
    ("gnnfx.qat",),
    ("gnnfx.graph_qat", "gnnfx.compress_commands"),
    ("gnnfx.cli",),
)
RANK = {package: rank for rank, row in enumerate(LAYERS) for package in row}


def modules() -> dict[str, Path]:
    """Every module of the project under the name that it is imported by."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join([package, *parts])] = path
    return found


MODULES = modules()


def layer(module: str) -> str | None:
    """The entry of LAYERS that `module` belongs to, or None if it is in no layer."""
    if module == "gnnfx":
        return module
    package = ".".join(module.split(".")[:2])
    return package if package in RANK else None


def imports(source: str, known: set[str]) -> set[str]:
    """The modules of gnnfx that `source` imports."""
    found: set[str] = set()
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                full = f"{statement.module}.{alias.name}"
                found.add(full if full in known else statement.module)
    return {name for name in found if name == "gnnfx" or name.startswith("gnnfx.")}


def upward(module: str, source: str, known: set[str]) -> list[str]:
    """What `module` imports although it is not in a lower layer or in its own package."""
    own = layer(module)
    assert own is not None, f"{module} is in no layer: add it to LAYERS"
    wrong = []
    for name in sorted(imports(source, known)):
        other = layer(name)
        assert other is not None, f"{module} imports {name}, which is in no layer"
        if other != own and RANK[other] >= RANK[own]:
            wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_downwards(module: str) -> None:
    assert upward(module, MODULES[module].read_text(), set(MODULES)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("gnnfx.ir.types", "import gnnfx.passes", id="import"),
        pytest.param("gnnfx.kernels.linear", "from gnnfx.api import optimize", id="from"),
        pytest.param("gnnfx.report", "from gnnfx import api", id="from-package"),
        pytest.param("gnnfx.report", "from gnnfx import optimize", id="name-of-the-package"),
        pytest.param("gnnfx.policy", "def f():\n    import gnnfx.report", id="in-a-function"),
        pytest.param("gnnfx.frontend.trace", "import gnnfx.report", id="same-layer"),
    ],
)
def test_an_upward_import_is_seen(module: str, source: str) -> None:
    assert len(upward(module, source, {"gnnfx.api"})) == 1


@pytest.mark.parametrize("source", ["import gnnfx.unheard_of", "from gnnfx.unheard_of import x"])
def test_an_unknown_module_fails(source: str) -> None:
    with pytest.raises(AssertionError, match=r"gnnfx\.unheard_of, which is in no layer"):
        upward("gnnfx.cli", source, set())


def test_own_package_and_lower_layers_are_allowed() -> None:
    source = "import gnnfx.passes.fuse\nfrom gnnfx.ir import Program\nimport torch"
    assert upward("gnnfx.passes.fold", source, set()) == []
