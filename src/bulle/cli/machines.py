"""``bulle vm``: machines with a system of their own, from a disk that another hypervisor exported, or an installer's CD-ROM. The usual verbs do
the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from bulle.cli import human
from bulle.cli.network_flags import NETWORK_FLAGS, network_options_from
from bulle.cli.option_types import PLATFORM, Choice, HostPath, NanoCpus, Size, Suggestion, Text, Whole, complete_containers, complete_images
from bulle.cli.progress import progress_on_terminal
from bulle.cli.session import Session, write
from bulle.cli.verb import WrongValue, verb
from bulle.engine import disk_images, whole_machines
from bulle.errors import InvalidInput
from bulle.model.container import WholeOptions
from bulle.registry.progress import Progress

_POLICY = Suggestion("policy", "no", "on-failure", "always", "unless-stopped")


@verb("import", "DISK NAME")
@click.argument("disk", type=HostPath())
@click.argument("name", type=Text())
@click.option("--format", "form", type=Choice("qcow2", "raw", "vmdk", "vdi", "vhdx", "ova"), default=None, help="What the file is, where it says not")
@click.option("--platform", type=PLATFORM, default="", help="Set platform of the image")
@click.pass_obj
def import_disk(session: Session, disk: str, name: str, form: str | None, platform: str) -> int:
    """Make an image of a disk (qcow2, raw, VMDK, VDI, VHDX, OVA)."""
    with progress_on_terminal() as report:

        def tell(done: int, size: int) -> None:
            if report is not None:
                report(Progress("step", os.path.basename(disk), done, size, "converting"))

        image = disk_images.import_disk(session.engine.store, disk, name, format=form or "", platform=platform, progress=tell)
    write(image.id + "\n")
    return 0


@verb("create", "NAME")
@click.argument("name", type=Text())
@click.option("--disk", type=Size(), help="Size of its disk (default: the image's, else 10g)")
@click.option("--image", type=Text("image"), default="", shell_complete=complete_images, help="Image whose disk it begins with (see bulle vm import)")
@click.option("--cdrom", type=HostPath(), default="", help="ISO file in its CD-ROM drive")
@click.option("-m", "--memory", type=Size(), help="Its memory (default 1g)")
@click.option("--cpus", type=NanoCpus(), help="Number of its processors (default 1)")
@click.option("--firmware", type=Choice("bios", "uefi"), default=None, help="What starts its boot loader (default bios, on arm64 uefi)")
@click.option("--boot", type=Text("list"), default="", help="What it boots from, in this order (disk, cdrom, network, or an http:// or tftp:// URL)")
@click.option("--vnc", is_flag=True, help="Give it a screen, shown as VNC on a socket in its directory (see inspect)")
@click.option("--user", type=Text(), default="", help="User that cloud-init makes in it")
@click.option("--ssh-key", multiple=True, type=Text("key"), help="Public key, or file of one, with which that user may log in")
@click.option("--password-hash", type=Text(), default="", help="Password of that user as crypt(5) keeps it (mkpasswd makes one)")
@click.option("--run", "commands", multiple=True, type=Text("command"), help="Shell command that cloud-init executes at the first boot")
@click.option("--user-data", type=HostPath(), help="File that cloud-init gets, in place of all that")
@click.option("-h", "--hostname", type=Text(), default="", help="Its host name")
@click.option("--platform", type=PLATFORM, default="", help="Its processor")
@click.option("--accel", type=Choice("auto", "kvm", "tcg"), help="What runs its processors (auto, kvm, tcg)")
@click.option("--restart", type=_POLICY, help="Restart policy to apply when it switches itself off (no, on-failure[:n], always, unless-stopped)")
@click.option("--stop-timeout", type=Whole(-1), default=60, help="Seconds that it has to shut down (default 60)")
@click.option("-l", "--label", multiple=True, type=Text("list"), help="Set meta data on it")
@click.option("--rm", "auto_remove", is_flag=True, help="Remove it, and its disk, when it switches itself off")
@click.option("--pull", type=Choice("always", "missing", "never"), default="missing", help="Pull image before creating")
@click.option("--dry-run", is_flag=True, help="Print the plan as JSON, and make nothing")
@click.pass_obj
def create(session: Session, /, name: str, image: str, **flags: Any) -> int:
    """Create a machine with a system of its own; `bulle start` boots it."""
    try:
        options = whole_machines.options_of(_asked(flags), image, name=name, **_given(flags))
    except InvalidInput as error:
        raise WrongValue(*error.args) from error
    containers = session.engine.containers
    write((containers.plan(options).describe() if flags["dry_run"] else containers.create(options).id) + "\n")
    return 0


for _flag in reversed(NETWORK_FLAGS):
    create = _flag(create)


@verb("resize", "NAME SIZE")
@click.argument("name", shell_complete=complete_containers)
@click.argument("size", type=Text())
@click.pass_obj
def resize(session: Session, name: str, size: str) -> int:
    """Make the disk of a stopped machine larger."""
    engine = session.engine
    whole_machines.resize(engine.database, engine.containers.get(name), human.parse_size(size))
    write(f"{name}\n")
    return 0


def _asked(flags: dict[str, Any]) -> WholeOptions:
    return WholeOptions(
        disk_bytes=flags["disk"] or 0,
        cdrom=os.path.abspath(flags["cdrom"]) if flags["cdrom"] else "",
        firmware=flags["firmware"] or "",
        boot=tuple(filter(None, flags["boot"].split(","))),
        vnc=flags["vnc"],
        user=flags["user"],
        ssh_keys=tuple(map(_key, flags["ssh_key"])),
        password_hash=flags["password_hash"],
        run=flags["commands"],
        user_data=whole_machines.read_user_data(flags["user_data"]) if flags["user_data"] else "",
    )


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    labels: Sequence[str] = flags["label"]
    return {
        "hostname": flags["hostname"],
        "memory_bytes": flags["memory"] or 0,
        "nano_cpus": flags["cpus"] or 0,
        "platform": flags["platform"],
        "accelerator": "" if flags["accel"] in (None, "auto") else flags["accel"],
        "restart_policy": flags["restart"] or "",
        "stop_timeout_s": flags["stop_timeout"],
        "labels": {key: value for key, _, value in (one.partition("=") for one in labels)},
        "auto_remove": flags["auto_remove"],
        "pull": flags["pull"],
        **network_options_from(flags),
    }


def _key(text: str) -> str:
    """A key, or the file that it is in."""
    if " " in text.strip():
        return text.strip()
    return whole_machines.read_user_data(text).strip()
