"""What a container wrote, from wherever its driver keeps it: the files in its directory, the journal, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bulle.errors import Unavailable
from bulle.model.run_plan import RunPlan
from bulle.monitor import LogEntry
from bulle.monitor.log_reading import Choice, Following, printed_attributes, read_log, read_text
from bulle.monitor.logs import timestamp

Text = Iterator[tuple[str, bytes]]


class ContainerLog:
    """The log of one container; ``is_running`` tells whether following it may still bring something."""

    def __init__(self, plan: RunPlan, name: str, is_running: Callable[[], bool]) -> None:
        """Raises Unavailable where nothing is kept."""
        if plan.log.driver == "none":
            raise Unavailable(
                f"container {name} has no log", "it was created with --log-driver none, which keeps nothing", "create it with another log driver"
            )
        self._plan = plan
        self._is_running = is_running

    def entries(self, choice: Choice, *, follow: bool = False) -> Iterator[LogEntry]:
        """Line by line, oldest first."""
        directory = self._plan.state_host_path
        more = Following(directory, self._is_running, choice.until_ns) if follow else None
        try:
            if self._plan.log.driver == "journald":
                from bulle.monitor.journal_reading import read_journal  # only those who have a journal

                yield from read_journal(self._plan.container_id, self._plan.log.fields, choice, self._is_running if follow else None)
            else:
                yield from read_log(directory, choice, more)
        finally:
            if more is not None:
                more.close()

    def text(self, choice: Choice, *, follow: bool = False, timestamps: bool = False, details: bool = False) -> Text:
        """As it is printed, in pieces of one stream; with times and attributes before each line where wanted."""
        if self._plan.log.driver == "journald":
            for entry in self.entries(choice, follow=follow):
                time = f"{timestamp(entry.time_ns)} " if timestamps else ""
                yield entry.stream, (time + (printed_attributes(entry.attributes) + " " if details else "")).encode() + entry.data
            return
        directory = self._plan.state_host_path
        more = Following(directory, self._is_running, choice.until_ns) if follow else None
        try:
            yield from read_text(directory, choice, more, timestamps=timestamps, details=details)
        finally:
            if more is not None:
                more.close()
