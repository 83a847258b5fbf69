"""A container in the foreground: the command's own process is its monitor, so that starting one takes a process and a conversation less.

Only a child of the spawner does this: its leash makes sure that a container goes on when its command is killed, with a monitor of the ordinary kind
(which ``--recover`` starts), as it also does when the user detaches. From outside nothing differs: the same files, the same socket for others to
attach.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from bulle.engine import removal, supervisor
from bulle.engine.ending import is_removed, record_end
from bulle.engine.events import publish_volumes
from bulle.engine.starting import Order, Watch, begin
from bulle.monitor import Outcome
from bulle.monitor.frames import event
from bulle.monitor.local import LocalStreams
from bulle.monitor.supervisor import Detached, exit_code
from bulle.records.database import Database
from bulle.records.events import publish_container
from bulle.spawner import child
from bulle.spawner.leash import Leash


class Foreground:
    """A running container whose monitor is this process; used as :class:`bulle.monitor.Attachment` is."""

    def __init__(self, order: Order, database: Database, leash: Leash) -> None:
        """Start the container. Raises BulleError; then nothing is left but what a failed start leaves."""
        self._order = order
        self._database = database
        self._leash = leash
        leash.recover_as("monitor", [msgspec.json.encode(order).decode()])
        try:
            self._watch: Watch | None = begin(order, leash)
        except BaseException:
            leash.release()
            raise
        self._supervisor = self._watch.supervisor()
        self._supervisor.input_ended = leash.drop
        self.notes = tuple(self._watch.workload.notes)

    def pump(self, stdin_fd: int, stdout_fd: int, stderr_fd: int, detach_keys: bytes = b"") -> Outcome:
        """Be the monitor until the container ends or the keys are typed; descriptors of the caller, -1 for none."""
        watch = self._watch
        assert watch is not None
        local = self._supervisor.local = LocalStreams(stdin_fd, stdout_fd, stderr_fd, detach_keys)
        try:
            status = self._supervisor.run()
        except Detached:
            self.close()
            return Outcome(None, True)
        except BaseException:
            self.close()
            raise
        self._watch = None
        status, machine = watch.driver.end_of(self._order.plan, status)
        code = exit_code(status)
        removed = is_removed(self._order)
        finish = event("exited", exit_code=code, kept=not removed)
        if removed:
            publish_container(self._order.plan.state_host_path, "die", exitCode=str(code))
            publish_volumes(self._order.plan, "unmount")
            removal.forget(self._database, self._order.plan, volumes=True)
            child.afterwards.append(lambda: self._clean_up(watch, finish))
        else:
            again = record_end(self._order, watch.driver, self._supervisor, status, machine=machine) is not None
            child.afterwards.append(lambda: self._give_away(watch, finish) if again else self._finish(finish))
        local.close()
        return Outcome(code)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the container's terminal its new size."""
        if self._watch is not None:
            with suppress(OSError):
                self._supervisor.resize(rows, columns)

    def close(self) -> None:
        """Leave a container that still runs to a monitor of its own; nothing where it has ended."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        self._supervisor.close_log()
        os.close(watch.lock)
        supervisor.hand_over(self._order, self._supervisor.kept)
        self._leash.release()

    def _finish(self, finish: bytes) -> None:
        self._supervisor.finish_clients(finish)
        self._leash.release()

    def _give_away(self, watch: Watch, finish: bytes) -> None:
        """It got a restart policy meanwhile (``update``): a monitor starts it again."""
        self._supervisor.finish_clients(finish)
        os.close(watch.lock)
        supervisor.hand_over(self._order, [])
        self._leash.release()

    def _clean_up(self, watch: Watch, finish: bytes) -> None:
        watch.driver.clean_up(self._order.plan)
        removal.remove_directory(self._order.plan)
        self._finish(finish)
