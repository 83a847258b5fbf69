"""Images that hold a disk: a file below ``/disk`` in a layer, the convention of KubeVirt's containerDisk, so that registries and archives carry them.

``import_disk`` makes one of a disk of another hypervisor; ``disk_of`` finds the disk in one, where it lies: in the layer's tar, which nothing
unpacks.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bulle.engine import committing, identities
from bulle.errors import CorruptImage, InvalidInput, NotFound
from bulle.isolation.microvm import converting, disk_formats
from bulle.linux import subordinate_ids
from bulle.model.platform import parse_platform
from bulle.model.run_plan import ImageDisk, LayerMount
from bulle.store import Image, Store

if TYPE_CHECKING:
    from typing import BinaryIO

    from bulle.model.run_plan import IdMapping

_DIRECTORY = "disk/"
_OWNER_ID = 107  # KubeVirt's convention: the user whom it runs QEMU as
_MOST_MEMBERS = 100_000
_CHUNK_BYTES = 1 << 20


def import_disk(
    store: Store, path: str, name: str, *, format: str = "", platform: str = "", progress: Callable[[int, int], None] | None = None
) -> Image:
    """Make an image of a disk in a file (host path) of qcow2, raw, VMDK, VDI, VHDX or OVA.

    Raises NotFound, InvalidInput (a format that is not known, a disk that needs other files), CorruptImage, Unavailable, StorageFull.
    """
    reference = committing.parse_target(name)
    if reference is None:
        raise InvalidInput("the image needs a name", "", "give one, such as debian:12")
    parse_platform(platform)
    shown = os.path.basename(path)
    with store.receiving(), _opened(path) as source:
        part, wanted = _part(source, shown, format)
        offset, size = part or (0, -1)
        header = disk_formats.look(source, shown, wanted, offset=offset, file_bytes=size)
        directory = store.temporary_directory()
        try:
            target = os.open(directory / "disk", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                cache = store.home / "cache"
                converting.convert(source, header.format, target, shown, part=part, mappings=_mappings(store.home), cache=cache, progress=progress)
                stream = cast("BinaryIO", _Archive(target, f"{_DIRECTORY}{reference.path.rpartition('/')[2]}.qcow2"))
                comment = f"Imported from {shown} ({header.format})"
                return committing.import_tar(store, stream, shown, reference, message=comment, platform=platform)
            finally:
                os.close(target)
        finally:
            with suppress(OSError):
                os.unlink(directory / "disk")
                os.rmdir(directory)


def disk_of(layers: Sequence[LayerMount], name: str) -> ImageDisk:
    """The disk of an image whose layers (lowest first) these are. Raises NotFound, CorruptImage, InvalidInput."""
    for layer in reversed(layers):
        with tarfile.open(layer.tar_path) as archive:
            found = []
            for number, member in enumerate(archive):
                if number > _MOST_MEMBERS:
                    break
                if member.isreg() and member.name.lstrip("./").startswith(_DIRECTORY) and not os.path.basename(member.name).startswith(".wh."):
                    found.append(member)
        if not found:
            continue
        if len(found) > 1 or found[0].issparse():
            why = f"it has {len(found)} files below /disk" if len(found) > 1 else "it is a sparse file of an archive"
            raise InvalidInput(f"the disk in image {name} cannot be used", why, "use an image with one disk, made with `bulle vm import`")
        return _disk_in(layer.tar_path, found[0], name)
    why = "it has no file below /disk"
    raise NotFound(f"image {name} holds no disk", why, "make one with `bulle vm import`, or run it with `bulle run --isolation vm`")


def _disk_in(tar_path: str, member: tarfile.TarInfo, name: str) -> ImageDisk:
    descriptor = os.open(tar_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = disk_formats.look(descriptor, f"the disk in image {name}", offset=member.offset_data, file_bytes=member.size)
    finally:
        os.close(descriptor)
    if header.format not in ("qcow2", "raw"):
        raise InvalidInput(f"the disk in image {name} is a {header.format}", "", "import it with `bulle vm import`")
    return ImageDisk(tar_path, member.offset_data, member.size, header.format, header.disk_bytes)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidInput
        raise kind(f"{path} cannot be read", os.strerror(error.errno or 0), "name a file that holds a disk") from error
    try:
        if not os.path.isfile(f"/proc/self/fd/{descriptor}"):
            raise InvalidInput(f"{path} is no regular file", "", "name a file that holds a disk")
        yield descriptor
    finally:
        os.close(descriptor)


def _part(source: int, name: str, format: str) -> tuple[tuple[int, int] | None, str]:
    """Where the disk lies in an OVA (offset, bytes), and its format; None and the format that was asked for where the file is a disk itself."""
    if format not in ("", "ova") or (not format and os.pread(source, 5, 257) != b"ustar"):
        return None, format
    try:
        with os.fdopen(os.dup(source), "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            disks = []
            for number, member in enumerate(archive):
                if number > 100:
                    raise InvalidInput(f"{name} is no OVA", "it holds more than 100 files", "name a disk")
                if member.isreg() and member.name.lower().endswith((".vmdk", ".vmdk.gz", ".vhd", ".vhdx", ".img", ".qcow2")):
                    disks.append(member)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise CorruptImage(f"{name} is damaged", str(error), "copy or export it again") from error
    if len(disks) != 1 or not disks[0].name.lower().endswith(".vmdk") or disks[0].issparse():
        found = ", ".join(one.name for one in disks) or "none"
        raise InvalidInput(f"{name} cannot be imported as it is", f"it should hold one VMDK, and holds {found}", "unpack it, and import the disk")
    return (disks[0].offset_data, disks[0].size), "vmdk"


def _mappings(home: Path) -> tuple[Sequence[IdMapping], Sequence[IdMapping]]:
    if os.geteuid() == 0:
        mappings = identities.root_mappings(identities.free_range(home, ()))
        return mappings, mappings
    return subordinate_ids.rootless_mappings()


class _Archive:
    """A tar of one directory and one file in it, to be read from the beginning to the end."""

    def __init__(self, descriptor: int, name: str) -> None:
        size = os.fstat(descriptor).st_size
        self._pieces = self._made(descriptor, name, size)
        self._rest = b""

    def read(self, count: int) -> bytes:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    @staticmethod
    def _made(descriptor: int, name: str, size: int) -> Iterator[bytes]:
        for path, kind, mode, length in ((_DIRECTORY.rstrip("/"), tarfile.DIRTYPE, 0o555, 0), (name, tarfile.REGTYPE, 0o440, size)):
            header = tarfile.TarInfo(path)
            header.type, header.mode, header.size, header.uid, header.gid = kind, mode, length, _OWNER_ID, _OWNER_ID
            yield header.tobuf(tarfile.GNU_FORMAT)
        offset = 0
        while offset < size:
            data = os.pread(descriptor, min(_CHUNK_BYTES, size - offset), offset)
            yield data
            offset += len(data)
        yield bytes(-size % 512 + 1024)
