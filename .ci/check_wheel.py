"""Check an installed wheel: its only top-level names are `gnnfx` and its metadata."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path


def main(checkout: str) -> None:
    """Fail unless gnnfx comes from the wheel and brings nothing else along."""
    files = importlib.metadata.files("gnnfx") or []
    tops = {file.parts[0] for file in files if not file.parts[0].startswith("..")}
    info = {name for name in tops if name.startswith("gnnfx-") and name.endswith(".dist-info")}
    if tops != {"gnnfx"} | info or len(info) != 1:
        raise SystemExit(f"the wheel installs {sorted(tops)}; expected gnnfx and its dist-info")
    for name in ("passes", "kernels"):
        if importlib.util.find_spec(name) is not None:
            raise SystemExit(f"a top-level package {name!r} can be imported")
    import gnnfx
    import gnnfx.kernels
    import gnnfx.passes

    for module in (gnnfx, gnnfx.kernels, gnnfx.passes):
        place = Path(str(module.__file__)).resolve()
        if place.is_relative_to(Path(checkout).resolve()):
            raise SystemExit(f"{module.__name__} comes from the checkout: {place}")
    print(f"wheel: {len(files)} files, top-level names {sorted(tops)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
