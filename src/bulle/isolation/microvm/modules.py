"""The modules of a guest's kernel: which files are needed so that some can be loaded, and in which order.

Called when an initial ramdisk is made. Nothing depends on what depmod(8) writes, which a package that was only unpacked does not have: what a module
needs stands in its own section ``.modinfo``, what needs no file in ``modules.builtin``. kmod(8), modules.builtin in Linux documentation kbuild.rst
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bulle.errors import BulleError, Unavailable
from bulle.isolation.microvm.kernel_image import decompressed

_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
_SIGNATURE_END = b"~Module signature appended~\n"
_SIGNATURE_INFO_BYTES = 12  # struct module_signature, linux/module_signature.h


@dataclass(frozen=True)
class Module:
    """One module, uncompressed and without its signature, as it is loaded; ``name`` with underscores."""

    name: str
    content: bytes


class ModuleTree:
    """A directory such as ``/lib/modules/RELEASE`` (a host path)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {_module_name(path): path for path in _files(directory)}
        self._built_in = {_module_name(line) for line in _lines(directory / "modules.builtin")}

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those that are neither there nor built into the kernel."""
        return [name for name in names if name not in self._built_in and name not in self._files]

    def is_file(self, name: str) -> bool:
        """Whether it is a module, which can be loaded at any time, and not a part of the kernel."""
        return name in self._files and name not in self._built_in

    def identity(self, names: Iterable[str]) -> bytes:
        """What tells whether these modules are the same as another time, without reading them."""
        found = []
        for name in names:
            path = self._files.get(name)
            status = os.stat(self.directory / path) if path else None
            found.append(f"{name} {path} {status and (status.st_size, status.st_mtime_ns)}")
        return "\n".join([str(self.directory), *found]).encode()

    def load_order(self, names: Iterable[str]) -> list[Module]:
        """These modules and all that they need, each after what it needs, without what is built in. Raises Unavailable for one that is missing."""
        order: dict[str, Module] = {}
        for name in names:
            self._place(name, order, ())
        return list(order.values())

    def _place(self, name: str, order: dict[str, Module], waiting: tuple[str, ...]) -> None:
        if name in order or name in self._built_in:
            return
        path = self._files.get(name)
        if path is None or name in waiting:
            needed = f", which {waiting[-1]} needs" if waiting else ""
            raise Unavailable(
                f"the kernel in {self.directory} cannot be a guest's",
                f"it has no module {name}{needed}",
                "choose another kernel, such as Debian's linux-image-cloud",
            )
        content = self._read(self.directory / path)
        for other in _needs(content):
            self._place(other, order, (*waiting, name))
        order[name] = Module(name, content)

    def _read(self, path: Path) -> bytes:
        try:
            raw = path.read_bytes()
            return without_signature(raw if path.suffix == ".ko" else decompressed(raw))
        except OSError as error:
            raise Unavailable(f"the module {path} cannot be read", error.strerror or str(error), "") from error
        except ValueError as error:
            raise BulleError(f"the module {path} cannot be used", str(error), "install the kernel's package again") from error


def _module_name(path: str) -> str:
    return os.path.basename(path).split(".", 1)[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _files(directory: Path) -> list[str]:
    """Every module below the directory, by relative path; what administrators put into ``updates`` hides the kernel's own."""
    listed = [line.partition(":")[0] for line in _lines(directory / "modules.dep")]
    if not listed:
        for where, directories, names in os.walk(directory):
            directories.sort()
            listed += [os.path.relpath(os.path.join(where, name), directory) for name in sorted(names) if name.endswith(_SUFFIXES)]
    return sorted(listed, key=lambda path: path.startswith("updates/"))


def without_signature(module: bytes) -> bytes:
    """A module as it was before it was signed: a guest trusts its initial ramdisk, and checking costs its emulated processor much."""
    if not module.endswith(_SIGNATURE_END):
        return module
    end = len(module) - len(_SIGNATURE_END)
    (length,) = struct.unpack_from(">I", module, end - 4)
    return module[: end - _SIGNATURE_INFO_BYTES - length]


def _needs(module: bytes) -> list[str]:
    for entry in _section(module, b".modinfo").split(b"\0"):
        if entry.startswith(b"depends="):
            return [name.replace("-", "_") for name in entry[8:].decode("ascii", "replace").split(",") if name]
    return []


def _section(elf: bytes, wanted: bytes) -> bytes:
    """The content of a section of a 64-bit little-endian ELF file, empty where there is none. elf(5)"""
    try:
        table, size, count, names_index = struct.unpack_from("<Q10xHHH", elf, 40)
        headers = [struct.unpack_from("<IIQQQQ", elf, table + number * size) for number in range(count)]
        names = headers[names_index][4]
        for name, _, _, _, offset, length in headers:
            if elf[names + name : names + name + len(wanted) + 1] == wanted + b"\0":
                return elf[offset : offset + length]
    except (struct.error, IndexError) as error:
        raise ValueError(f"it is no module ({error})") from error
    return b""
