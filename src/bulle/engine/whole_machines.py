"""Machines with a system of their own: what was asked of one made into its part of the plan, the words for cloud-init among it; and its disk
made larger.

Everything but :func:`resize` is pure. cloud-init's documentation, "NoCloud" and "Cloud config examples"
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bulle.errors import Conflict, InvalidInput, Unsupported
from bulle.model.container import ContainerOptions, WholeOptions
from bulle.model.run_plan import Guest, ImageDisk, WholeMachine

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.records.database import Database

MEMORY_BYTES = 1 << 30
"""What a whole machine has when nothing is said."""
DISK_BYTES = 10 << 30
"""The disk of a machine without an image for which nothing is said."""
COMMAND = "boot"
"""What listings show in a command's place, with what is booted from."""
_PLACES = ("disk", "cdrom", "network")
_FETCHED = ("http://", "tftp://")
_SMALLEST_DISK_BYTES, _SMALLEST_MEMORY_BYTES, _LARGEST_DISK_BYTES = 1 << 20, 16 << 20, 16 << 40
_MOST_USER_DATA_BYTES = 4 << 20


def options_of(wanted: WholeOptions, image: str = "", **given: Any) -> ContainerOptions:
    """The options of a container that is such a machine; ``given`` are other fields of them."""
    order = _boot(wanted)
    return ContainerOptions(
        image=image, entrypoint=(), command=(COMMAND, *order), isolation="vm", terminal=True, interactive=True, whole=wanted, **given
    )


def whole_guest(options: ContainerOptions, wanted: WholeOptions, disk: ImageDisk | None, architecture: str, identifier: str) -> Guest:
    """The guest of such a machine. Raises InvalidInput."""
    if wanted.firmware not in ("", "bios", "uefi"):
        raise InvalidInput(f"there is no firmware {wanted.firmware!r}", "", "say bios or uefi")
    arm = (architecture or os.uname().machine) == "aarch64"
    if arm and wanted.firmware == "bios":
        raise InvalidInput("machines of arm64 have no BIOS", "", "say --firmware uefi, or leave it out")
    if 0 < options.memory_bytes < _SMALLEST_MEMORY_BYTES:
        raise InvalidInput("that is too little memory for a machine", f"the least is {_SMALLEST_MEMORY_BYTES >> 20} MiB", "give more with --memory")
    size = wanted.disk_bytes or (disk.disk_bytes if disk is not None else DISK_BYTES)
    if disk is not None and size < disk.disk_bytes:
        raise InvalidInput("the disk is too small", f"the image's has {disk.disk_bytes} bytes", "give a larger --disk, or leave it out")
    if not _SMALLEST_DISK_BYTES <= size <= _LARGEST_DISK_BYTES:
        raise InvalidInput(f"a disk cannot have {size} bytes", "", "give --disk a size from 1 MiB to 16 TiB")
    if wanted.cdrom and not os.path.isfile(wanted.cdrom):
        raise InvalidInput(f"{wanted.cdrom} is no file", "", "give --cdrom the path of an ISO")
    return Guest(
        memory_bytes=MEMORY_BYTES,
        disk_bytes=size + -size % 512,
        accelerator=options.accelerator,
        architecture=architecture,
        whole=WholeMachine(
            firmware=wanted.firmware or ("uefi" if arm else "bios"),
            boot=_boot(wanted),  # type: ignore[arg-type]
            boot_url=next((one for one in wanted.boot if "://" in one), ""),
            image=disk,
            cdrom=os.path.abspath(wanted.cdrom) if wanted.cdrom else "",
            seed=_seed(options, wanted, identifier),
            vnc=wanted.vnc,
        ),
    )


def resize(database: Database, container: Container, disk_bytes: int) -> None:
    """Make the disk of a stopped machine larger; the system in it then sees a larger disk, and has to make use of it itself.

    Raises Unsupported for what is no such machine, Conflict for one that runs, InvalidInput for a smaller size.
    """
    from bulle.engine.starting import take_lock
    from bulle.isolation.microvm.whole import grow_disk
    from bulle.records.containers import ContainerRecords

    plan = container.plan
    if plan.guest is None or plan.guest.whole is None:
        raise Unsupported("disk to be made larger in a container", plan.isolation, "give its volumes, or its --storage-opt, another size")
    running = Conflict(f"container {container.name} runs", "its disk is in use", f"stop it first with `bulle stop {container.name}`")
    if container.state().active:
        raise running
    lock = take_lock(container.directory)
    if lock < 0:
        raise running
    try:
        size = disk_bytes + -disk_bytes % 512
        grow_disk(plan, size)
        records = ContainerRecords(database)
        record = records.find(container.id)
        assert record.options.whole is not None
        options = replace(record.options, whole=replace(record.options.whole, disk_bytes=size))
        records.change(record, options, replace(plan, guest=replace(plan.guest, disk_bytes=size)))
    finally:
        os.close(lock)


def _boot(wanted: WholeOptions) -> tuple[str, ...]:
    order = tuple("network" if one.startswith(_FETCHED) and one.isascii() and len(one) < 256 else one for one in wanted.boot)
    if unknown := [one for one in order if one not in _PLACES]:
        raise InvalidInput(f"a machine cannot boot from {unknown[0]!r}", "", f"use {', '.join(_PLACES)}, http://… or tftp://…")
    if len(set(order)) != len(order):
        raise InvalidInput("the boot order names something twice", "", "name each once")
    if "cdrom" in wanted.boot and not wanted.cdrom:
        raise InvalidInput("a machine without a CD-ROM cannot boot from it", "", "give one with --cdrom, or another --boot")
    # A disk that nothing is on yet is passed over by the firmware; one that was installed on meanwhile goes first.
    return order or (("disk", "cdrom") if wanted.cdrom else ("disk",))


def _seed(options: ContainerOptions, wanted: WholeOptions, identifier: str) -> dict[str, str]:
    """The files of the NoCloud disk; none where nothing was asked for."""
    said = (wanted.user, wanted.ssh_keys, wanted.password_hash, wanted.run)
    if wanted.user_data and any(said):
        raise InvalidInput("--user-data excludes --user, --ssh-key, --password-hash and --run", "it says all of it itself", "leave one of them out")
    if not wanted.user_data and not any(said):
        return {}
    if len(wanted.user_data) > _MOST_USER_DATA_BYTES:
        raise InvalidInput("the user data is too large", f"{_MOST_USER_DATA_BYTES >> 20} MiB is the most", "fetch the rest from the machine")
    if any("\n" in one or "\0" in one for one in (wanted.user, *wanted.ssh_keys, wanted.password_hash)):
        raise InvalidInput("a user, key or password hash is one line", "", "give --ssh-key once for each key")
    hostname = options.hostname or identifier[:12]
    meta = f"instance-id: {identifier or hostname}\nlocal-hostname: {hostname}\n"
    return {"meta-data": meta, "user-data": wanted.user_data or _cloud_config(wanted)}


def _cloud_config(wanted: WholeOptions) -> str:
    """JSON in each value, which is YAML too, so that nothing needs another way of quoting."""
    user: dict[str, Any] = {"name": wanted.user or "bulle", "sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash"}
    if wanted.user == "root":
        user = {"name": "root"}
    if wanted.ssh_keys:
        user["ssh_authorized_keys"] = list(wanted.ssh_keys)
    if wanted.password_hash:
        user |= {"lock_passwd": False, "hashed_passwd": wanted.password_hash}
    lines = ["#cloud-config"]
    if wanted.user or wanted.ssh_keys or wanted.password_hash:
        lines.append(f"users: [{json.dumps(user)}]")
    if wanted.user == "root":
        lines.append("disable_root: false")
    if wanted.run:
        lines += ["runcmd:", *(f"- {json.dumps(one)}" for one in wanted.run)]
    return "\n".join(lines) + "\n"


def read_user_data(path: str) -> str:
    """The content of a file (host path) for cloud-init. Raises InvalidInput."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_MOST_USER_DATA_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read", getattr(error, "strerror", None) or "it is no text", "name a file of user data") from error
