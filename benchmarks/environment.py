"""Where results are kept, and what a reader needs to know of a machine to repeat a number."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
TABLE_WIDTH = 128
PACKAGES = ("gnnfx", "torch", "torch-geometric", "numba", "numpy", "dgl", "tinygnn", "triton")


def environment(device: str = "cpu") -> dict[str, Any]:
    """Device, threads and versions."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Write JSON so that a run that is stopped leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
