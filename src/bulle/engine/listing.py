"""What listings say of containers and images, in Docker's words and in the form of its API."""

from __future__ import annotations

import msgspec

from bulle.engine.container import Container
from bulle.engine.filters import shown_status
from bulle.engine.inspection import image_document
from bulle.errors import InvalidInput
from bulle.model.container import ContainerState
from bulle.model.moments import NANOSECONDS, ago, parse_time_ns
from bulle.store import Image


def status_of(state: ContainerState, *, paused: bool = False) -> str:
    """A state in Docker's words: ``Up 3 minutes``, ``Exited (0) 5 seconds ago``."""
    if state.status == "running" and paused:
        return f"Up {ago(state.started_at_ns).removesuffix(' ago')} (Paused)"
    if state.status == "running":
        health = "" if state.health is None else f" ({'health: starting' if state.health.status == 'starting' else state.health.status})"
        return f"Up {ago(state.started_at_ns).removesuffix(' ago')}{health}"
    if state.status in ("exited", "restarting"):
        return f"{state.status.capitalize()} ({'unknown' if state.exit_code < 0 else state.exit_code}) {ago(state.finished_at_ns)}"
    return {"created": "Created", "dead": "Dead", "removing": "Removal In Progress"}[state.status]


def command_of(container: Container) -> str:
    """What it executes, as a line."""
    return " ".join(f"'{one}'" if position and " " in one else one for position, one in enumerate(container.plan.process.arguments))


def created_ns(image: Image) -> int:
    """When the image was made, as its maker says; else when it came here. Nanoseconds since the epoch."""
    try:
        return parse_time_ns(image.config.created or "")
    except InvalidInput:
        return image.created_at_ns


def container_summary(container: Container, *, sizes: bool = False) -> dict[str, object]:
    """One of Docker's list of containers; with ``sizes`` its files are counted."""
    document, state = container.inspect(sizes=sizes), container.state()
    settings, host = document["NetworkSettings"], document["HostConfig"]
    assert isinstance(settings, dict)
    assert isinstance(host, dict)
    ports = [
        {"IP": port.host_address, "PrivatePort": port.container_port, "PublicPort": port.host_port, "Type": port.protocol}
        for port in container.published_ports()
    ]
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": command_of(container),
        "Created": container.created_at_ns // NANOSECONDS,
        "Ports": ports,
        "Labels": container.options.labels,
        "State": shown_status(container),
        "Status": status_of(state, paused=container.is_paused()),
        "HostConfig": {"NetworkMode": host["NetworkMode"], "Isolation": host["Isolation"]},
        "NetworkSettings": {"Networks": settings["Networks"]},
        "Mounts": document["Mounts"],
    } | ({key: document[key] for key in ("SizeRw", "SizeRootFs")} if sizes else {})


def image_summary(image: Image, *, containers: int = -1, shared_bytes: int = -1) -> dict[str, object]:
    """One of Docker's list of images; -1 where nobody counted."""
    document = image_document(image)
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": document["RepoTags"],
        "RepoDigests": document["RepoDigests"],
        "Created": created_ns(image) // NANOSECONDS,
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "SharedSize": shared_bytes,
        "Labels": (image.config.config and image.config.config.labels) or {},
        "Containers": containers,
        "Descriptor": msgspec.to_builtins(document["Descriptor"]),
    }
