"""The progress of a build: one live line for each running step on a terminal, plain lines on a pipe, both on standard error.

The plain form is BuildKit's, which people's eyes and logs know: every step has a number, its output lines begin with it. On a terminal a step that is
done leaves one line; of one that failed the last lines of its output are shown. rich is imported only when there is a terminal to draw on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bulle.cli.human import size
from bulle.cli.session import note, printable

if TYPE_CHECKING:
    from bulle.build.options import BuildEvent, Step

    Report = Callable[[BuildEvent], None]

_KEPT_LINES = 20


@contextmanager
def build_progress(how: str, *, explain: bool) -> Iterator[Report]:
    """The callback for a build; ``how`` is auto, plain, tty or quiet. With ``explain`` a quiet build still says why steps were not cached."""
    if how == "tty" or (how == "auto" and os.isatty(2)):
        with _live() as report:
            yield report
    else:
        yield _Plain(quiet=how == "quiet", explain=explain)


class _Lines:
    """Output cut into lines, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [_line(one) for one in whole]

    def end(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return [_line(rest)] if rest else []


def _line(data: bytes) -> str:
    # What a program draws over itself is shown as it stood at the end.
    return printable(data.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))


class _Plain:
    """Lines for a pipe."""

    def __init__(self, *, quiet: bool, explain: bool) -> None:
        self._quiet = quiet
        self._explain = explain
        self._lock = threading.Lock()
        self._numbers: dict[Step, int] = {}
        self._started: dict[Step, float] = {}
        self._output: dict[Step, _Lines] = {}
        self._kept: dict[Step, list[str]] = {}

    def __call__(self, event: BuildEvent) -> None:
        with self._lock:
            self._show(event)

    def _show(self, event: BuildEvent) -> None:
        step = event.step
        if step is None:
            if event.kind == "warning":
                note(f"WARNING: {printable(event.text)}")
            elif event.kind != "progress" and not self._quiet:
                note(printable(event.text))
            return
        if step not in self._numbers:
            self._numbers[step] = len(self._numbers) + 1
            self._started[step] = time.monotonic()
            self._say(step, title(step))
        if event.explanation and self._explain:
            self._say(step, f"not cached: {printable(event.explanation)}", always=True)
        lines = self._output.setdefault(step, _Lines())
        if event.kind == "output":
            self._lines(step, lines.feed(event.data))
        elif event.kind in ("done", "cached", "failed"):
            self._lines(step, lines.end())
            words = {"done": f"DONE {event.seconds:.1f}s", "cached": "CACHED", "failed": f"ERROR: {printable(event.text)}"}
            self._say(step, words[event.kind])
            if event.kind == "failed" and self._quiet:
                for line in self._kept.get(step, ()):
                    note(line)

    def _lines(self, step: Step, lines: list[str]) -> None:
        passed = time.monotonic() - self._started[step]
        for line in lines:
            self._say(step, f"{passed:.3f} {line}")
            kept = self._kept.setdefault(step, [])
            kept.append(line)
            del kept[:-_KEPT_LINES]

    def _say(self, step: Step, text: str, *, always: bool = False) -> None:
        if always or not self._quiet:
            note(f"#{self._numbers[step]} {text}")


def title(step: Step) -> str:
    """``[stage 2/7] RUN make``."""
    return printable(f"[{step.stage} {step.number}/{step.total}] {step.text}")


@contextmanager
def _live() -> Iterator[Report]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    board = _Board(console, Text)
    with Live(console=console, get_renderable=board.render, refresh_per_second=8, transient=True):
        yield board.report


class _Board:
    """What is running now, each on one line with its time and the last it said."""

    def __init__(self, console: Any, text: Any) -> None:
        self._console = console
        self._text = text
        self._lock = threading.Lock()
        self._running: dict[Step, float] = {}
        self._output: dict[Step, _Lines] = {}
        self._last: dict[Step, list[str]] = {}
        self._transfers: dict[str, tuple[int, int]] = {}

    def render(self) -> Any:
        """The running steps."""
        with self._lock:
            rows = [self._row(step, since) for step, since in self._running.items()]
            rows += [self._text(f"          {_shortened(name)}  {_part(*part)}") for name, part in self._transfers.items()]
        return self._text("\n").join(rows)

    def _row(self, step: Step, since: float) -> Any:
        width = self._console.width
        head = f" {time.monotonic() - since:6.1f}s {title(step)}"
        said = self._last.get(step, [""])[-1:]
        line = head if not said or not said[0] else f"{head[: width * 2 // 3]}  {said[0]}"
        return self._text(line[: width - 1], style="bold")

    def report(self, event: BuildEvent) -> None:
        """One event, from any thread."""
        step = event.step
        if event.kind == "progress":
            with self._lock:
                current, total = event.part
                if total and current < total:
                    self._transfers[event.text] = event.part
                else:
                    self._transfers.pop(event.text, None)
            return
        if step is None:
            style = "yellow" if event.kind == "warning" else ""
            self._print(f"{'WARNING: ' if event.kind == 'warning' else ''}{printable(event.text)}", style)
            return
        with self._lock:
            if event.kind == "started":
                self._running[step] = time.monotonic()
            elif event.kind == "output":
                lines = self._output.setdefault(step, _Lines()).feed(event.data)
                self._last[step] = [*self._last.get(step, ()), *lines][-_KEPT_LINES:]
            elif event.kind in ("done", "cached", "failed"):
                self._running.pop(step, None)
        if event.explanation:
            self._print(f"         {title(step)}: not cached, {printable(event.explanation)}", "dim")
        if event.kind == "cached":
            self._print(f"  cached {title(step)}", "cyan")
        elif event.kind == "done":
            self._print(f" {event.seconds:6.1f}s {title(step)}", "")
        elif event.kind == "failed":
            for line in [*self._last.get(step, ()), *self._output.setdefault(step, _Lines()).end()]:
                self._print(f"         {line}", "")
            self._print(f"  failed {title(step)}", "red")

    def _print(self, text: str, style: str) -> None:
        self._console.print(self._text(text, style=style), soft_wrap=True)


def _shortened(name: str) -> str:
    return name.removeprefix("sha256:")[:12] if name.startswith("sha256:") else printable(name)


def _part(current: int, total: int) -> str:
    return f"{size(current)} of {size(total)}"
