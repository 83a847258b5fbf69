"""Progress of long operations on a terminal, and silence on a pipe.

``pull``, ``load`` and ``run`` hand the callback to the engine. Bars go to standard error, so that standard output holds results and nothing
else. rich is imported only when there is a terminal to draw on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bulle.cli.session import printable

if TYPE_CHECKING:
    from bulle.registry.progress import Progress


@contextmanager
def progress_on_terminal(*, enabled: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """A callback that draws one bar per layer, or None where nobody watches."""
    if not enabled or not os.isatty(2):
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.fields[thing]}"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(step: Progress) -> None:
        text = printable(step.message or step.kind)
        if step.id not in tasks:
            thing = step.id.removeprefix("sha256:")[:12] if step.id.startswith("sha256:") else printable(step.id)
            tasks[step.id] = bars.add_task(text, total=step.total or None, thing=escape(thing))
        bars.update(tasks[step.id], description=escape(text), completed=step.current, total=step.total or None)

    with bars:
        yield report
