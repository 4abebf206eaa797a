"""Kernels come from disk: a process that finds them compiled does not load Numba's compiler."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

CODE = """
    import json, sys
    import torch, gnnfx
    rows = torch.tensor([3, 0, 3])
    ptr, index, _ = torch.ops.gnnfx.compress(rows, torch.tensor([1, 1, 0]), 4)
    loaded = "numba.np.linalg" in sys.modules
    print(json.dumps({"ptr": ptr.tolist(), "index": index.tolist(), "compiler": loaded}))
"""


def _run(folder: Path) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE)],
        capture_output=True, text=True, check=False, cwd=folder,
        env={"PATH": "", "NUMBA_CACHE_DIR": str(folder)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_a_second_process_loads_machine_code_and_no_compiler(tmp_path: Path) -> None:
    first, second = _run(tmp_path), _run(tmp_path)
    assert first == {"ptr": [0, 1, 3, 3, 3], "index": [3, 3, 0], "compiler": True}
    assert second == first | {"compiler": False}
