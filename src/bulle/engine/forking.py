"""``fork``: a second machine from one that runs, with its memory, and everything that runs in it.

The first stands still for as long as it takes to write its memory and copy its disk. Until the second has its row there is nothing of it but work in
progress, which is collected where it was left. Only virtual machines: what is shared with the host's kernel cannot be copied out of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.errors import BulleError, Conflict, Unsupported, from_parts
from bulle.linux.file_content import copy_content
from bulle.model.container import ContainerOptions
from bulle.model.run_plan import RunPlan
from bulle.records.events import publish_container
from bulle.store import Store

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.containers import Containers

_PATIENCE_S = 120.0
_DISK = "disk"


def fork(store: Store, containers: Containers, container: Container, name: str = "") -> Container:
    """Make a second machine from a running one, and have it go on from the same moment, with an identity of its own; ``name`` empty: a random one.

    ``notes`` of what is returned say what is not the same. Raises Unsupported for what is no virtual machine or shows directories of the host,
    Conflict unless it runs.
    """
    if container.plan.guest is None:
        mend = "use --isolation vm, or `bulle commit` for its files"
        raise Unsupported("fork of what runs in it", container.plan.isolation, mend)
    if container.state().status != "running" or container.is_paused():
        state = "paused" if container.is_paused() else "not running"
        raise Conflict(f"container {container.name} is {state}", "", "only a running one can be forked")
    place = store.temporary_directory()
    with kept(container, place), open(f"{container.plan.root.writable_host_path}/disk", "rb") as source, open(place / _DISK, "xb") as target:
        copy_content(source.fileno(), target.fileno())
    publish_container(container.directory, "fork")
    options, notes = _second(container.options, name)
    if container.image_id and containers.image_of(options) != container.image_id:
        options = replace(options, image=container.image_id)  # its name is another's by now

    def fill(plan: RunPlan) -> None:
        from bulle.isolation.microvm.checkpoint import KEPT_NAME, STATE_NAME

        os.rename(place / _DISK, f"{plan.root.writable_host_path}/disk")
        for file in (STATE_NAME, KEPT_NAME):
            os.rename(place / file, f"{plan.state_host_path}/{file}")
        place.rmdir()

    made = containers.create(options, fill=fill)
    made.start()
    made.notes = (*notes, *made.notes)
    return made


@contextmanager
def kept(container: Container, place: Path) -> Iterator[None]:
    """Have a machine kept in a directory (host path), and stand still in the block. Raises BulleError as the machine says it."""
    import socket

    import msgspec

    from bulle.isolation.microvm import sessions
    from bulle.isolation.microvm.checkpoint import KEPT_NAME, STATE_NAME

    with ExitStack() as stack:
        files = [stack.enter_context(open(place / name, "xb")) for name in (STATE_NAME, KEPT_NAME)]
        try:
            line = stack.enter_context(sessions.connect(container.directory))
        except OSError as error:
            raise Conflict(f"container {container.name} is not running", "its machine has ended", "start it first") from error
        line.settimeout(_PATIENCE_S)
        try:
            socket.send_fds(line, [msgspec.json.encode(sessions.KeepRequest())], [file.fileno() for file in files])
            answer = line.recv(1 << 18)
        except OSError as error:
            raise BulleError(f"the machine of {container.name} could not be kept", f"it does not answer ({error})", "see `bulle why`") from error
        word = sessions.words.decode(answer) if answer else sessions.Word("error", parts=("the machine ended", "while it was kept"))
        if word.kind == "error":
            raise from_parts(word.parts)
        yield


def _second(options: ContainerOptions, name: str) -> tuple[ContainerOptions, list[str]]:
    """What is asked of the second: the same, but for what only one can have."""
    notes = []
    ports = tuple(replace(port, host_port=0, last_host_port=0) for port in options.ports)
    if any(port.host_port for port in options.ports):
        notes.append("its ports are published at free ones of this machine: `bulle port` shows them")
    networks = tuple(replace(one, ipv4="", ipv6="", mac="") for one in options.networks)
    if networks != options.networks:
        notes.append("its addresses are others than those that were asked for")
    return replace(options, name=name, ports=ports, networks=networks), notes
