"""``fork``: a second machine from one that runs, with its memory, and everything that runs in it.

The first stands still for as long as it takes to write its memory and copy its disk. Until the second has its row there is nothing of it but work in
progress, which is collected where it was left. Only virtual machines: what is shared with the host's kernel cannot be copied out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.engine import kept_machines
from bulle.errors import Unsupported
from bulle.model.container import ContainerOptions
from bulle.model.digest import Digest
from bulle.records.events import publish_container
from bulle.store import Store

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.containers import Containers


def fork(store: Store, containers: Containers, container: Container, name: str = "") -> Container:
    """Make a second machine from a running one, and have it go on from the same moment, with an identity of its own; ``name`` empty: a random one.

    ``notes`` of what is returned say what is not the same. Raises Unsupported for what is no virtual machine or shows directories of the host,
    Conflict unless it runs.
    """
    if container.plan.guest is None:
        mend = "use --isolation vm, or `bulle commit` for its files"
        raise Unsupported("fork of what runs in it", container.plan.isolation, mend)
    kept_machines.require_running(container, "forked")
    place = store.temporary_directory()
    kept_machines.keep(container, place)
    publish_container(container.directory, "fork")
    options, notes = _second(container.options, name)
    if container.image_id and containers.image_of(options) != container.image_id:
        options = replace(options, image=container.image_id)  # its name is another's by now
    layers = [Digest(layer.diff_id) for layer in container.plan.root.layers]  # not the image's alone where it was restored
    made = containers.create(options, layers=layers, fill=lambda plan: kept_machines.put(place, plan))
    place.rmdir()
    made.start()
    made.notes = (*notes, *made.notes)
    return made


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
