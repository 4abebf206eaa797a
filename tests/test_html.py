"""The page: what it is told, that it stands alone, and what it does in a real browser."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gnnfx.kernels  # noqa: F401  (registers the ops)
from gnnfx.history import Step, record
from gnnfx.html import page
from gnnfx.ir.text import dump, parse
from gnnfx.pass_manager import Numerics, Remark
from tests.browser import Browser
from tests.models import graph, make

BEFORE = """\
program sums(x: f32[N, 8], edge_index: i64[2, E])
  w: f32[4, 8] = param('convs.0.lin.weight')
  src: i64[E] = aten.select.int(edge_index, 0, 0)  # convs.0
  dst: i64[E] = aten.select.int(edge_index, 0, 1)  # convs.0
  h: f32[N, 4] = linear(x, w)  # convs.0.lin
  m: f32[E, 4] = gather(h, src)  # convs.0
  y: f32[E, 4] = aten.relu.default(m)  # convs.0
  return y
"""
AFTER = BEFORE.replace("aten.relu.default(m)", "aten.neg.default(m)").replace(
    "  return y", "  z: f32[E, 4] = aten.add.Tensor(y, y)\n  return z"
)


def steps(*texts: str) -> list[Step]:
    """One step for each text; equal texts are one program."""
    programs = {text: parse(text) for text in texts}
    remark = Remark("pass1", "convs.0", "y", "</script> & <b>kept</b>", done=False)
    return [
        Step(f"pass{n}", Numerics.EXACT, programs[text], (remark,) if n == 1 else ())
        for n, text in enumerate(texts)
    ]


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    result: dict[str, Any] = json.loads(found[1])
    return result


def test_every_program_can_be_read_back_from_the_page() -> None:
    history = record(make("gcn"), "int8", graph(30, 90))
    told = data(page(history.steps))
    for step, shown in zip(history.steps, told["steps"], strict=True):
        instrs = [told["instrs"][n] for n in told["programs"][shown["program"]]]
        lines = [f"  {i['text']}" for i in instrs if i["op"] != "input"]
        assert lines == dump(step.program).splitlines()[1:]
        assert shown["label"] == step.label


def test_what_passes_do_not_change_is_stored_once() -> None:
    told = data(page(steps(BEFORE, BEFORE, AFTER, BEFORE)))
    assert [s["program"] for s in told["steps"]] == [0, 0, 1, 0]
    lines = len(BEFORE.splitlines()) + 1  # the two inputs have one line in the text
    # relu became neg, add is new, and the return reads z
    assert len(told["instrs"]) == lines + 3


def test_instructions_say_what_they_read_and_cost() -> None:
    told = data(page(steps(BEFORE)))
    linear = next(i for i in told["instrs"] if i["name"] == "h")
    assert linear["reads"] == [["x", "x"], ["w", "weight"]]
    assert linear["cost"] == ["64*N", "48*N + 128"]
    assert linear["args"] == [["activation", "none"]]
    assert (linear["domain"], linear["module"]) == ("node", "convs.0.lin")
    assert [i["name"] for i in told["instrs"] if i["structural"]] == ["edge_index", "src", "dst"]


def test_no_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="steps is empty"):
        page([])


def test_asks_for_nothing_from_outside() -> None:
    text = page(steps(BEFORE))
    assert re.findall(r"https?:|//[\w-]+\.\w|@import|url\(|<link|src=", text) == []


@pytest.fixture(params=["light", "dark"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    if importlib.util.find_spec("PyQt6") is None:
        pytest.skip("no browser: PyQt6-WebEngine is not installed")
    opened = Browser(scheme=request.param)
    yield opened
    opened.close()


def count(browser: Browser, selector: str) -> int:
    return int(browser.js(f"document.querySelectorAll({json.dumps(selector)}).length"))


def text(browser: Browser, selector: str) -> str:
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).textContent"))


def open_page(browser: Browser, tmp_path: Path, shown: list[Step]) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(shown), encoding="utf-8")
    assert browser.load(file)


def test_a_person_can_look_at_two_passes(browser: Browser, tmp_path: Path) -> None:
    open_page(browser, tmp_path, steps(BEFORE, BEFORE, AFTER))
    assert text(browser, "#label") == "pass2"
    assert [browser.js(f"diffs[{n}].added.size") for n in range(3)] == [0, 0, 1]
    assert count(browser, ".node.added") == 1
    assert count(browser, ".node.changed") == 2, "neg and return"

    browser.click("#slider")  # the middle of it
    assert text(browser, "#label") == "pass1"
    assert count(browser, ".node.added, .node.changed") == 0
    assert count(browser, "[data-name=z]") == 0
    assert "left: convs.0 </script> & <b>kept</b>" in text(browser, "#remarks")

    browser.click("#steps li:last-child")
    browser.move(".node[data-name=h]")
    tip = text(browser, "#tip")
    for fact in ("linear", "f32[N, 4]", "convs.0.lin", "64*N", "weight", "made by"):
        assert fact in tip
    assert count(browser, "#routes path") >= 2
    browser.click(".node[data-name=h]")
    assert count(browser, ".node.pinned") == 1
    assert text(browser, "#text .pinned").startswith("h: f32[N, 4] = linear(x, w)")
    assert "convs.0.lin" in text(browser, "#card")

    browser.press("/", "g", "a", "t", "h", "Return")
    assert text(browser, "#count") == "1 of 1"
    assert browser.js("state.pinned") == "m"
    browser.press("Escape")
    assert count(browser, ".node.pinned, .node.found") == 0

    before = count(browser, ".node")
    browser.click('[data-fold="feature/convs.0"]')
    assert count(browser, ".group.closed") == 1
    assert count(browser, ".node") == before - 3, "linear, gather and neg are in the box"
    browser.click('[data-fold="feature/convs.0"]')
    assert count(browser, ".node") == before
    assert browser.messages() == []
    assert [url for url in browser.requests() if not url.startswith("file:")] == []


def test_keys_alone_are_enough(browser: Browser, tmp_path: Path) -> None:
    open_page(browser, tmp_path, steps(BEFORE, AFTER))
    browser.press("Left")
    assert text(browser, "#label") == "pass0"
    browser.press("Right", "j", "j")
    assert browser.js("state.pinned") == browser.js("programAt(1).instrs[1].name")
    browser.press("/", "n", "e", "g", "Return")
    browser.js("document.activeElement.blur()")
    assert browser.js("state.pinned") == "y"
    browser.press("Up")
    assert browser.js("state.pinned") == "m"
    browser.press("Down")
    assert browser.js("state.pinned") == "y"
    browser.press("c")
    assert count(browser, ".group.closed") == 1
    browser.press("a")
    assert count(browser, ".group.closed") == 0
    nodes = count(browser, ".node")
    browser.press("p")
    assert count(browser, ".node") == nodes + 1, "the weight"
    scale = browser.js("state.k")
    browser.press("+")
    assert browser.js("state.k") > scale
    browser.press("f", "t")
    assert browser.js("document.body.classList.contains('wide')")
    browser.press("?")
    assert browser.js("document.getElementById('keys').open")
    browser.press("Escape")
    assert not browser.js("document.getElementById('keys').open")
    assert browser.messages() == []


OVERLAPS = """
(() => {
  const boxes = [...scene.where.values()].filter((p) => !p.item.items);
  let overlaps = 0, crossed = 0;
  for (const a of boxes) for (const b of boxes) {
    if (a !== b && a.x < b.x + b.item.w && b.x < a.x + a.item.w
        && a.y < b.y + b.item.h && b.y < a.y + a.item.h) overlaps += 1;
  }
  for (const path of document.querySelectorAll(".wire")) {
    const [dx, dy] = path.getAttribute("transform").match(/-?[\\d.]+/g).map(Number);
    const length = path.getTotalLength();
    for (let at = 0; at <= length; at += 5) {
      const p = path.getPointAtLength(at), x = p.x + dx, y = p.y + dy;
      for (const b of boxes) {
        if (x > b.x + 1 && x < b.x + b.item.w - 1 && y > b.y + 1 && y < b.y + b.item.h - 1) {
          crossed += 1;
        }
      }
    }
  }
  return [boxes.length, overlaps, crossed];
})()
"""


@pytest.mark.parametrize("name", ["gcn", "gat", "gcn-norm-jk"])
def test_no_box_lies_on_another_and_no_wire_on_a_box(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    open_page(browser, tmp_path, list(record(make(name), "int8", graph(30, 90)).steps))
    browser.js("state.closed.clear()")
    for label in ("trace", "fuse-aggregate", "fuse-epilogue#3"):
        browser.js(f"go(DATA.steps.findIndex((s) => s.label === {label!r}))")
        drawn, overlaps, crossed = browser.js(OVERLAPS)
        assert drawn > 20
        assert (overlaps, crossed) == (0, 0), f"after {label}"
    assert browser.messages() == []
