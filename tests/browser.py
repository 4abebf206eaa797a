"""A real browser for tests: Qt WebEngine's Chromium, off screen, in a process of its own.

The process reads one JSON command a line and answers each with one line; the mouse and the
keyboard are Qt's, so that pages see the events of a person.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FLAGS = "--no-sandbox --disable-gpu --disable-dev-shm-usage"


class Browser:
    """The test's end of the pipe; `js` evaluates an expression, which must be JSON."""

    def __init__(self, width: int = 1500, height: int = 950, scheme: str = "light") -> None:
        dark = " --blink-settings=preferredColorScheme=0" if scheme == "dark" else ""
        flags = _FLAGS + dark
        env = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": flags}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(width), str(height), scheme],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )

    def _ask(self, command: str, *args: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, *args]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the browser ended during {command!r}"
        return json.loads(answer)

    def load(self, page: Path) -> bool:
        return bool(self._ask("load", str(page.resolve())))

    def js(self, expression: str) -> Any:
        return json.loads(self._ask("js", f"JSON.stringify({expression})") or "null")

    def move(self, selector: str) -> None:
        """Put the mouse on the middle of the first element that `selector` finds."""
        self._ask("move", *self._middle(selector))

    def click(self, selector: str) -> None:
        self._ask("click", *self._middle(selector))

    def press(self, *keys: str) -> None:
        """Press keys: single characters, or names of Qt keys such as 'Right'."""
        for key in keys:
            self._ask("press", key)

    def shoot(self, file: Path) -> None:
        """Write what is shown to a PNG file."""
        assert self._ask("shoot", str(file))

    def messages(self) -> list[str]:
        """What the page wrote to the console, errors included."""
        return list(self._ask("messages"))

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return list(self._ask("requests"))

    def close(self) -> None:
        # Closing the command pipe ends the process; communicate closes both ends here too.
        self._process.communicate(timeout=20)

    def _middle(self, selector: str) -> list[float]:
        quoted = json.dumps(selector)
        point = self.js(
            f"(() => {{ const r = document.querySelector({quoted})?.getBoundingClientRect();"
            " return r && [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        assert point is not None, f"nothing on the page is {selector}"
        return list(point)


def _serve(width: int, height: int, scheme: str) -> None:
    from PyQt6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl
    from PyQt6.QtTest import QTest
    from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    messages: list[str] = []
    requests: list[str] = []

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: Any, text: Any, line: int, source: Any) -> None:
            messages.append(f"{text} (line {line})")

    class Interceptor(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: Any) -> None:
            requests.append(info.requestUrl().toString())

    app = QApplication(["browser"])
    app.styleHints().setColorScheme(
        Qt.ColorScheme.Dark if scheme == "dark" else Qt.ColorScheme.Light
    )
    view, interceptor = QWebEngineView(), Interceptor()
    page = Page(view)
    page.setUrlRequestInterceptor(interceptor)
    view.setPage(page)
    view.resize(width, height)
    view.show()

    def wait(milliseconds: int) -> None:
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()

    def answer(start: Callable[[Callable[[Any], None]], object]) -> Any:
        """What `start` hands to the function it is given, now or later."""
        loop, answers = QEventLoop(), list[Any]()

        def take(value: Any) -> None:
            answers.append(value)
            loop.quit()

        start(take)
        if not answers:
            loop.exec()
        return answers[0]

    def load(path: str) -> bool:
        page.load(QUrl.fromLocalFile(path))
        loaded = bool(answer(page.loadFinished.connect))
        wait(200)
        view.focusProxy().setFocus()
        return loaded

    def js(expression: str) -> Any:
        return answer(lambda take: page.runJavaScript(expression, take))

    def move(x: float, y: float) -> None:
        QTest.mouseMove(view.focusProxy(), QPoint(int(x), int(y)))
        wait(120)

    def click(x: float, y: float) -> None:
        move(x, y)
        point = QPoint(int(x), int(y))
        QTest.mouseClick(view.focusProxy(), Qt.MouseButton.LeftButton, pos=point)
        wait(120)

    def press(key: str) -> None:
        named = getattr(Qt.Key, f"Key_{key}", None) if len(key) > 1 else None
        if named is None:
            QTest.keyClicks(view.focusProxy(), key)
        else:
            QTest.keyClick(view.focusProxy(), named)
        wait(80)

    def shoot(path: str) -> bool:
        wait(400)
        return bool(view.grab().save(path))

    commands: dict[str, Callable[..., Any]] = {
        "load": load,
        "js": js,
        "move": move,
        "click": click,
        "press": press,
        "shoot": shoot,
        "messages": lambda: messages,
        "requests": lambda: requests,
    }
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(json.dumps(commands[name](*args)), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    # Qt's own teardown order is not defined for a page that is still open.
    os._exit(0)
