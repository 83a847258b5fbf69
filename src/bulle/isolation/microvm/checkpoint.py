"""A running machine kept as files, and begun again from them: memory, devices, and what its shepherd knew; the disk is copied by who asked for it.

The shepherd writes one (:func:`keep`), at a moment in which nothing is on its way between it and the agent. A container whose writable layer has one
begins with it at its next start instead of booting, and then has a time, randomness, a name and addresses of its own (:func:`renewal`): it may be
another container than the one that was kept. What is read may come from anybody; it adds nothing to the machine, which is made of a plan. Not for
machines that show directories of the host, whose server keeps no state.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import msgspec

from bulle.errors import BulleError, Conflict
from bulle.isolation.microvm import guest
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.agent_protocol import FromHost
from bulle.isolation.microvm.agent_state import AgentState
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.guest import Step
from bulle.model.run_plan import RunPlan

STATE_NAME, KEPT_NAME, DISK_NAME = "kept.state", "kept.json", "disk"
"""In a container's writable layer (host directory): what QEMU wrote, :class:`Kept`, and the disk that is always there."""

SHOWS_DIRECTORIES = "it shows directories of the host, whose server keeps no state"

MOST_KNOWN_BYTES = 64 << 20

_MEND = "begin it from its disk, with --disk-only"
_NAMES = frozenset({"QEMU", "the kernel", "the guest's agent", "the processor", "Bulle", "memory", "processors", "the board", "networks"})
_SHOWN = _NAMES - {"the kernel", "the guest's agent", "the processor", "QEMU"}
_LONGEST_SHOWN = 60
_QUIET_S = 5.0
_LOOK_S = 0.002


class Kept(msgspec.Struct, frozen=True):
    """What is known of a machine that was kept, that of ``container_id``.

    ``kind`` is all that a machine that begins with it must have too, ``first`` the session of the container's own command; ``interfaces`` are names,
    ``addresses`` what each has.
    """

    container_id: str
    kind: dict[str, str]
    agent: AgentState
    first: int
    interfaces: tuple[Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z_.-]{1,15}\Z")], ...]
    addresses: tuple[tuple[Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}\Z")], ...], ...]


@dataclass(frozen=True)
class Beginning:
    """What a machine begins with: the open file with its state."""

    state: int
    kept: Kept


_decoder = msgspec.json.Decoder(Kept)


def is_kept(directory: str) -> bool:
    """Whether a machine with this writable layer (host directory) begins with memory, so that nobody else may have its disk."""
    return os.path.exists(f"{directory}/{KEPT_NAME}")


def take(directory: str, kind: dict[str, str], networks: int, opened: ExitStack) -> Beginning | None:
    """What the container with this writable layer (host directory) is to begin with, once: it is gone from there; None where it boots.

    Raises as :func:`examine` does, which leaves it there.
    """
    if not is_kept(directory):
        return None
    kept = examine(directory, kind, networks)
    state = os.open(f"{directory}/{STATE_NAME}", os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, state)
    for name in (KEPT_NAME, STATE_NAME):
        os.unlink(f"{directory}/{name}")
    return Beginning(state, kept)


def examine(directory: str, kind: dict[str, str], networks: int) -> Kept:
    """What is kept in a host directory, for a machine of that kind with so many networks. Raises Conflict where it is of another, BulleError."""
    with open(f"{directory}/{KEPT_NAME}", "rb") as file:
        content = file.read(MOST_KNOWN_BYTES + 1)
    try:
        kept = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(str(error)) from error
    for name in kind.keys() | kept.kind.keys():
        was, now = kept.kind.get(name), kind.get(name)
        if was != now:
            raise Conflict("the machine cannot go on from its memory here", _difference(name, was, now), _MEND)
    if kind["directories of the host"] != "none":
        raise Conflict("the machine cannot go on from its memory here", SHOWS_DIRECTORIES, _MEND)
    numbers = [one.number for one in kept.agent.sessions]
    first = [one for one in kept.agent.sessions if one.number == kept.first and one.kind == FromHost.EXEC and one.started]
    fits = len(kept.interfaces) == len(kept.addresses) == networks
    if len(first) != 1 or len({*numbers}) != len(numbers) or max(numbers) >= kept.agent.next_number or not fits:
        raise damaged("what is known of it does not fit together")
    return kept


def _difference(name: str, was: str | None, now: str | None) -> str:
    """In words, as far as they are some: what was kept may come from anybody."""
    texts = [text for text in (was, now) if text and len(text) < _LONGEST_SHOWN and text.isprintable()]
    if name == "directories of the host":
        return SHOWS_DIRECTORIES
    if len(texts) < 2 or name not in _SHOWN:
        return f"{name if name in _NAMES else 'something else'} is not what it was kept with"
    return f"it was kept with {name} {texts[0]}, here that is {texts[1]}"


def damaged(why: str) -> BulleError:
    """What cannot be read."""
    return BulleError("the machine's memory that was kept is damaged", why, "start it again: it boots from its disk")


def keep(
    control: Control, agent: Agent, kind: dict[str, str], first: int, plan: RunPlan, interfaces: Sequence[str], state: int, known: int
) -> None:
    """Have the machine stand still and write it to two files; it stands still afterwards, also where this raises BulleError, OSError."""
    _settle(agent)
    control.stop()
    _listen(control, agent)
    control.write_state(state, with_memory=True)
    addresses = tuple(_addresses(plan, number) for number in range(len(interfaces)))
    content = msgspec.json.encode(Kept(plan.container_id, kind, agent.state(), first, tuple(interfaces), addresses))
    if len(content) > MOST_KNOWN_BYTES:
        raise Conflict("the machine could not be kept", "too much of what it said waits to be read", "read it, and try again")
    os.pwrite(known, content, 0)


def _settle(agent: Agent) -> None:
    """Nothing is on its way to the guest. tcp(7) has SIOCOUTQ, which unix sockets have too: what the other side has not read."""
    deadline = time.monotonic() + _QUIET_S
    while True:
        agent.flush()
        (unread,) = struct.unpack("i", fcntl.ioctl(agent.fileno(), termios.TIOCOUTQ, bytes(4)))
        if not unread and not agent.wants_to_write:
            return
        if time.monotonic() > deadline:
            raise Conflict("the machine could not be kept", "its guest takes no input", "try again in a moment")
        time.sleep(_LOOK_S)


def _listen(control: Control, agent: Agent) -> None:
    """Take what the guest said until it stood still."""
    for _ in range(3):
        control.execute("query-status")
        before = -1
        while before != (before := agent.received_bytes):
            if not agent.receive():
                raise BulleError("the machine could not be kept", "it ended", "")


def _addresses(plan: RunPlan, number: int) -> tuple[str, ...]:
    if plan.network.mode != "own":
        return ()
    next_to_it = (guest.OWN_NEXT_TO_IT,) if number == 0 else ()
    return (*plan.network.attachments[number].addresses, *next_to_it)


def renewal(
    plan: RunPlan, files: guest.Files, kept: Kept, macs: Sequence[str], clock_ns: int, entropy: bytes, machine_id: str = ""
) -> list[Step]:
    """What a machine that goes on is told, so that it is the container of this plan: each name that another one had is replaced.

    ``machine_id`` is for a system that has one, and was another container's. machine-id(5)
    """
    steps: list[Step] = [
        ("clock", str(clock_ns // 10**9), str(clock_ns % 10**9)),
        ("entropy", entropy.hex()),
        *(("write", f"/files/{name}", content, "create") for name, content in files.contents.items()),
        ("hostname", plan.hostname),
        *([("?machine-id", machine_id)] if machine_id else []),
    ]
    for name, addresses in zip(kept.interfaces, kept.addresses, strict=True):
        steps += [("link", name, "down"), *(("?address", name, address, "remove") for address in addresses)]
    if plan.network.mode == "own":
        interfaces = [
            guest.Interface(name, one.interface, one.addresses, one.gateways, one.mtu, mac)
            for name, one, mac in zip(kept.interfaces, plan.network.attachments, macs, strict=True)
        ]
        steps += guest.network_steps(interfaces, asks_host=True)
    elif plan.network.mode == "user":
        steps.append(("link", kept.interfaces[0], "up"))
        steps.append(("route", kept.interfaces[0], "10.0.2.2"))
    return steps
