"""A disk in another format made a qcow2: by QEMU's own block layer, in the sandbox of a machine that has no processor, no memory and no network.

QEMU gets two descriptors and nothing else, and is told the format; its own filter of system calls holds. Whatever a hostile file does to it
happens to a process that is nobody, in namespaces of its own. Called by whoever imports disks. QEMU's QMP reference, "Block devices"
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bulle.errors import BulleError, CorruptImage, InvalidInput
from bulle.isolation import launch
from bulle.isolation.channel import Channel
from bulle.isolation.microvm import emulator, sandbox, sessions
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.disk_formats import LARGEST_BYTES, new_qcow2
from bulle.isolation.namespaces.driver import SHELL_FLAGS
from bulle.linux import namespaces, user_namespace
from bulle.model.run_plan import IdMapping

_LOOK_S = 0.05
_MEMORY_BYTES = 6 << 30  # addresses, of which QEMU uses few
_MOST_OF_DISK = 0.95
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def convert(
    source: int,
    format: str,
    target: int,
    name: str,
    *,
    part: tuple[int, int] | None = None,
    mappings: tuple[Sequence[IdMapping], Sequence[IdMapping]],
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the disk of an open file, or of a ``part`` of it (offset, bytes), into another, new one, as a qcow2. Returns the disk's size in bytes.

    ``mappings`` are for users and groups of the namespace in which QEMU runs; ``progress`` is told bytes done and bytes in all. Raises
    CorruptImage for a file that QEMU cannot read, InvalidInput, Unavailable.
    """
    found = emulator.find(platform.machine(), cache)
    output = os.memfd_create("converting", os.MFD_CLOEXEC)
    ours, theirs = Channel.pair()
    try:
        pid, pidfd = namespaces.clone3(SHELL_FLAGS)
        if pid == 0:
            with launch.last_act(theirs):
                ours.close()
                _child(theirs, found.program, source, format, target, name, part, output)
        theirs.close()
        try:
            user_namespace.write_maps(pid, *mappings)
            ours.send_descriptors([])
            size = 0
            while (received := ours.receive_report()) is not None:
                size, done = int(received[0].parts[0]), int(received[0].parts[1])
                if progress is not None:
                    progress(done, size)
            return size
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)
    finally:
        ours.close()
        os.close(output)


def _child(channel: Channel, program: str, source: int, format: str, target: int, name: str, part: tuple[int, int] | None, output: int) -> None:
    gc.disable()
    launch.begin_session()
    channel.receive_descriptors()
    launch.hide()
    user_namespace.become_root()
    sessions.close_all_but((channel.fileno(), source, target, output))
    space = os.fstatvfs(target)
    sandbox.enter([], [], [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most := int(space.f_bavail * space.f_frsize * _MOST_OF_DISK), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line, commanded = socket.socketpair()
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-sandbox", _SANDBOX, "-machine", "none", "-accel", "tcg,tb-size=1"]
    words += ["-chardev", f"socket,id=control,fd={commanded.fileno()}", "-mon", "chardev=control,mode=control"]
    for descriptor in (source, target):
        words += ["-add-fd", f"fd={descriptor},set={descriptor}"]
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, before[1]))
    pid = sandbox.start_hypervisor(program, words, (source, target, commanded.fileno()), output)
    resource.setrlimit(resource.RLIMIT_AS, before)
    commanded.close()
    sandbox.give_up_privileges()
    with Control(line).closing() as control:
        try:
            _work(control, channel, source, format, target, name, part)
        except BulleError as error:
            if error.brief.startswith("the hypervisor") and (said := os.pread(output, 300, 0).decode(errors="replace").strip()):
                raise CorruptImage(f"{name} cannot be read", said.splitlines()[-1], "copy or export it again") from error
            raise
    if os.waitpid(pid, 0)[1]:
        raise BulleError(f"{name} could not be converted", "QEMU did not write all of it", "see whether there is space left")
    channel.close()
    os._exit(0)


def _work(control: Control, channel: Channel, source: int, format: str, target: int, name: str, part: tuple[int, int] | None) -> None:
    file: dict[str, Any] = {"driver": "file", "filename": f"/dev/fdset/{source}", "locking": "off", "read-only": True}
    if part is not None:
        file = {"driver": "raw", "offset": part[0], "size": part[1], "read-only": True, "file": file}
    node: dict[str, Any] = {"driver": format, "node-name": "source", "read-only": True, "file": file}
    if format == "qcow2":
        node["backing"] = None
    try:
        control.execute("blockdev-add", **node)
    except BulleError as error:
        raise CorruptImage(f"{name} cannot be read as {format}", error.details.partition(": ")[2], "copy or export it again") from error
    [size] = (one["image"]["virtual-size"] for one in control.execute("query-named-block-nodes") if one.get("node-name") == "source")
    if not 0 < size <= LARGEST_BYTES:
        raise InvalidInput(f"{name} is a disk of {size} bytes", f"{LARGEST_BYTES >> 40} TiB is the most", "use another")
    new_qcow2(target, size)
    written = {"driver": "file", "filename": f"/dev/fdset/{target}", "locking": "off", "discard": "unmap"}
    goal: dict[str, Any] = {"driver": "qcow2", "node-name": "target", "discard": "unmap", "detect-zeroes": "unmap", "file": written}
    control.execute("blockdev-add", **goal)
    work: dict[str, Any] = {"job-id": "work", "device": "source", "target": "target", "sync": "full", "auto-dismiss": False}
    control.execute("blockdev-backup", **work)
    while True:
        [job] = control.execute("query-jobs")
        channel.report("progress", str(size), str(job["current-progress"]))
        if job["status"] == "concluded":
            break
        time.sleep(_LOOK_S)
    if failure := job.get("error"):
        if "space" in failure or "large" in failure:
            raise BulleError(f"{name} could not be converted", failure, "free some space")
        raise CorruptImage(f"{name} cannot be read to its end", failure, "copy or export it again")
    control.execute("quit")
