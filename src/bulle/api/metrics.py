"""``/metrics``: the server, the home and what containers use, in Prometheus's text format. It is not Docker's and has no version in its path.

Exposition format 0.0.4: a line for each value, with its labels; names end in their unit.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from bulle.api.call import Call
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine.filters import shown_status
from bulle.engine.measuring import ContainerStatistics, Meter
from bulle.version import VERSION

_CONTENT = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Sample = tuple[Mapping[str, object], float]


async def metrics(service: Service, call: Call) -> None:
    """Show figures for Prometheus."""
    answered = [({"method": method, "path": path, "status": status}, count) for (method, path, status), count in service.requests.items()]
    connections = service.connections
    text = await service.run(lambda: "".join(_families(service, answered, connections)))
    await call.answer_text(text, _CONTENT)


def _families(service: Service, answered: Iterable[Sample], connections: int) -> Iterable[str]:
    engine = service.engine
    containers = [one for one in engine.containers.list(all=True) if one.image_id]
    states = Counter(shown_status(one) for one in containers)
    yield _family("bulle_build_info", "gauge", "The version that serves", [({"version": VERSION}, 1)])
    yield _family("bulle_api_requests_total", "counter", "Requests that were answered", answered)
    yield _family("bulle_api_connections", "gauge", "Clients that are connected", [({}, connections)])
    yield _family("bulle_api_threads", "gauge", "Threads of the server", [({}, threading.active_count())])
    yield _family("bulle_api_open_descriptors", "gauge", "Descriptors that the server has open", [({}, len(os.listdir("/proc/self/fd")))])
    yield _family("bulle_api_memory_bytes", "gauge", "Memory of the server that no other process shares", [({}, _own_memory_bytes())])
    yield _family("bulle_containers", "gauge", "Containers by state", [({"state": state}, count) for state, count in sorted(states.items())])
    yield _family("bulle_images", "gauge", "Images", [({}, len(engine.images.list()))])
    yield _family("bulle_volumes", "gauge", "Volumes", [({}, len(engine.volumes.list()))])
    used = Meter(engine.home).measure([one for one in containers if one.state().status == "running"])
    for name, kind, words, value in _OF_CONTAINERS:
        yield _family(name, kind, words, [({"id": one.id, "name": one.name}, value(one)) for one in used])


def _cpu_seconds(one: ContainerStatistics) -> float:
    return one.cpu_ns / 1e9


_OF_CONTAINERS = (
    ("bulle_container_cpu_seconds_total", "counter", "Processor time of a container", _cpu_seconds),
    ("bulle_container_memory_bytes", "gauge", "Memory of a container", lambda one: one.memory_bytes),
    ("bulle_container_memory_limit_bytes", "gauge", "Most memory of a container", lambda one: one.memory_limit_bytes),
    ("bulle_container_threads", "gauge", "Threads of a container", lambda one: one.pids),
    ("bulle_container_network_received_bytes_total", "counter", "Bytes that a container received", lambda one: one.network_received_bytes),
    ("bulle_container_network_sent_bytes_total", "counter", "Bytes that a container sent", lambda one: one.network_sent_bytes),
    ("bulle_container_block_read_bytes_total", "counter", "Bytes that a container read from disks", lambda one: one.block_read_bytes),
    ("bulle_container_block_written_bytes_total", "counter", "Bytes that a container wrote to disks", lambda one: one.block_written_bytes),
)


def _own_memory_bytes() -> int:
    with open("/proc/self/smaps_rollup", "rb") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Private_"))


def _family(name: str, kind: str, words: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {words}.", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{str(one).translate(_ESCAPES)}"' for key, one in labels.items())
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "\n".join(lines) + "\n"


ROUTES = (Route("GET", "/metrics", metrics, plain=True),)
