"""``bulle move`` of a virtual machine that runs: it goes on while its disk and its memory are copied, and stands still only for the switch.

Both ends of one connection (:mod:`bulle.engine.move_line`): :func:`depart` where it runs, :func:`arrive` where it is to run. Until the other end has
everything and says so, the machine here is only held, and goes on when anything fails or :func:`depart` is killed. Then it is paused, as by ``bulle
pause``, and only then the other end is told to go on: it never runs twice. It is removed here when the other end says that it runs.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import msgspec
from msgspec.structs import replace

from bulle.engine.move_line import CHUNK_BYTES, DISK, MEMORY, WORD, Line, Lost, StateFile, word
from bulle.engine.planning import Base
from bulle.engine.state_files import load_state, save_state
from bulle.errors import BulleError, Conflict, InvalidInput, Unsupported, from_parts, to_parts
from bulle.isolation.microvm import arrival, sessions
from bulle.isolation.microvm.sessions import ArriveRequest, LeaveRequest, Word
from bulle.model.container import ContainerOptions
from bulle.model.network import NetworkOption
from bulle.model.run_plan import RunPlan

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine
    from bulle.monitor import Attachment

_ANSWER_S = 30.0
_CONNECT_S = 60.0
_LOOK_S = 0.005


class Undecided(BulleError):
    """The connection broke in the one moment in which nobody here can know whether the machine runs there."""


class Abandoned(BulleError):
    """Who asked for the move is gone."""


def why_not(container: Container) -> str:
    """Why a container that runs can only be moved by stopping it; empty where it can be moved as it runs."""
    plan = container.plan
    if plan.guest is None:
        return "its memory is that of this machine's kernel"
    if plan.guest.whole is not None:
        return "it has a system of its own"
    if any(mount.kind != "tmpfs" for mount in plan.mounts):
        return "it shows directories of this machine, whose server keeps no state"
    return "its instructions are shown" if plan.guest.trace else ""


def depart(engine: Engine, container: Container, line: Line, asker: socket.socket) -> tuple[str, ...]:
    """Move a running machine over a connection to :func:`arrive`, and remove it here; returns notes. It is given up when ``asker`` closes.

    Raises BulleError; then it goes on here, but for Undecided, where it stays paused.
    """
    with ExitStack() as stack:
        try:
            shepherd = stack.enter_context(sessions.connect(container.directory))
        except OSError as error:
            raise Conflict(f"container {container.name} is not running", "its machine has ended", "start it first") from error
        memory, theirs = socket.socketpair()
        stack.enter_context(memory)
        known = os.memfd_create("known")
        stack.callback(os.close, known)
        with theirs:
            socket.send_fds(shepherd, [msgspec.json.encode(LeaveRequest())], [theirs.fileno(), known])
        data, descriptors, _flags, _address = socket.recv_fds(shepherd, 1 << 18, 1)
        listener = stack.enter_context(socket.socket(fileno=descriptors[0])) if descriptors else None
        _word_of(data, "known")
        assert listener is not None
        line.say("known", content=_content(known))
        state = StateFile(line)
        save_state(engine, container.id, cast("BinaryIO", state), of_disk=_with_places(container))
        state.end()
        line.expect("ready")
        sessions.tell(shepherd, Word("go"))
        _carry(line, shepherd, memory, listener, known, asker)
        notes = _decide(container, line)
    container.remove(force=True)
    return notes


def _carry(line: Line, shepherd: socket.socket, memory: socket.socket, listener: socket.socket, known: int, asker: socket.socket) -> None:
    """Everything to and fro, until the other end has it all."""
    disk: socket.socket | None = None
    early = bytearray()  # what the server of the disk says to whoever comes
    poll = select.poll()
    for one in (line, shepherd, memory, listener, asker):
        poll.register(one, select.POLLIN)
    try:
        while True:
            for descriptor, _events in poll.poll():
                if descriptor == line.fileno():
                    for channel, data in line.hear():
                        if channel == DISK and disk is None:
                            early += data
                        elif channel == DISK and disk is not None:
                            disk.sendall(data)
                        elif channel == WORD and word(data).kind == "whole":
                            return
                elif descriptor == memory.fileno():
                    if data := memory.recv(CHUNK_BYTES):
                        line.send(MEMORY, data)
                    else:
                        poll.unregister(memory)
                elif descriptor == shepherd.fileno():
                    if _word_of(shepherd.recv(1 << 18), "still", "sent").kind == "still":
                        line.say("kept", content=_content(known))
                elif disk is not None and descriptor == disk.fileno():
                    if data := disk.recv(CHUNK_BYTES):
                        line.send(DISK, data)
                    else:
                        poll.unregister(disk)
                elif descriptor == listener.fileno():
                    disk, _address = listener.accept()
                    disk.sendall(early)
                    poll.unregister(listener)
                    poll.register(disk, select.POLLIN)
                else:
                    raise Abandoned("the move was given up", "who asked for it is gone", "")
    finally:
        if disk is not None:
            disk.close()


def _decide(container: Container, line: Line) -> tuple[str, ...]:
    """The switch: here it stands still for good, then there it goes on; returns notes. Raises Undecided, or why it is not there."""
    paused = False
    with suppress(Unsupported):
        container.pause()
        paused = True
    try:
        line.say("go")
        if not select.select([line], [], [], _ANSWER_S)[0]:
            raise Lost("the other machine does not answer")
        line.expect("running")
        return line.expect("done").parts
    except Lost as error:
        look = "if `bulle ps` there does not show it, let it go on here by `bulle unpause`, else remove it by `bulle rm -f`"
        raise Undecided(f"it is not known whether {container.name} runs there", f"the connection broke in the switch: {error}", look) from error
    except BaseException:
        if paused:
            container.unpause()
        raise


def _with_places(container: Container) -> ContainerOptions:
    """Its options, with the addresses and the host name that it has: what runs in it knows them."""
    options, places = container.options, container.plan.network.attachments
    asked = options.networks or tuple(NetworkOption(one.network) for one in places)
    networks = []
    for option, place in zip(asked, places, strict=True):
        addresses = [address.partition("/")[0] for address in place.addresses]
        ipv4, ipv6 = (next((one for one in addresses if (":" in one) == six), "") for six in (False, True))
        networks.append(replace(option, ipv4=ipv4, ipv6=ipv6, mac=place.mac))
    return replace(options, networks=tuple(networks), hostname=container.plan.hostname)


def arrive(engine: Engine, line: Line) -> None:
    """Take a machine over a connection from :func:`depart`. What fails is said there; then nothing of it is left here."""
    try:
        known = line.expect("known").content
        stream, notes = StateFile(line), list[str]()
        made = load_state(engine, cast("BinaryIO", stream), partial(_make, engine, known, notes))
        try:
            stream.drain()
            _take(line, made, notes)
        except BaseException:
            with suppress(BulleError):
                made.remove(force=True, volumes=True)
            raise
    except Lost:
        raise
    except BulleError as error:
        with suppress(Lost):
            line.say("error", to_parts(error))


def _make(engine: Engine, known: bytes, notes: list[str], options: ContainerOptions, base: Base) -> Container:
    """The container, with an empty disk, where its addresses are free with those."""

    def fill(plan: RunPlan) -> None:
        disk = Path(plan.root.writable_host_path, "disk")
        size = disk.stat().st_size
        os.truncate(disk, 0)
        os.truncate(disk, size)
        Path(plan.state_host_path, arrival.NAME).write_bytes(known)

    try:
        return engine.containers.create(options, base, fill=fill)
    except (Conflict, InvalidInput) as error:
        others = replace(options, networks=tuple(replace(one, ipv4="", ipv6="") for one in options.networks))
        made = engine.containers.create(others, base, fill=fill)
        notes.append(f"it has another address there: {error}")
        return made


def _take(line: Line, made: Container, notes: list[str]) -> None:
    with ExitStack() as stack:
        starting = stack.enter_context(closing(made.start_arriving()))
        shepherd = _shepherd_of(made, starting)
        stack.callback(shepherd.close)
        memory, theirs = socket.socketpair()
        stack.enter_context(memory)
        known = os.memfd_create("known")
        stack.callback(os.close, known)
        with theirs:
            socket.send_fds(shepherd, [msgspec.json.encode(ArriveRequest())], [theirs.fileno(), known])
        data, descriptors, _flags, _address = socket.recv_fds(shepherd, 1 << 18, 1)
        if not data:
            starting.wait_started()
        _word_of(data, "ready")
        disk = stack.enter_context(socket.socket(fileno=descriptors[0]))
        line.say("ready")
        _bring(line, shepherd, memory, disk, known, starting)
        starting.wait_started()
        with suppress(Lost):  # it runs here, whatever the other end knows
            line.say("done", (*starting.notes, *notes))


def _bring(line: Line, shepherd: socket.socket, memory: socket.socket, disk: socket.socket, known: int, starting: Attachment) -> None:
    """Everything to and fro, until it runs here. Once it was told to go on, the connection may break."""
    poll, went = select.poll(), False
    for one in (line, shepherd, disk):
        poll.register(one, select.POLLIN)
    while True:
        for descriptor, _events in poll.poll():
            if descriptor == line.fileno() and went:
                poll.unregister(line)
            elif descriptor == line.fileno():
                for channel, data in line.hear():
                    went = _pass_on(channel, data, shepherd, memory, disk, known)
            elif descriptor == disk.fileno():
                if data := disk.recv(CHUNK_BYTES):
                    line.send(DISK, data)
                else:
                    poll.unregister(disk)
            else:
                data = shepherd.recv(1 << 18)
                if not data:
                    starting.wait_started()
                said = _word_of(data, "whole", "running").kind
                with suppress(Lost) if said == "running" else ExitStack():
                    line.say(said)
                if said == "running":
                    return


def _pass_on(channel: int, data: bytes, shepherd: socket.socket, memory: socket.socket, disk: socket.socket, known: int) -> bool:
    """Whether that was the word to go on."""
    if channel == MEMORY:
        memory.sendall(data)
    elif channel == DISK:
        disk.sendall(data)
    elif channel == WORD:
        said = word(data)
        if said.kind == "kept":
            os.pwrite(known, said.content, 0)
        sessions.tell(shepherd, Word(said.kind))
        return said.kind == "go"
    return False


def _shepherd_of(made: Container, starting: Attachment) -> socket.socket:
    """A connection to it, as soon as it listens. Raises what its start does."""
    deadline = time.monotonic() + _CONNECT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            return sessions.connect(made.directory)
        if select.select([starting], [], [], _LOOK_S)[0]:
            starting.wait_started()
    raise BulleError(f"container {made.name} does not start there", "its machine takes nothing", "see `bulle doctor` there")


def _word_of(data: bytes, *kinds: str) -> Word:
    said = sessions.words.decode(data) if data else Word("error", parts=("the machine ended", "while it was moved"))
    if said.kind == "error":
        raise from_parts(said.parts)
    if said.kind not in kinds:
        raise BulleError("the machine could not be moved", f"its shepherd said {said.kind}", "")
    return said


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


