"""Emulators of other processors for programs (qemu-user): which there are, where they are installed, which the machine's table already names.

Asked by drivers for a container of another platform, by what makes such images, and by ``doctor``; nothing here runs or registers anything.
elf(5)
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import msgspec

from bulle.errors import Unavailable
from bulle.linux import binary_formats, elf
from bulle.linux.binary_formats import Entry

FLAGS = "POF"
"""Not C: whoever starts a setuid program could tell the emulator by its environment to write files with the program's rights."""

INSTALL = "apt-get install qemu-user-static (on Fedora: dnf install qemu-user-static)"
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# By architecture in Go's words: QEMU's name, EI_CLASS, EI_DATA.
_PROCESSORS = {
    "386": ("i386", 1, 1),
    "amd64": ("x86_64", 2, 1),
    "arm": ("arm", 1, 1),
    "arm64": ("aarch64", 2, 1),
    "loong64": ("loongarch64", 2, 1),
    "mips64le": ("mips64el", 2, 1),
    "ppc64le": ("ppc64le", 2, 1),
    "riscv64": ("riscv64", 2, 1),
    "s390x": ("s390x", 2, 2),
}
_MACHINES = {architecture: machine for machine, architecture in elf.ARCHITECTURES.items()}
_PROGRAM_INTERPRETER = 3
_HEADERS_LIMIT = 128


class Emulator(msgspec.Struct, frozen=True):
    """What runs the programs of ``platform``: the entry that a namespace's own table needs (its interpreter "" where none is installed), and whether
    the machine's own table serves every root already.
    """

    platform: str
    entry: Entry
    registered: bool


def architectures() -> tuple[str, ...]:
    """Every architecture, in Go's words, whose emulator is known here."""
    return tuple(_PROCESSORS)


def find(platform: str) -> Emulator:
    """The emulator for a platform (``linux/arm64``), from PATH or the machine's table. Raises Unavailable, saying what is to be installed."""
    _system, _, rest = platform.partition("/")
    architecture = rest.partition("/")[0]
    if architecture not in _PROCESSORS:
        raise Unavailable(
            f"programs for {platform} cannot be run on this machine", "no emulator of that processor is known", "use an image for another platform"
        )
    name = _PROCESSORS[architecture][0]
    magic, mask = _elf_head(architecture)
    interpreter, dynamic = _installed(name)
    registered = any("F" in entry.flags and entry.matches(magic) for entry in binary_formats.entries())
    if not interpreter and not registered:
        missing = f"{dynamic} needs libraries, which no other root has" if dynamic else f"qemu-{name}-static is not installed"
        why = f"its processor is another, and the emulator {missing}"
        raise Unavailable(f"programs for {platform} cannot be run on this machine", why, f"install it: {INSTALL}")
    return Emulator(platform, Entry(f"qemu-{name}", magic, mask, interpreter, FLAGS), registered)


def _elf_head(architecture: str) -> tuple[bytes, bytes]:
    """The first 20 bytes of its programs and which bits of them count: not the ABI's number, and both kinds of executables."""
    _name, word, order = _PROCESSORS[architecture]
    executable, low = 2, 0xFFFE  # ET_EXEC; with its lowest bit also ET_DYN
    form = "<HH" if order == 1 else ">HH"
    magic = elf.MAGIC + bytes((word, order, 1)) + bytes(9) + struct.pack(form, executable, _MACHINES[architecture])
    return magic, b"\xff" * 7 + b"\0" + b"\xff" * 8 + struct.pack(form, low, 0xFFFF)


def _installed(name: str) -> tuple[str, str]:
    """The path of a static emulator ("" for none), and that of one that is not static."""
    dynamic = ""
    for program in (f"qemu-{name}-static", f"qemu-{name}"):
        for directory in os.environ.get("PATH", _DEFAULT_PATH).split(":"):
            path = f"{directory}/{program}"
            if not directory.startswith("/") or not os.access(path, os.X_OK) or not os.path.isfile(path):
                continue
            if _is_static(path):
                return os.path.realpath(path), ""
            dynamic = dynamic or path
    return "", dynamic


def _is_static(path: str) -> bool:
    """Whether a program needs no loader."""
    with suppress(OSError, struct.error), open(path, "rb") as file:
        head = file.read(64)
        if head[:4] != elf.MAGIC:
            return False
        order = "<" if head[5] == 1 else ">"
        wide = head[4] == 2
        (offset,) = struct.unpack_from(f"{order}Q" if wide else f"{order}I", head, 32 if wide else 28)
        size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
        for number in range(min(count, _HEADERS_LIMIT)):
            file.seek(offset + number * size)
            if struct.unpack(f"{order}I", file.read(4))[0] == _PROGRAM_INTERPRETER:
                return False
        return True
    return False
