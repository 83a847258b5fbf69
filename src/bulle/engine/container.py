"""One container as a program sees it: start, watch, stop, remove.

The verbs compose what the rooms below offer and keep nothing in memory: any process may hold a :class:`Container` of the same home, from any thread.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bulle.engine import balancing, further_commands, pausing, planning, removal, stopping, supervisor
from bulle.engine.container_log import ContainerLog
from bulle.engine.drivers import driver_for
from bulle.engine.foreground import Foreground
from bulle.engine.inspection import container_document
from bulle.engine.network_inspection import standing_ports
from bulle.engine.starting import Order
from bulle.errors import BulleError, Conflict
from bulle.model.container import ContainerOptions, ContainerState, ExecOptions, LimitChanges
from bulle.model.lifecycle import Lifecycle
from bulle.model.network import PublishedPort, Standing
from bulle.model.run_plan import RunPlan
from bulle.monitor import Attached, Attachment, LogEntry, current_state, ends
from bulle.monitor.log_reading import Choice
from bulle.monitor.logs import timestamp
from bulle.monitor.state import look, read_state
from bulle.records.containers import ContainerRecord, ContainerRecords
from bulle.records.database import Database
from bulle.records.events import container_attributes, publish, publish_container
from bulle.records.snapshots import SnapshotRecords
from bulle.spawner import child, client

if TYPE_CHECKING:
    from bulle.engine.copying import ContainerFiles
    from bulle.engine.measuring import ContainerStatistics
    from bulle.engine.waiting import Condition
    from bulle.engine.why import Explanation

_RECORDING_PATIENCE_S = 4.0  # longer than a new monitor asks for an exit code that others know


class Container:
    """One container of a home; every answer is looked up when it is asked for."""

    def __init__(self, home: Path, database: Database, record: ContainerRecord) -> None:
        self._home = home
        self._database = database
        self.record = record
        self.id = record.id
        self.name = record.name
        self.image_id = record.image_id
        self.created_at_ns = record.created_at_ns
        self.directory = str(home / "containers" / record.id)
        self.notes: tuple[str, ...] = ()
        """What the last start or exec through this object had to do more weakly than asked."""

    @property
    def image(self) -> str:
        """The image as it was asked for."""
        return self.record.options.image

    @property
    def options(self) -> ContainerOptions:
        """What was asked for."""
        return self.record.options

    @property
    def plan(self) -> RunPlan:
        """What is done when it starts."""
        return self.record.plan

    @property
    def files(self) -> ContainerFiles:
        """Its files: copy them in and out, see what changed, export them."""
        from bulle.engine.copying import ContainerFiles  # a few verbs need it

        return ContainerFiles(self._home, self.plan, self.name)

    def state(self) -> ContainerState:
        """How it is now. A container whose monitor was killed is given a new one first, so that the answer stays true."""
        state, unwatched = look(self.directory)
        if unwatched:
            self._recover()
        elif state.status == "exited" and read_state(self.directory).status == "running":
            return self._recorded_end(state)
        return state

    def start(
        self, *, attach: bool = False, stdin: bool = False, rows: int = 0, columns: int = 0, bound: bool = False, secrets: Sequence[str] = ()
    ) -> Attachment | None:
        """Start it; with ``attach`` returns the connection that carries its output (and input with ``stdin``). Nothing happens if it runs already.

        ``rows`` and ``columns`` are the size that its terminal begins with (0: unknown). One that is ``bound`` is killed when the connection is
        closed. ``secrets`` are more variables of its environment, which are written down nowhere.
        """
        attachment = self._connect(attach, stdin)
        pausing.refuse_paused(self._home, self, "start", attachment)
        if attachment is None and current_state(self.directory).status == "restarting":
            if attach:
                raise Conflict(f"container {self.name} is restarting", "its monitor waits before it starts it again", "wait until it runs")
            return None
        if attach:
            publish_container(self.directory, "attach")
        if attachment is None:
            order = msgspec.structs.replace(self._start_order(attach, rows, columns), bound=bound)
            attachment = self._order(msgspec.structs.replace(order, plan=planning.with_environment(order.plan, secrets)) if secrets else order)
            if attach and self.options.auto_remove:
                attachment.when_exited = lambda: removal.forget(self._database, self.plan, volumes=True)
        if attach:
            return attachment
        attachment.close()
        return None

    def start_here(self, *, stdin: bool = False, rows: int = 0, columns: int = 0) -> Attached:
        """Start it in the foreground of this command: where the spawner holds this process's leash, this process is its monitor meanwhile."""
        if child.own_leash is None or self.plan.lifecycle != Lifecycle() or current_state(self.directory).active:
            attachment = self.start(attach=True, stdin=stdin, rows=rows, columns=columns)
            assert attachment is not None
            return attachment
        publish_container(self.directory, "attach")
        foreground = Foreground(self._start_order(True, rows, columns), self._database, child.own_leash)
        self.notes = foreground.notes
        return foreground

    def _start_order(self, attach: bool, rows: int, columns: int) -> Order:
        plan = planning.with_window(self.plan, rows, columns) if self.options.terminal and rows else self.plan
        return Order(str(self._home), plan, attach, self.options.interactive, self.options.auto_remove)

    def attach(self, *, output: bool = True, stdin: bool = False) -> Attachment:
        """A connection to the running container; Conflict if it does not run."""
        if (attachment := self._connect(output, stdin)) is None:
            raise Conflict(f"container {self.name} is not running", "", f"start it with `bulle start {self.name}`")
        if output or stdin:
            pausing.refuse_paused(self._home, self, "attach", attachment)
            publish_container(self.directory, "attach")
        return attachment

    def _connect(self, output: bool, stdin: bool) -> Attachment | None:
        """A connection to its monitor, which has answered; None where it does not run, also because a start that was under way came to nothing."""
        deadline = time.monotonic() + _RECORDING_PATIENCE_S
        while current_state(self.directory).status == "running" and time.monotonic() < deadline:
            attachment = Attachment.connect(self.directory, output=output, stdin=stdin)
            if attachment is not None:
                with suppress(BulleError):
                    attachment.wait_started()
                    return attachment
                attachment.close()
            self.state()  # it may need a new monitor
            time.sleep(0.05)
        return None

    def wait(self, condition: Condition = "not-running") -> int:
        """Block until it does not run, until its ``next-exit`` or until it is ``removed``; returns its exit code (-1 unknown, 0 if it never ran).

        Raises NotFound when it is removed before its next exit.
        """
        from bulle.engine.waiting import wait_for

        return wait_for(self, condition, lambda: ContainerRecords(self._database).exists(self.id))

    def to_fetch(self) -> str:
        """What its next start has to fetch first, such as a kernel for a virtual machine, in words; empty for nothing."""
        return driver_for(self.plan.isolation, self._home).to_fetch(self.plan)

    def kill(self, signal: str = "KILL") -> None:
        """Send a signal to its first process; after SIGKILL its end is waited for."""
        stopping.kill(self._home, self, signal)

    def stop(self, timeout_s: int | None = None, signal: str = "", *, verb: str = "stop") -> None:
        """Ask it to end by its stop signal, and kill it after a while: ``timeout_s``, by default its own; -1 waits for ever.

        Nothing happens if it does not run. ``verb`` is the name of the command that wants it, for ``bulle why``.
        """
        if self.state().active:
            known = container_attributes(self.directory)  # it may be removed with its end
            stopping.end(self._home, self, timeout_s, signal, verb)
            if known is not None:
                publish(self._home, "container", "stop", self.id, known)

    def restart(self, timeout_s: int | None = None, signal: str = "") -> None:
        """Stop it as :meth:`stop` does, if it runs, and start it."""
        self.stop(timeout_s, signal, verb="restart")
        self.start()
        publish_container(self.directory, "restart")

    def pause(self) -> None:
        """Stop every process of it where it stands. Raises Conflict unless it runs, Unsupported where that cannot be done."""
        pausing.pause(self._home, self)

    def unpause(self) -> None:
        """Let it go on; Conflict where it is not paused."""
        pausing.unpause(self._home, self)

    def is_paused(self) -> bool:
        """Whether it was told to stand still."""
        return pausing.is_paused(self._home, self.plan)

    def withdraw(self) -> None:
        """Take it out of the balance: no new connection is led to it by the ports that it shares, and who asks for a name that others have too finds
        those. What stands goes on. Until :meth:`admit` or its next start; nothing where it does not run."""
        balancing.withdraw(self._home, self)

    def admit(self) -> None:
        """Take it into the balance again, as soon as it is healthy."""
        balancing.admit(self._home, self)

    def standing(self) -> Standing:
        """Whether it is in balance (``ready``), will be once it is healthy or listens (``unready``), or not: withdrawn, ending, not running."""
        return balancing.standing(self._home, self)

    def update(self, changes: LimitChanges) -> None:
        """Change limits and restart policy, at once where it runs: all that is given, or nothing. ``notes`` say what was weaker than asked."""
        from bulle.engine.updating import update

        self.record, self.notes = update(self._home, self._database, self, changes)

    def rename(self, name: str) -> None:
        """Give it another name, also while it runs; its host name stays. Raises InvalidInput, Conflict, NotFound."""
        from bulle.engine.renaming import rename

        rename(self._home, self._database, self, name)

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it and all it wrote, with ``volumes`` also its anonymous volumes; a running one only by ``force``."""
        removal.await_monitor(self.directory)
        state = self.state()
        if state.active:
            if not force:
                mend = f"stop it with `bulle stop {self.name}`, or remove it with `bulle rm -f {self.name}`"
                raise Conflict(f"container {self.name} is {'paused' if self.is_paused() else state.status}", "", mend)
            stopping.end(self._home, self, 0, "KILL", "rm")
            removal.await_monitor(self.directory)  # its last event comes before that of the removal
        driver_for(self.plan.isolation, self._home).clean_up(self.plan)
        removal.remove(self._database, self.plan, volumes=volumes or self.options.auto_remove)
        removal.collect(self._home, self._database)

    def logs(self, *, follow: bool = False, tail: int | None = None, since_ns: int = 0, until_ns: int = 0) -> Iterator[LogEntry]:
        """What it wrote, oldest first; with ``follow`` until it ends. Raises Unavailable where nothing is kept."""
        return self.log.entries(Choice(tail, since_ns, until_ns), follow=follow)

    @property
    def log(self) -> ContainerLog:
        """What it wrote, line by line or as text. Raises Unavailable where nothing is kept."""
        return ContainerLog(self.plan, self.name, lambda: self.state().active)

    def execute(self, options: ExecOptions, *, detach: bool = False, exec_id: str = "") -> Attachment | None:
        """Run one more command in it; returns the connection that carries its streams and its exit code, None with ``detach``.

        ``exec_id`` is what :meth:`prepare_exec` gave, for what is prepared at one time and run at another.
        """
        return further_commands.execute(self._home, self, options, self._order, detach=detach, exec_id=exec_id)

    def prepare_exec(self, options: ExecOptions) -> str:
        """Whether a command could be run now, as :meth:`execute` would raise it; returns an id for it, that its events have."""
        return further_commands.prepare(self._home, self, options)

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal a size. Raises Conflict if it does not run."""
        with closing(self.attach(output=False)) as line:
            line.resize(rows, columns)

    def top(self, arguments: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
        """Its processes as ps(1) of the host shows them: titles and rows."""
        from bulle.engine.process_listing import of_workload  # only this verb runs a program of the host

        state = self.state()
        if state.status != "running":
            raise Conflict(f"container {self.name} is not running", "", f"start it with `bulle start {self.name}`")
        publish_container(self.directory, "top")
        return of_workload(driver_for(self.plan.isolation, self._home), self.plan, state.pid, arguments)

    def stats(self, interval_s: float = 0.25) -> ContainerStatistics:
        """What it uses, its share of processors over ``interval_s``; all 0 where it does not run."""
        from bulle.engine.measuring import measure

        return measure(self._home, [self], interval_s)[0]

    def why(self) -> list[Explanation]:
        """Why it ended, for each end that is remembered, the last one first; empty where it never did."""
        from bulle.engine.why import explain_all

        return explain_all(self.name, self.plan, ends.read(self.directory))

    def published_ports(self) -> tuple[PublishedPort, ...]:
        """The ports of the host that lead to it now; none unless it runs."""
        return standing_ports(self.record, self.state())

    def inspect(self, *, sizes: bool = False) -> dict[str, object]:
        """Everything that is known, in the form of ``docker inspect``; with ``sizes`` also what it takes, in bytes."""
        document = container_document(self.record, self.state(), paused=self.is_paused())
        if kept := SnapshotRecords(self._database).of(self.id):
            document["Snapshots"] = [
                {"Tag": one.tag, "Created": timestamp(one.created_at_ns), "Size": one.size_bytes, "Memory": one.machine is not None} for one in kept
            ]
        if sizes:
            document["SizeRw"], document["SizeRootFs"] = self.sizes()
        return document

    def sizes(self) -> tuple[int, int]:
        """Bytes of the files that it wrote, and of those with the image's."""
        from bulle.engine.usage import container_sizes

        return container_sizes(self._home, self._database, self.plan)

    def _order(self, order: Order) -> Attachment:
        """Have a monitor forked and wait for its word; the error of a start is raised here."""
        attachment = submit(order)
        try:
            attachment.wait_started()
        except BaseException:
            attachment.close()
            raise
        self.notes = attachment.notes
        return attachment

    def _recorded_end(self, lost: ContainerState) -> ContainerState:
        """How a container ended that ended while its monitor was dead: a new one records what is still known, and cleans up."""
        with suppress(BulleError):
            self._recover()
            deadline = time.monotonic() + _RECORDING_PATIENCE_S
            while time.monotonic() < deadline:
                state = read_state(self.directory)
                if state.status != "running":
                    return state
                time.sleep(0.005)
        return lost

    def _recover(self) -> None:
        supervisor.hand_over(Order(str(self._home), self.plan, False, self.options.interactive, self.options.auto_remove), [])


def submit(order: Order) -> Attachment:
    """Have a monitor forked for an order; its first word, on the connection that is returned, says what came of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    entry = "execute" if order.execute else "monitor" if order.attach else "start"  # a monitor of an exec needs no shell made ahead
    local = supervisor.start if entry == "start" else supervisor.main
    with theirs:
        try:
            client.submit(Path(order.home), entry, [msgspec.json.encode(order).decode()], [theirs.fileno()], local=local)
        except BaseException:
            ours.close()
            raise
    return Attachment(ours)
