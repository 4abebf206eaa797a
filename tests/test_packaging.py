"""The package holds what the folders hold, and nothing that belongs to one machine."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"build", "dist", "__pycache__"}
MACHINE_PATHS = tuple(f"/{name}/" for name in ("work", "opt", "root", "home", "Users"))
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted"),
        ("download", "pytorch"),
        ("data", "pyg"),
        ("data", "dgl"),
        ("anaconda", "org"),
    )
)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def text_files() -> list[Path]:
    """The files of the checkout: git's list where there is one, else all that are not built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = [ROOT / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [path for path in ROOT.rglob("*") if not _built(path.relative_to(ROOT))]
    return [path for path in names if path.is_file() and path.suffix not in {".png", ".pt"}]


def _built(path: Path) -> bool:
    return any(
        part in SKIPPED or part.endswith(".egg-info") or (part.startswith(".") and part != ".ci")
        for part in path.parts
    )


def test_every_package_is_listed() -> None:
    tool = project()["tool"]["setuptools"]
    folders = tool["package-dir"]
    expected = set()
    for package, folder in folders.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            expected.add(".".join([package, *inner]))
    assert set(tool["packages"]) == expected


def test_every_file_that_is_not_python_is_listed() -> None:
    files = {path.name for path in (ROOT / "gnnfx").glob("*.*") if path.suffix != ".py"}
    assert set(project()["tool"]["setuptools"]["package-data"]["gnnfx"]) == files


@pytest.mark.parametrize("folder", ["passes", "kernels"])
def test_folders_are_flat(folder: str) -> None:
    assert [path for path in (ROOT / folder).rglob("*.py") if path.parent != ROOT / folder] == []


@pytest.mark.parametrize("folder", ["passes", "kernels"])
def test_folder_is_no_top_level_package(folder: str) -> None:
    with pytest.raises(ImportError, match=rf"this folder is the package gnnfx\.{folder}"):
        runpy.run_path(str(ROOT / folder / "__init__.py"), run_name=folder)


def test_names_no_machine_and_no_registry() -> None:
    found = []
    for path in text_files():
        text = path.read_text(errors="replace")
        found += [
            f"{path.relative_to(ROOT)}: {word}"
            for word in (*MACHINE_PATHS, *REGISTRY_HOSTS)
            if word in text
        ]
    assert found == []


def test_the_list_of_files_is_not_empty() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in text_files()}
    assert {"pyproject.toml", "README.md", "gnnfx/errors.py", "kernels/__init__.py"} <= names


def test_version_is_the_newest_in_the_changelog() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == project()["project"]["version"] == version("gnnfx")


def test_every_direct_dependency_is_constrained() -> None:
    table = project()["project"]
    extras = table["optional-dependencies"].values()
    wanted = [*table["dependencies"], *(item for extra in extras for item in extra)]
    names = {re.split(r"[^\w.-]", item)[0] for item in wanted} - {"gnnfx"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    assert names - pinned == set()


def test_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="gnnfx")
    assert command.value == "gnnfx.cli:app"
