"""Progress of long operations on a terminal, and silence on a pipe.

``pull``, ``load`` and ``run`` hand the callback to the engine. Bars go to standard error, so that standard output holds results and nothing
else. rich is imported only when there is a terminal to draw on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bulle.registry.progress import Progress


@contextmanager
def progress_on_terminal(*, enabled: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """A callback that draws one bar per layer, or None where nobody watches."""
    if not enabled or not os.isatty(2):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
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
    tasks: dict[str, int] = {}

    def report(step: Progress) -> None:
        thing = step.id.rpartition(":")[2][:12]
        if step.id not in tasks:
            tasks[step.id] = int(bars.add_task(step.kind, total=step.total or None, thing=thing))
        bars.update(tasks[step.id], description=step.kind, completed=step.current, total=step.total or None)  # type: ignore[arg-type]

    with bars:
        yield report
