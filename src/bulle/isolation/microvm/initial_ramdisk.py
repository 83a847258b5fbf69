"""The initial ramdisk of a guest: the agent as ``/init``, the modules that the machine's devices need, and the directories that it mounts on.

A cpio archive in the format that the kernel unpacks into its first root, written here and kept by what is in it. ``/modules`` names the modules, one
path a line, in the order in which the agent loads them. Linux documentation, early-userspace/buffer-format.rst
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bulle.isolation.microvm.kernel import GuestKernel
from bulle.isolation.microvm.modules import ModuleTree

DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "lib", "lib/modules", "layers")
LATER = "/modules-later"
_FORMAT = 2  # part of the key: raise it when the same input gives another archive


def initial_ramdisk(
    kernel: GuestKernel, agent: bytes, modules: Sequence[str], cache: Path, files: Sequence[tuple[str, int, bytes]] = (), later: Sequence[str] = ()
) -> Path:
    """The file (host path, below ``cache``) of a ramdisk with that agent and those modules (names with underscores, as wanted; see GuestKernel).

    ``files`` are more of them: name without the first slash, mode, content. ``later`` are modules that are loaded when the agent is told, those that
    :data:`LATER` names. Raises Unavailable where the kernel lacks a module.
    """
    tree = ModuleTree(kernel.modules) if kernel.modules is not None else None
    key = hashlib.sha256(f"{_FORMAT} {kernel.architecture} {kernel.release}\n".encode())
    key.update(tree.identity([*modules, "later:", *later]) if tree else b"built in")
    for part in (agent, *(f"{name} {mode:o} {len(content)}\n".encode() + content for name, mode, content in files)):
        key.update(hashlib.sha256(part).digest())
    target = cache / f"initrd-{key.hexdigest()[:32]}.cpio"
    if target.exists():
        return target
    loaded = tree.load_order([*modules, *later]) if tree else []
    at_once = {module.name for module in tree.load_order(modules)} if tree else set()
    content = archive(
        [
            *((name, stat.S_IFDIR | 0o755, b"") for name in _directories(name for name, _, _ in files)),
            ("init", stat.S_IFREG | 0o755, agent),
            *((f"lib/modules/{module.name}.ko", stat.S_IFREG | 0o644, module.content) for module in loaded),
            _listed("modules", [module.name for module in loaded if module.name in at_once]),
            _listed(LATER.lstrip("/"), [module.name for module in loaded if module.name not in at_once]),
            *((name, stat.S_IFREG | mode, content) for name, mode, content in files),
        ]
    )
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=cache, prefix="initrd-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def _listed(name: str, modules: Iterable[str]) -> tuple[str, int, bytes]:
    return name, stat.S_IFREG | 0o644, "".join(f"/lib/modules/{module}.ko\n" for module in modules).encode()


def _directories(names: Iterable[str]) -> list[str]:
    """The usual ones, and those that these files stand in, each after the one above."""
    found = dict.fromkeys(DIRECTORIES)
    for name in names:
        parts = name.split("/")[:-1]
        found |= dict.fromkeys("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return list(found)


def archive(members: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive (newc) of root's files: path, mode with type, content; the same bytes every time."""
    parts: list[bytes] = []
    for number, (name, mode, content) in enumerate((*members, ("TRAILER!!!", 0, b"")), 1):
        links = 2 if stat.S_ISDIR(mode) else 1
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        parts += [header, bytes(-len(header) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)
