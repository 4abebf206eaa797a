"""Make `build/view/gnnfx`: links that show the package as it is imported, for type checkers.

Type checkers cannot follow the import hook of an editable install, so without the view they would
not see `passes/` and `kernels/`.
"""

from __future__ import annotations

from pathlib import Path


def main() -> None:
    """Link every entry of gnnfx/, and passes/ and kernels/, into the view."""
    view = Path("build/view/gnnfx")
    view.mkdir(parents=True, exist_ok=True)
    for old in view.iterdir():
        old.unlink()
    for entry in [*Path("gnnfx").iterdir(), Path("passes"), Path("kernels")]:
        if entry.name != "__pycache__":
            (view / entry.name).symlink_to(entry.resolve())


if __name__ == "__main__":
    main()
