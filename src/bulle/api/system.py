"""Ping, version, info, events, disk usage; and what a daemon without plugins and swarm answers when it is asked for them."""

from __future__ import annotations

import os
import platform
import time
from datetime import datetime
from typing import Any

import msgspec

from bulle.api.call import Call
from bulle.api.failures import ApiError
from bulle.api.routing import NEWEST, OLDEST, Route, shown
from bulle.api.service import Service
from bulle.engine.events import FILTER_KEYS, accepts, event_document
from bulle.model.moments import NANOSECONDS, parse_time_ns

_NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
_EVENT_KEYS = (*FILTER_KEYS, "config", "daemon", "node", "plugin", "secret", "service")
_LOOK_EVERY_S = 1.0


async def ping(service: Service, call: Call) -> None:
    """Say that the server is there."""
    headers = [("Builder-Version", "1"), ("Cache-Control", "no-cache, no-store, must-revalidate"), ("Pragma", "no-cache"), ("Swarm", "inactive")]
    await call.answer_text("" if call.method == "HEAD" else "OK", headers=headers)


async def version(service: Service, call: Call) -> None:
    """Say versions."""
    found = await service.run(service.engine.version)
    part = found["Server"]
    details = {key: part[key] for key in ("Arch", "Os", "KernelVersion", "PythonVersion")}
    details |= {"ApiVersion": shown(NEWEST), "MinAPIVersion": shown(OLDEST), "Experimental": "false"}
    await call.answer(
        {
            "Platform": {"Name": "Bulle"},
            "Components": [{"Name": "Engine", "Version": found["Version"], "Details": details}],
            "Version": found["Version"],
            "ApiVersion": shown(NEWEST),
            "MinAPIVersion": shown(OLDEST),
            "GitCommit": "",
            "GoVersion": "",
            "Os": part["Os"],
            "Arch": part["Arch"],
            "KernelVersion": part["KernelVersion"],
            "PythonVersion": part["PythonVersion"],
            "BuildTime": "",
        }
    )


def _info(service: Service) -> dict[str, Any]:
    found = service.engine.info()
    backend = found["LayerBackend"]
    limits = dict.fromkeys(("MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit"), True)
    return found | limits | {
        "ID": str(service.engine.home),
        "DockerRootDir": found["BulleRootDir"],
        "DriverStatus": [["Layers", backend]],
        "Plugins": {
            "Volume": ["local"], "Network": ["bridge", "host", "macvlan", "null"], "Authorization": None,
            "Log": ["json-file", "journald", "local", "none"],
        },
        "OomKillDisable": False,
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": len(os.listdir("/proc/self/fd")),
        "NGoroutines": service.threads.count,
        "SystemTime": datetime.now().astimezone().isoformat(),
        "CgroupDriver": "cgroupfs",
        "NEventsListener": len(service.journal.subscriptions),
        "OSVersion": platform.release(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": []},
        "GenericResources": None,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": [],
        "ExperimentalBuild": False,
        "Runtimes": {level: {"path": level} for level in found["IsolationLevels"]},
        "DefaultRuntime": "container",
        "Isolation": "",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": False, "Error": "", "RemoteManagers": None},
        "LiveRestoreEnabled": True,
        "InitBinary": "bulle-init",
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns", *(["name=rootless"] if found["Rootless"] else [])],
        "Warnings": [],
    }  # fmt: skip


async def info(service: Service, call: Call) -> None:
    """Show the home and the machine in numbers."""
    await call.answer(await service.run(lambda: _info(service)))


class EventsQuery(msgspec.Struct):
    """Between which moments."""

    since: str = ""
    until: str = ""


async def events(service: Service, call: Call) -> None:
    """Show what happens, and what has happened."""
    query, filters = call.parameters(EventsQuery), call.filters()
    since_ns, until_ns = (parse_time_ns(text) if text else 0 for text in (query.since, query.until))
    others = [key for key in filters if key in _EVENT_KEYS and key not in FILTER_KEYS]
    test = accepts({key: values for key, values in filters.items() if key not in others})
    if since_ns and until_ns and since_ns > until_ns:
        raise ApiError(400, "`since` time cannot be after `until` time")
    with service.journal.subscribe() as subscription:
        last_ns = 0
        await call.begin()
        if since_ns or until_ns:
            known = await service.run(lambda: list(service.engine.events(since_ns=since_ns, until_ns=until_ns, follow=False)))
            for event in known:
                last_ns = event.time_ns
                if not others and test(event):
                    await call.write(msgspec.json.encode(event_document(event)) + b"\n")
        while not until_ns or time.time_ns() < until_ns:
            wait_s = min(_LOOK_EVERY_S, (until_ns - time.time_ns()) / NANOSECONDS) if until_ns else None
            found = await subscription.next(wait_s)
            if found is None and subscription.overrun:
                break
            if found is not None and found.time_ns > last_ns and not others and test(found) and not 0 < until_ns < found.time_ns:
                await call.write(msgspec.json.encode(event_document(found)) + b"\n")
    await call.finish()


async def no_swarm(service: Service, call: Call, **_names: str) -> None:
    """Say that this is no node of a swarm."""
    raise ApiError(503, _NO_SWARM)


async def no_plugins(service: Service, call: Call) -> None:
    """List plugins: there are none."""
    await call.answer([])


async def no_plugin(service: Service, call: Call, name: str, **_names: str) -> None:
    """Say that a plugin is not there."""
    raise ApiError(404, f'plugin "{name}" not found')


_SWARM = ("swarm", "nodes", "services", "tasks", "secrets", "configs")
ROUTES = (
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/events", events, EventsQuery, filters=True),
    *(Route(method, f"/{kind}", no_swarm) for kind in _SWARM for method in ("GET", "POST")),
    *(Route(method, f"/{kind}/{{path...}}", no_swarm) for kind in _SWARM for method in ("GET", "POST", "DELETE")),
    Route("GET", "/plugins", no_plugins),
    Route("GET", "/plugins/{name}/json", no_plugin),
)
