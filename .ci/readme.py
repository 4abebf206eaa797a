"""The README as a program: its commands and its python code.

python .ci/readme.py command pytest         print the shell command that contains `pytest`
python .ci/readme.py python FOLDER          write each python block to FOLDER/readme_N.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [body for name, body in BLOCK.findall(README.read_text()) if name == language]


def command(word: str) -> str:
    """The one line of the shell blocks that installs and then ends with `word`."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = [line for line in lines if "pip install" in line and line.endswith(word)]
    if len(found) != 1:
        raise SystemExit(f"expected one install command ending in {word!r}, found {found}")
    return found[0]


def main(action: str, argument: str) -> None:
    """Print a command, or write the python blocks."""
    if action == "command":
        print(command(argument))
        return
    code = blocks("python")
    if not code:
        raise SystemExit("the README has no python block")
    for index, block in enumerate(code, start=1):
        Path(argument, f"readme_{index}.py").write_text(block)


if __name__ == "__main__":
    main(*sys.argv[1:])
