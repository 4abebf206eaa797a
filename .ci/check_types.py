"""Run mypy, strict, over the view; then prove that it sees `passes/` and `kernels/`.

A type checker that silently skips a folder says *success*.  So one file with a known error is put
into each of the two folders, and mypy must report exactly those errors.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KNOWN_BAD = 'number: int = "text"\n'
PROBE = "known_bad_probe.py"


def mypy() -> tuple[int, str]:
    """Exit code and output of one run; its settings are in pyproject.toml."""
    found = subprocess.run(
        [sys.executable, "-m", "mypy"], capture_output=True, text=True, check=False
    )
    return found.returncode, found.stdout + found.stderr


def main() -> int:
    """Zero if the code is clean and the known errors were seen."""
    code, output = mypy()
    print(output, end="")
    if code:
        return code
    probes = [Path(folder, PROBE) for folder in ("passes", "kernels")]
    try:
        for probe in probes:
            probe.write_text(KNOWN_BAD)
        _, output = mypy()
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)
    unseen = [probe for probe in probes if f"{probe.parent.name}/{PROBE}:1: error" not in output]
    for probe in unseen:
        print(f"mypy did not see the known error in {probe}")
    if not unseen:
        print("mypy sees passes/ and kernels/: the known errors there were reported")
    return len(unseen)


if __name__ == "__main__":
    sys.exit(main())
