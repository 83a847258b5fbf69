"""What executes a guest's instructions: the processor itself under the host's kernel (KVM), or QEMU, which translates them (TCG).

/dev/kvm proves nothing: inside some clouds' machines it is there and interprets every instruction, many times slower than QEMU. So a guest of a few
instructions is timed, once a boot. The result is data, with the reason for what is not usable; called by the driver and by ``bulle doctor``.
"""

from __future__ import annotations

import os
import platform
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from bulle.errors import InvalidInput, Unavailable
from bulle.isolation.microvm.remembered import remembered
from bulle.linux import fork, kvm, process, timestamp_counter

_SLOWEST_NS = 20.0
"""A turn of the loop takes some 0.5 ns on a processor, 3 ns in QEMU's translation, and 500 ns and more where it is interpreted."""
_PATIENCE_S = 0.1
_MEND = "enable virtualization in the firmware, or in the settings of the machine that this one runs in, and load the module kvm_intel or kvm_amd"


class Kvm(msgspec.Struct, frozen=True):
    """Whether KVM is worth using: ``reason`` says why not (empty when it is), ``mend`` what would change that."""

    reason: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Accelerator:
    """What a guest of one architecture runs on: ``name`` is QEMU's word.

    ``hypervisor`` is ``hosted`` (the host's kernel is the hypervisor, QEMU a process of it) or ``emulating`` (QEMU is all of it; the guest's
    instructions never run as such). ``reason`` says why it is not KVM. ``host_tsc_khz`` is what an emulated x86 machine is told, 0 where unknown.
    """

    name: Literal["kvm", "tcg"]
    hypervisor: Literal["hosted", "emulating"]
    reason: str = ""
    host_tsc_khz: int = 0


def choose(architecture: str, wanted: str = "", cache: Path | None = None) -> Accelerator:
    """The fastest for a guest of that architecture (as uname(1) says it), or the one that is wanted (``kvm``, ``tcg``).

    ``cache`` (a directory, host path) keeps what was measured until the next boot. Raises InvalidInput, and Unavailable where KVM is wanted and is
    not usable.
    """
    if wanted not in ("", "kvm", "tcg"):
        raise InvalidInput(f"there is no accelerator {wanted!r}", "", "say kvm or tcg")
    found = Kvm("it was not asked for") if wanted == "tcg" else probe_kvm(architecture, cache)
    if not found.reason:
        return Accelerator("kvm", "hosted")
    if wanted == "kvm":
        raise Unavailable("KVM cannot be used", found.reason, found.mend)
    same = architecture == platform.machine() == "x86_64"
    return Accelerator("tcg", "emulating", found.reason, timestamp_counter.frequency_khz() if same else 0)


def probe_kvm(architecture: str, cache: Path | None = None) -> Kvm:
    """Whether KVM can run guests of that architecture here, for this user, at full speed."""
    if architecture != platform.machine():
        return Kvm(f"the processor is {platform.machine()}, the guest's {architecture}", "use the default, tcg")
    try:
        os.close(os.open(kvm.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Kvm(f"there is no {kvm.DEVICE}", _MEND)
    except PermissionError:
        return Kvm(f"this user may not open {kvm.DEVICE}", "add the user to the group kvm")
    except OSError as error:
        return Kvm(f"{kvm.DEVICE} cannot be opened: {error.strerror}", _MEND)
    return remembered(cache, f"kvm-{process.boot_id()}.json", Kvm, _measured, "kvm-*.json")


def _measured() -> Kvm:
    """Run the loop in a process of its own, which is killed if it does not come back: a broken hypervisor must hang nobody."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = fork.fork()
    if pid == 0:
        _report(writing)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], _PATIENCE_S)
        answer = os.read(reading, 4096) if ready else b""
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not answer:
        return Kvm(f"a guest of a few instructions was not done after {_PATIENCE_S} s: it is interpreted", _MEND)
    return msgspec.json.decode(answer, type=Kvm)


def _report(writing: int) -> None:
    """What the child does: measure, say it, end."""
    found = Kvm("its interface cannot be used")
    try:
        took = kvm.iteration_ns()
        found = Kvm() if took < _SLOWEST_NS else Kvm(f"it interprets a guest's instructions ({took:.0f} ns for a turn of a loop)", _MEND)
    except OSError as error:
        found = Kvm(f"{kvm.DEVICE} cannot make a machine: {error.strerror or error}", _MEND)
    finally:
        os.write(writing, msgspec.json.encode(found))
        os._exit(0)
