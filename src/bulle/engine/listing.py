"""What listings say of containers and images, in Docker's words and in the form of its API."""

from __future__ import annotations

import msgspec

from bulle.engine.container import Container
from bulle.engine.inspection import image_document, mount_document
from bulle.engine.network_inspection import network_mode, network_settings, standing_ports
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
    record, state = container.record, container.state()
    paused = state.status == "running" and container.is_paused()
    ports = standing_ports(record, state)
    summary: dict[str, object] = {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": command_of(container),
        "Created": container.created_at_ns // NANOSECONDS,
        "Ports": [
            {"IP": port.host_address, "PrivatePort": port.container_port, "PublicPort": port.host_port, "Type": port.protocol} for port in ports
        ],
        "Labels": container.options.labels,
        "State": "paused" if paused else state.status,
        "Status": status_of(state, paused=paused),
        "HostConfig": {"NetworkMode": network_mode(record), "Isolation": record.plan.isolation},
        "NetworkSettings": {"Networks": network_settings(record, state)["Networks"]},
        "Mounts": [mount_document(mount) for mount in record.plan.mounts],
    }
    if sizes:
        summary["SizeRw"], summary["SizeRootFs"] = container.sizes()
    return summary


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
