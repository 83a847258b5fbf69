"""The shepherd of a machine with a system of its own: starts QEMU in the sandbox, carries its serial console, and turns signals into what a
machine knows.

Nothing of Bulle's is inside, so there is no command, no file and no process of it to ask for: SIGTERM is the power button, SIGKILL the plug. The
exit code is 0 where the system switched itself off, 137 where it lost its power. Called by the driver like :mod:`bulle.isolation.microvm.shepherd`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from bulle.errors import BulleError, Conflict, Unsupported
from bulle.isolation.channel import Channel
from bulle.isolation.launch import ChildKit
from bulle.isolation.microvm import address_server, cable, sandbox, sessions, whole
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.record import Record
from bulle.isolation.microvm.whole import WholeSetup
from bulle.model.run_plan import RunPlan

_ABNORMAL = 255
_CHUNK_BYTES = 65536
_BUTTON = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signal.SIGQUIT, signal.SIGRTMIN + 3, signal.SIGRTMIN + 4})
_LAST_WORDS_S = 5.0


def no_way_in(driver: str = "vm") -> Unsupported:
    """What is said to whoever wants to do something inside."""
    return Unsupported("way into a machine with a system of its own", driver, "use its console (bulle attach), or ssh")


def run(plan: RunPlan, channel: Channel, kit: ChildKit, setup: WholeSetup, taps: Sequence[int], nodes: Sequence[int]) -> None:
    """Everything from the bare namespaces to the end; never returns. Raises before the machine runs."""
    gc.disable()  # what the engine's objects own is closed here: nobody may close it again
    streams = (kit.stdio.stdin, kit.stdio.stdout, kit.stdio.stderr)
    sessions.close_all_but((channel.fileno(), *streams, *setup.descriptors, *taps, *nodes))
    woken = sessions.watch_signals()
    own = plan.network.mode == "own"
    cables = cable.lay(plan.network.attachments, taps) if own else []
    names = [f"tap{number}" for number in range(len(cables))]
    assert plan.guest is not None and plan.guest.whole is not None
    servers = address_server.serve(names, plan.network.attachments, plan.hostname, plan.guest.whole.boot_url) if own else []
    terminal = sessions.open_terminal(channel, plan.process)
    sandbox.enter([], setup.devices, nodes)
    line, commanded = socket.socketpair()
    console, shown = socket.socketpair()
    words = whole.arguments(plan, setup, cables, commanded.fileno(), shown.fileno())
    inherited = (*setup.files.values(), *(one.tap_fd for one in cables), commanded.fileno(), shown.fileno())
    pid = sandbox.start_hypervisor(setup.program, words, inherited, setup.output_fd)
    for descriptor in inherited[:-2]:
        os.close(descriptor)
    commanded.close()
    shown.close()
    sandbox.give_up_privileges()
    shepherd = WholeShepherd(plan, setup, pid, Control(line), console, terminal, woken, servers)
    try:
        shepherd.begin()
    except BaseException:
        shepherd.cut_power()
        raise
    channel.report("running")
    channel.close()
    os._exit(shepherd.loop())


class WholeShepherd:
    """The loop over console, terminal, screen, control and signals."""

    def __init__(
        self, plan: RunPlan, setup: WholeSetup, pid: int, control: Control, console: socket.socket, terminal: int, woken: int,
        servers: Sequence[address_server.Server],
    ) -> None:  # fmt: skip
        self._setup = setup
        self._pid = pid
        self._control = control
        self._console = console
        self._terminal = terminal
        self._woken = woken
        self._servers = {one.line.fileno(): one for one in servers}
        self._status: int | None = None
        self._killed = False
        self._holder: socket.socket | None = None
        self._reason = ""
        self._to_terminal, self._to_console = b"", b""
        self._record = Record(setup.accelerator, setup.hypervisor, "", setup.architecture, setup.processors, setup.memory_bytes, pid, "cold")
        console.setblocking(False)
        os.set_blocking(terminal, False)

    def begin(self) -> None:
        """See that QEMU took all that it was told. Raises BulleError."""
        try:
            self._control.execute("query-status")
        except BulleError as error:
            raise BulleError("the machine could not be started", self._cause_of_end(), "see `bulle doctor`") from error
        self._write_record()

    def loop(self) -> int:
        """Until QEMU ends; returns the exit code."""
        while self._status is None:
            self._turn()
        self._drain()
        with suppress(BulleError):
            self._control.hear()
        self._take_events()
        code = self._code()
        self._write_record()
        return code

    def cut_power(self) -> None:
        """As if its plug was pulled."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _code(self) -> int:
        if self._killed:
            self._record.status = signal.SIGKILL
            return 128 + signal.SIGKILL
        if self._status or self._reason == "guest-panic":
            self._record.ended = "its system panicked" if self._reason == "guest-panic" else self._cause_of_end()
            return _ABNORMAL
        self._record.status = 0
        return 0

    def _turn(self) -> None:
        poll = select.poll()
        for descriptor in (self._woken, self._setup.listener.fileno(), self._control.fileno(), *self._servers):
            poll.register(descriptor, select.POLLIN)
        for one in (self._setup.screens, self._holder):
            if one is not None:
                poll.register(one.fileno(), select.POLLIN)
        # What one side does not take stops the other: nothing is kept beyond one piece.
        poll.register(self._console.fileno(), (0 if self._to_terminal else select.POLLIN) | (select.POLLOUT if self._to_console else 0))
        if self._terminal >= 0:
            poll.register(self._terminal, (0 if self._to_console else select.POLLIN) | (select.POLLOUT if self._to_terminal else 0))
        for descriptor, events in poll.poll():
            if descriptor == self._woken:
                self._hear_signals()
            elif descriptor == self._setup.listener.fileno():
                self._accept()
            elif descriptor == self._control.fileno():
                self._hear_control()
            elif descriptor in self._servers:
                self._servers[descriptor].answer()
            elif self._setup.screens is not None and descriptor == self._setup.screens.fileno():
                self._show_screen()
            elif self._holder is not None and descriptor == self._holder.fileno():
                self._go_on()
            else:
                self._carry(descriptor, events)

    def _carry(self, descriptor: int, events: int) -> None:
        if descriptor == self._console.fileno() and events & ~select.POLLOUT and not self._to_terminal:
            with suppress(OSError):
                self._to_terminal = self._console.recv(_CHUNK_BYTES)
                if not self._to_terminal:
                    self._wait_for_end()
        elif descriptor == self._terminal and events & (select.POLLHUP | select.POLLERR):
            # Whoever held its other side was killed, all of them: what the machine says is for nobody now.
            os.close(self._terminal)
            self._terminal = -1
        elif descriptor == self._terminal and events & select.POLLIN and not self._to_console:
            with suppress(OSError):
                self._to_console = os.read(self._terminal, _CHUNK_BYTES)
        if self._terminal < 0:
            self._to_terminal = b""
        with suppress(OSError):
            if self._to_terminal:
                self._to_terminal = self._to_terminal[os.write(self._terminal, self._to_terminal) :]
        with suppress(OSError):
            if self._to_console:
                self._to_console = self._to_console[self._console.send(self._to_console) :]

    def _drain(self) -> None:
        """What it said last."""
        deadline = time.monotonic() + _LAST_WORDS_S
        with suppress(OSError):
            os.set_blocking(self._terminal, True)
            while time.monotonic() < deadline and (data := self._to_terminal or self._console.recv(_CHUNK_BYTES)):
                os.write(self._terminal, data)
                self._to_terminal = b""

    def _hear_signals(self) -> None:
        for number in os.read(self._woken, 256):
            if number == signal.SIGCHLD:
                self._reap()
            elif number in _BUTTON:
                with suppress(BulleError):
                    self._control.execute("system_powerdown")
                    self._take_events()

    def _hear_control(self) -> None:
        try:
            if not self._control.hear():
                self._wait_for_end()
        except (BulleError, ValueError):
            self.cut_power()
        self._take_events()

    def _take_events(self) -> None:
        for event in self._control.events:
            if event["event"] == "SHUTDOWN":
                self._reason = str(event.get("data", {}).get("reason", ""))
            elif event["event"] == "GUEST_PANICKED":
                self._reason = "guest-panic"
        self._control.events.clear()

    def _accept(self) -> None:
        """Nothing can be done inside; its end can, and having it stand still."""
        with suppress(BlockingIOError):
            client, _address = self._setup.listener.accept()
            data, descriptors, _flags, _address = socket.recv_fds(client, 1 << 18, 3)
            try:
                request = sessions.requests.decode(data)
                if isinstance(request, sessions.EndRequest):
                    client.close()
                    self._killed = True
                    self.cut_power()
                    return
                if isinstance(request, sessions.StandRequest):
                    self._stand(client)
                    return
                raise no_way_in()
            except (OSError, ValueError, BulleError, msgspec.DecodeError) as error:
                sessions.refuse(client, descriptors, error)

    def _stand(self, client: socket.socket) -> None:
        """Have the machine stand still, until the client goes away: QEMU then has written all that it was told to."""
        if self._holder is not None:
            raise Conflict("the machine stands still already", "another command copies its disk", "wait until that has ended")
        self._control.stop()
        self._holder = client
        sessions.tell(client, sessions.Word("done"))

    def _go_on(self) -> None:
        assert self._holder is not None
        self._holder.close()
        self._holder = None
        with suppress(BulleError):  # it may have ended meanwhile
            self._control.go_on()
        self._take_events()

    def _show_screen(self) -> None:
        """Whoever connects gets QEMU's own VNC."""
        assert self._setup.screens is not None
        with suppress(BlockingIOError, BulleError):
            client, _address = self._setup.screens.accept()
            with client:
                self._control.execute("getfd", client.fileno(), fdname="screen")
                self._control.execute("add_client", protocol="vnc", fdname="screen", skipauth=True)
        self._take_events()

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._pid:
                    self._status = status

    def _wait_for_end(self) -> None:
        """Its lines are closed a moment before it can be reaped."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while self._status is None:
            self._reap()
            if time.monotonic() > deadline:
                self.cut_power()
            time.sleep(0.005)

    def _cause_of_end(self) -> str:
        self._wait_for_end()
        status = self._status or 0
        if os.WIFSIGNALED(status):
            return f"the hypervisor was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        with suppress(OSError):
            text = os.pread(self._setup.output_fd, 4096, 0).decode(errors="replace").strip().splitlines()
            if text:
                return f"the hypervisor ended: {text[-1][:300]}"
        return f"the hypervisor ended with exit code {os.waitstatus_to_exitcode(status)}"

    def _write_record(self) -> None:
        with suppress(OSError):
            content = msgspec.json.encode(self._record)
            os.ftruncate(self._setup.record_fd, 0)
            os.pwrite(self._setup.record_fd, content, 0)
