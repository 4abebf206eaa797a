"""assume: a condition that the captured branch of a model rests on, checked at run time."""

from __future__ import annotations

from typing import Any

import torch

from gnnfx.errors import AssumptionError


def assume(condition: Any, text: str) -> None:
    """Raise AssumptionError unless `condition` holds; `text` is the condition in words."""
    if isinstance(condition, torch.SymBool):
        torch._check(condition, lambda: text)
    elif not condition:
        raise AssumptionError(f"the program was captured for graphs with {text}")
