"""What a level shares with the host: what a process sees inside, compared with what one sees on the bare host.

Two processes have the same kernel when they read the same boot_id; then the numbers of their namespaces can be compared (each kernel numbers its
own). What cannot be seen inside (there is no /proc) is ``unknown``. namespaces(7), proc_sys_kernel(5)
"""

from __future__ import annotations

from collections.abc import Sequence

from bulle.engine.gauge import REFUSED
from bulle.linux.syscall_numbers import ABIS, numbers
from bulle.model.comparison import Seen, Sharing, SystemCalls

# What a person calls it, and the namespace that decides it.
_DECIDED_BY = {"processes": "pid", "network": "net", "users": "user", "host name": "uts", "messages and shared memory": "ipc", "mounts": "mnt"}


def seen(facts: Sequence[tuple[str, str]], host: Seen | None = None, host_devices: str = "") -> Seen:
    """What the gauge's answer to ``facts`` says; ``host_devices`` is what the one on the bare host said of devices."""
    fields = {name: value.strip() for name, value in facts if name != "namespace"}
    namespaces = dict(value.partition(":")[::2] for name, value in facts if name == "namespace")
    devices, hosts = set(fields.get("devices", "").split()), set(host_devices.split())
    same_kernel = host is None or (fields.get("boot", "") == host.boot_id)
    return Seen(
        release=fields.get("release", ""),
        version=fields.get("version", ""),
        machine=fields.get("machine", ""),
        boot_id=fields.get("boot", ""),
        root=fields.get("root", ""),
        namespaces={name: inode.strip("[]") for name, inode in namespaces.items()},
        processes=int(fields.get("processes", "0")),
        devices=len(devices),
        host_devices=len(devices & hosts) if same_kernel else 0,
    )


def shared(inside: Seen, host: Seen) -> dict[str, Sharing]:
    """What is shared, in words."""
    kernel = _kernel(inside, host)
    found: dict[str, Sharing] = {"kernel": kernel}
    found["files"] = "own" if kernel == "own" else _compared(inside.root, host.root)
    for word, name in _DECIDED_BY.items():
        found[word] = "own" if kernel == "own" else _compared(inside.namespaces.get(name, ""), host.namespaces.get(name, ""))
    return found


def _kernel(inside: Seen, host: Seen) -> Sharing:
    if inside.boot_id and host.boot_id:
        return "shared" if inside.boot_id == host.boot_id else "own"
    # Without /proc: another release or build is another kernel; the same one may be the same, or its twin.
    return "own" if (inside.release, inside.version) != (host.release, host.version) else "unknown"


def _compared(inside: str, host: str) -> Sharing:
    return "unknown" if not inside or not host else "shared" if inside == host else "own"


def system_calls(answer: str, machine: str, host_answer: str, host_machine: str) -> SystemCalls:
    """How many calls reached a kernel, and which do on the bare host only. ``machine`` is uname's on each side, which says what numbers mean."""
    here, there = _outcomes(answer, machine), _outcomes(host_answer, host_machine)
    reached = {name for name, outcome in here.items() if outcome not in REFUSED}
    refused = {name for name in here.keys() - reached if there.get(name, ".") not in REFUSED}
    return SystemCalls(len(reached), tuple(sorted(refused)))


def _outcomes(answer: str, machine: str) -> dict[str, str]:
    """By name."""
    return {name: answer[number] for name, number in numbers(machine).items() if number < len(answer)} if machine in ABIS else {}
