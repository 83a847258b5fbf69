"""The shepherd: the process on the host that stands for a guest. It boots it, has the command run in it, and carries streams, signals and the end.

It is a Python process without privileges in the machine's own namespaces (:mod:`bulle.isolation.microvm.sandbox`), pid 1 there, so that all that it
started ends with it. Signals that it gets go to the command; its exit code is the command's. What it learned of an end that was not the command's own
it writes down (:mod:`bulle.isolation.microvm.record`), for ``why``.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgspec

from bulle.errors import BulleError, Conflict
from bulle.isolation import identity
from bulle.isolation.channel import Channel
from bulle.isolation.execution import DEFAULT_PATH
from bulle.isolation.launch import ChildKit
from bulle.isolation.microvm import boot, cable, checkpoint, files, guest, refusals, sandbox, sessions, template
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.agent_protocol import FromHost
from bulle.isolation.microvm.agent_session import Session
from bulle.isolation.microvm.keeping import Keeping
from bulle.isolation.microvm.leaving import Leaving
from bulle.isolation.microvm.looking import with_files
from bulle.isolation.microvm.record import Record, usable_memory_bytes
from bulle.isolation.microvm.sessions import (
    ArriveRequest,
    Condition,
    EndRequest,
    FileRequest,
    KeepRequest,
    LeaveRequest,
    Opening,
    Relay,
    Sink,
    TemplateRequest,
    Word,
    refuse,
    tell,
)
from bulle.isolation.microvm.setup import Setup
from bulle.model.run_plan import Process, RunPlan

_ABNORMAL = 255
_POWER_OFF_S = 30.0
_KILLED_S = 8.0  # for a command in the guest to be gone after SIGKILL
_SILENCE_S = 30.0  # of a guest that was asked to start a command: then it is said to hang
_TICK_S = 2.0
_SESSION_LIMIT = 200


def run(
    plan: RunPlan,
    channel: Channel,
    kit: ChildKit,
    setup: Setup,
    volumes: Sequence[tuple[int, int]],
    taps: Sequence[int],
    nodes: Sequence[int],
) -> None:
    """Everything from the bare namespaces to the end; never returns. Raises before the command runs.

    ``volumes`` are numbers and detached mounts, ``taps`` were opened in the network namespace, ``nodes`` are detached device nodes of the setup.
    """
    gc.disable()  # what the engine's objects own is closed here: nobody may close it again
    streams = (kit.stdio.stdin, kit.stdio.stdout, kit.stdio.stderr)
    own = (channel.fileno(), *streams, *setup.descriptors, *(shown for _number, shown in volumes), *taps, *nodes)
    sessions.close_all_but(own)
    woken = sessions.watch_signals()
    cables = cable.lay(plan.network.attachments, taps) if plan.network.mode == "own" else []
    terminal = sessions.open_terminal(channel, plan.process) if plan.process.terminal else -1
    sandbox.enter(volumes, setup.devices, nodes)
    trace_to = os.dup(terminal if terminal >= 0 else kit.stdio.stderr) if setup.traced else -1
    machine = boot.start(plan, setup, cables, has_volumes=bool(volumes))
    sandbox.give_up_privileges()
    shepherd = Shepherd(plan, setup, machine, woken)
    try:
        shepherd.begin(kit, terminal)
    except BaseException:
        machine.kill()
        raise
    channel.report("running")
    channel.close()
    machine.trace_to = trace_to
    os._exit(shepherd.loop())


class Shepherd:
    """The loop over guest, hypervisor, clients and signals."""

    def __init__(self, plan: RunPlan, setup: Setup, machine: boot.Booted, woken: int) -> None:
        self._plan = plan
        self._setup = setup
        self._machine = machine
        self._agent: Agent = machine.agent
        self._woken = woken
        self._relays: dict[int, Relay] = {}
        self._openings: list[Opening] = []
        self._first: Relay | None = None
        self._ended = ""
        obtained = (setup.accelerator, setup.hypervisor, setup.kernel_release, setup.architecture)
        self._record = Record(*obtained, setup.processors, usable_memory_bytes(plan), machine.pid, setup.start)
        self._keeper: Keeping | Leaving | None = None
        self._silence_s = 0.0
        self._killed_for_s = -1.0  # by request; negative: it was not

    def begin(self, kit: ChildKit, terminal: int) -> None:
        """Start the container's own command. Raises what an exec of it on the host would."""
        plan = self._plan
        descriptors = [terminal, os.dup(terminal), -1] if terminal >= 0 else [kit.stdio.stdin, kit.stdio.stdout, kit.stdio.stderr]
        if self._setup.beginning is not None:
            [session] = [one for one in self._agent.sessions if one.number == self._setup.beginning.kept.first]
            self._first = self._carry(session, descriptors, None, terminal)
            self._write_record()
            return
        common = [] if self._machine.is_prepared else guest.common_steps(plan, self._setup.files)
        steps = [*common, *guest.container_steps(plan)]
        opening = self._opening(plan.process, kit.filter_program or b"", descriptors, terminal, steps, first=True)
        with suppress(StopIteration):
            while True:
                boot.wait(self._machine, next(opening), starting=True)
        self._write_record()

    def loop(self) -> int:
        """Until the command ends; returns the exit code."""
        assert self._first is not None
        while not self._first.finished and not self._ended:
            self._turn()
        for relay in list(self._relays.values()):
            self._finish(relay)
        known, killed = self._first.session.final, self._killed_for_s >= 0
        status = self._first.session.status if known else signal.SIGKILL
        if known or killed:
            self._record.status = status
        if not known:
            self._record.ended = self._ended
        elif status and not killed:
            self._record.out_of_memory = boot.guest_kills(self._machine) > 0
            self._record.refused = self._machine.refused_calls()
        code = sessions.exit_code(status) if known or killed else _ABNORMAL
        self._write_record()
        self._machine.power_off(quickly=self._plan.root.volatile or self._killed_for_s >= _KILLED_S, patience_s=_POWER_OFF_S)
        return code

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(self._setup.listener, select.POLLIN)
        poll.register(self._agent.fileno(), select.POLLIN | (select.POLLOUT if self._agent.wants_to_write else 0))
        poll.register(self._machine.console, select.POLLIN)
        if self._machine.trace >= 0:
            poll.register(self._machine.trace, select.POLLIN)
        for descriptor in self._keeper.watched if self._keeper is not None else ():
            poll.register(descriptor, select.POLLIN)
        inputs: dict[int, Relay] = {}
        outputs: dict[int, Sink] = {}
        clients: dict[int, Relay] = {}
        for relay in self._relays.values():
            if relay.wants_input:
                inputs[relay.stdin] = relay
            outputs |= {sink.descriptor: sink for sink in relay.sinks if sink.wants_to_write}
            if relay.client is not None:
                clients[relay.client.fileno()] = relay
        for descriptor in inputs.keys() | outputs.keys() | clients.keys():
            wanted = (select.POLLIN if descriptor in inputs or descriptor in clients else 0) | (select.POLLOUT if descriptor in outputs else 0)
            poll.register(descriptor, wanted)
        waits = self._openings or self._killed_for_s >= 0
        began_s = time.monotonic()
        for descriptor, events in poll.poll(_TICK_S * 1000 if waits else None):
            if descriptor == self._woken:
                self._hear_signals()
            elif descriptor == self._setup.listener.fileno():
                self._accept()
            elif descriptor == self._agent.fileno():
                self._exchange(events)
            elif descriptor == self._machine.trace:
                self._machine.carry_trace()
            elif self._keeper is not None and descriptor in self._keeper.watched:
                if not self._keeper.hear():
                    self._keeper = None
            elif descriptor == self._machine.console:
                self._machine.listen_to_console()
            else:
                if descriptor in outputs and events & ~select.POLLIN:
                    outputs[descriptor].flush()
                if descriptor in inputs and events & ~select.POLLOUT:
                    inputs[descriptor].carry_input()
                if descriptor in clients and clients[descriptor].client is not None:
                    self._hear(clients[descriptor])
        self._go_on_opening()
        if waits:
            # What passed while this process was paused does not count.
            self._look_at_the_clock(min(time.monotonic() - began_s, 2 * _TICK_S))
        self._agent.flush()
        for relay in list(self._relays.values()):
            relay.carry_output()
            if relay is not self._first and relay.finished:
                self._finish(relay)

    def _exchange(self, events: int) -> None:
        """With the guest: whatever it says wrong ends it."""
        try:
            if events & select.POLLOUT:
                self._agent.flush()
            if events & ~select.POLLOUT:
                self._silence_s = 0.0
                if not self._agent.receive():
                    self._end(self._machine.cause_of_end())
        except BulleError as error:
            self._end(f"the guest's agent did not keep to its protocol ({error.details})")

    def _end(self, why: str) -> None:
        if not self._ended:
            self._ended = why

    def _look_at_the_clock(self, passed_s: float) -> None:
        """Give up on a guest that is silent although it should speak."""
        self._silence_s = self._silence_s + passed_s if self._openings else 0.0
        if self._silence_s >= _SILENCE_S:
            silent = BulleError("the guest does not answer", f"it has said nothing for {_SILENCE_S:g} s", "stop it and start it again")
            for one in self._openings:
                refuse(one.client, one.descriptors, silent)
            self._openings.clear()
        if self._killed_for_s >= 0:
            self._killed_for_s += passed_s
            if self._killed_for_s >= _KILLED_S:
                self._end("its guest did not answer when its command was killed, and was switched off")

    def _hear_signals(self) -> None:
        for number in os.read(self._woken, 256):
            if number == signal.SIGCHLD:
                if self._machine.has_ended():
                    with suppress(BulleError):  # what it said last may be the command's end
                        while self._agent.receive() and boot.readable(self._agent):
                            pass
                    self._end(self._machine.cause_of_end())
            elif self._first is not None:
                if number == signal.SIGWINCH and self._first.terminal >= 0:
                    self._first.session.resize(*sessions.window_of(self._first.terminal))
                else:
                    self._first.session.signal(number)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            client, _address = self._setup.listener.accept()
            data, descriptors, _flags, _address = socket.recv_fds(client, 1 << 18, 3)
            try:
                request = sessions.requests.decode(data)
                if isinstance(request, EndRequest):
                    client.close()
                    self._kill()
                    return
                if isinstance(request, TemplateRequest):
                    template.share(self._setup.template, client, request.key)
                    return
                if isinstance(request, KeepRequest | LeaveRequest):
                    self._keep(client, request, descriptors)
                    return
                if isinstance(request, ArriveRequest):
                    raise Conflict("the machine is not waited for", "it runs already", "")
                if len(self._relays) + len(self._openings) >= _SESSION_LIMIT:
                    raise BulleError("the command could not be started", "too many run in this machine", "wait until one has ended")
                if isinstance(request, FileRequest):
                    client.setblocking(False)
                    self._open_files(request, descriptors).client = client
                    return
                terminal = descriptors[0] if request.process.terminal else -1
                if terminal >= 0:
                    os.close(descriptors[2])
                    descriptors[2] = -1
                steps = guest.joining_steps(self._plan)
                opening = self._opening(request.process, request.filter_program, descriptors, terminal, steps, client=client)
                self._openings.append(Opening(opening, lambda: True, client, descriptors))
            except (OSError, ValueError, BulleError, msgspec.DecodeError) as error:
                refuse(client, descriptors, error)

    def _keep(self, client: socket.socket, request: KeepRequest | LeaveRequest, descriptors: Sequence[int]) -> None:
        """Have the machine kept, or leave, until the client goes away."""
        assert self._first is not None
        if self._keeper is not None or self._openings or self._setup.file_server or self._setup.traced:
            why = "it shows directories of the host, whose server keeps no state" if self._setup.file_server else "it is busy with another request"
            raise Conflict("the machine could not be kept", why, "")
        number, names = self._first.session.number, self._machine.interfaces
        made = Leaving if isinstance(request, LeaveRequest) else Keeping
        self._keeper = made(client, descriptors, self._machine.control, self._agent, self._setup, lambda: checkpoint.describe(
            self._plan, self._setup.kind, self._agent.state(), number, names
        ))

    def _kill(self) -> None:
        """End the command by force, and with it the guest, which has written everything then."""
        if self._first is not None and self._killed_for_s < 0:
            self._killed_for_s = 0.0
            self._first.session.signal(signal.SIGKILL)

    def _go_on_opening(self) -> None:
        """Advance the commands that are being started, as far as the guest has answered."""
        for one in list(self._openings):
            try:
                while one.ready():
                    one.ready = next(one.steps)
                continue
            except StopIteration:
                one.client.setblocking(False)
                tell(one.client, Word("running"))
            except (OSError, ValueError, BulleError) as error:
                refuse(one.client, one.descriptors, error)
            self._openings.remove(one)

    def _open_files(self, request: FileRequest, descriptors: Sequence[int]) -> Relay:
        """Work on the guest's files; the one descriptor is where content goes to, or a tar comes from."""
        [descriptor] = descriptors
        session = files.ask(self._agent, request)
        taking = request.kind == "tar-in"
        relay = Relay(session, descriptor if taking else -1, () if taking else (Sink(descriptor, session.output, session),))
        if taking:
            os.set_blocking(descriptor, False)
        self._relays[session.number] = relay
        return relay

    def _opening(
        self,
        wanted: Process,
        filter_program: bytes,
        descriptors: list[int],
        terminal: int,
        steps: Sequence[guest.Step],
        *,
        first: bool = False,
        client: socket.socket | None = None,
    ) -> Iterator[Condition]:
        """Have a command started: gives what has to be so before it can go on, and ends when the command runs. Raises BulleError."""
        known = self._machine.files if first else {}
        user = yield from with_files(self._agent, self._plan, lambda look: identity.resolve(wanted.user, look), identity.LOOKED_AT, known)
        environment = {"PATH": DEFAULT_PATH, "HOME": user.home} | ({"TERM": "xterm"} if wanted.terminal else {})
        environment |= dict(item.partition("=")[::2] for item in wanted.environment)
        session = self._agent.execute(guest.execution(wanted, user, filter_program, environment, steps, first=first))
        yield lambda: session.started or session.final
        if session.error:
            mounts = self._plan.mounts if first else ()
            raise (yield from with_files(self._agent, self._plan, lambda look: refusals.explain(session, wanted, environment, look, mounts)))
        relay = self._carry(session, descriptors, client, terminal)
        if first:
            self._first = relay

    def _carry(self, session: Session, descriptors: Sequence[int], client: socket.socket | None, terminal: int) -> Relay:
        """Carry the streams of a command from now on."""
        streams = zip((session.output, session.errors), descriptors[1:], strict=True)
        sinks = tuple(Sink(descriptor, stream, session) for stream, descriptor in streams if descriptor >= 0)
        relay = self._relays[session.number] = Relay(session, descriptors[0], sinks, client, terminal)
        os.set_blocking(relay.stdin, False)
        return relay

    def _hear(self, relay: Relay) -> None:
        """A client that asked for a command: it sends signals and sizes; its end is its command's."""
        assert relay.client is not None
        try:
            data = relay.client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            relay.client.close()
            relay.client = None
            relay.session.signal(signal.SIGKILL)
            return
        word = sessions.words.decode(data)
        if word.kind == "resize":
            relay.session.resize(word.rows, word.columns)
        elif word.kind == "signal":
            relay.session.signal(word.number)

    def _finish(self, relay: Relay) -> None:
        relay.close()
        if relay.client is not None:
            if relay.session.kind is FromHost.EXEC:
                tell(relay.client, Word("exited", relay.session.status if relay.session.final else signal.SIGKILL))
            else:
                tell(relay.client, files.word_of(relay.session))
            relay.client.close()
            relay.client = None
        relay.session.close()
        self._relays.pop(relay.session.number, None)

    def _write_record(self) -> None:
        with suppress(OSError):
            descriptor = self._setup.record_fd
            content = msgspec.json.encode(self._record)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
