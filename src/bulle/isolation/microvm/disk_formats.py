"""Files that are disks, told apart by their own first bytes: QEMU is never left to guess, because a guest writes what a raw disk begins with.

Called before a file is given to QEMU, which is then told the format. What leads out of the file (a backing file, a file for the data, extents
elsewhere) is refused, and so is a file that ends before what it points at: QEMU would read zeros there. QEMU, docs/interop/qcow2.txt; VMware,
Virtual Disk Format 5.0; Microsoft, MS-VHDX
"""

from __future__ import annotations

import os
import struct
from array import array
from typing import Literal

import msgspec

from bulle.errors import CorruptImage, InvalidInput

DiskFormat = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx"]
FORMATS: tuple[DiskFormat, ...] = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
LARGEST_BYTES = 16 << 40
_QCOW2 = b"QFI\xfb"
_VDI_SIGNATURE = 0xBEDA107F
_KNOWN_FEATURES = 0b11001  # dirty, another compression, subclusters; not: corrupt, a file for the data
_FEATURE_NAMES = {1: "it is marked as corrupt", 2: "its data is in another file"}
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_VMDK_COMPRESSED, _AT_END = 1 << 16, 0xFFFFFFFFFFFFFFFF
_VHDX_BAT = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
_MOST_TABLES = 1 << 22


class Header(msgspec.Struct, frozen=True):
    """What a file says of itself; ``disk_bytes`` is 0 where only QEMU knows."""

    format: DiskFormat
    disk_bytes: int = 0


def look(descriptor: int, name: str, wanted: str = "", *, offset: int = 0, file_bytes: int = -1) -> Header:
    """What a file is (open descriptor; a part of it, where an offset is given). ``wanted`` is what it has to be; ``raw`` is any file.

    Raises InvalidInput for a format that is not known, or leads out of the file, CorruptImage for one that is damaged.
    """
    if wanted and wanted not in FORMATS:
        raise InvalidInput(f"there is no format {wanted!r} of disks", "", f"use one of {', '.join(FORMATS)}")
    size = os.fstat(descriptor).st_size if file_bytes < 0 else file_bytes
    file = _File(descriptor, offset, size, name)
    if size < 512:
        raise CorruptImage(f"{name} is no disk", f"it has {size} bytes", "name another file")
    found = _format_of(file)
    if wanted and wanted not in ("raw", found):
        raise InvalidInput(f"{name} is not in the format {wanted}", f"it looks like {found}", "leave --format out, or say another")
    kind = wanted or found
    disk_bytes = {"qcow2": _qcow2, "vmdk": _vmdk, "vdi": _vdi, "vhdx": _vhdx}[kind](file) if kind != "raw" else size
    if disk_bytes > LARGEST_BYTES:
        raise InvalidInput(f"{name} is a disk of {disk_bytes >> 40} TiB", f"{LARGEST_BYTES >> 40} TiB is the most", "use a smaller one")
    return Header(kind, disk_bytes)


class _File:
    """A part of a file; what is beyond its end is a damage."""

    def __init__(self, descriptor: int, offset: int, size: int, name: str) -> None:
        self._descriptor, self._offset, self.size, self.name = descriptor, offset, size, name

    def read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, self._offset + offset) if 0 <= offset <= self.size - count else b""
        if len(data) != count:
            raise self.damaged("it ends too early")
        return data

    def unpack(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(form, self.read(offset, struct.calcsize(form)))

    def table(self, offset: int, count: int, code: str, *, big: bool) -> array[int]:
        found = array(code, self.read(offset, count * array(code).itemsize))
        if big:
            found.byteswap()
        return found

    def require(self, end: int) -> None:
        if end > self.size:
            raise self.damaged("it ends too early")

    def damaged(self, why: str) -> CorruptImage:
        return CorruptImage(f"{self.name} is damaged", why, "copy or export it again")


def _format_of(file: _File) -> DiskFormat:
    head = file.read(0, 512)
    if head.startswith(_QCOW2):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD", b"# Disk DescriptorFile")):
        return "vmdk"
    if struct.unpack_from("<I", head, 64)[0] == _VDI_SIGNATURE:
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith((b"conectix", b"QED\0", b"Parallels", b"WithoutFreSpac")) or (file.read(file.size - 512, 8) == b"conectix"):
        mend = f"convert it to one of {', '.join(FORMATS)}; say --format raw if it is just bytes"
        raise InvalidInput(f"the format of {file.name} is not known", "", mend)
    return "raw"


def _qcow2(file: _File) -> int:
    version, backing, _length, bits, size, encrypted, entries, table = file.unpack(">IQIIQIIQ", 4)
    features = file.unpack(">Q", 72)[0] if version == 3 else 0
    if version not in (2, 3) or not 9 <= bits <= 21:
        raise file.damaged("its header makes no sense")
    if backing:
        raise InvalidInput(f"{file.name} stands on another file", "a qcow2 with a backing file is not whole", "make one of it: qemu-img convert")
    if encrypted:
        raise InvalidInput(f"{file.name} is encrypted", "", "decrypt it first: qemu-img convert")
    if unknown := features & ~_KNOWN_FEATURES:
        bit = (unknown & -unknown).bit_length() - 1
        raise InvalidInput(f"{file.name} cannot be used", _FEATURE_NAMES.get(bit, f"it has a feature that is not known ({bit})"), "convert it")
    entry_bytes = 16 if features & 16 else 8
    of_table = (1 << bits) // entry_bytes
    if entries > _MOST_TABLES or size > entries * of_table << bits:
        raise file.damaged("its header makes no sense")
    for entry in file.table(table, entries, "Q", big=True):
        if not entry & _OFFSET:
            continue
        found = file.table(entry & _OFFSET, of_table * (entry_bytes // 8), "Q", big=True)
        shift = 62 - (bits - 8)
        for one in found[:: entry_bytes // 8]:
            if one & _COMPRESSED:
                file.require(one & ((1 << shift) - 1))
            elif one & _OFFSET:
                file.require((one & _OFFSET) + 1)
    return size


def _vdi(file: _File) -> int:
    kind, = file.unpack("<I", 76)
    blocks_at, data_at = file.unpack("<II", 340)
    size, block, _extra, blocks, allocated = file.unpack("<QIIII", 368)
    if kind not in (1, 2):
        raise InvalidInput(f"{file.name} stands on another file", "a VDI that holds differences is not whole", "export the machine again")
    if block < 512 or blocks > _MOST_TABLES or size > blocks * block or blocks_at > file.size:
        raise file.damaged("its header makes no sense")
    file.require(data_at + allocated * block - block + 1 if allocated else data_at)
    return size


def _vmdk(file: _File) -> int:
    if file.read(0, 4) != b"KDMV":
        why = "it names other files, or is of an old kind"
        raise InvalidInput(f"{file.name} is no VMDK that stands alone", why, "export the machine as OVA, or the disk as one file")
    _version, flags, capacity, grain, at, length, per_table, _redundant, tables = file.unpack("<IIQQQQIQQ", 4)
    if not capacity:  # then the text inside says where the data is
        raise file.damaged("its header makes no sense")
    if tables == _AT_END:  # a stream: its header comes again at the end
        footer = file.read(file.size - 1024, 512)
        if footer[:4] != b"KDMV":
            raise file.damaged("it ends too early")
        _version, flags, capacity, grain, _at, _length, per_table, _redundant, tables = struct.unpack_from("<IIQQQQIQQ", footer, 4)
    if not grain or per_table != 512 or capacity * 512 > LARGEST_BYTES:
        raise file.damaged("its header makes no sense")
    if at and length and b"parentCID=ffffffff" not in file.read(at * 512, min(length, 64) * 512).replace(b" ", b""):
        raise InvalidInput(f"{file.name} stands on another file", "a VMDK that holds differences is not whole", "export the machine again")
    count = -(-capacity // (grain * per_table))
    for one in file.table(tables * 512, count, "I", big=False):
        if one:
            file.require((max(file.table(one * 512, per_table, "I", big=False)) + (1 if flags & _VMDK_COMPRESSED else grain)) * 512)
    return capacity * 512


def _vhdx(file: _File) -> int:
    [count] = file.unpack("<I", 0x30008)
    if file.read(0x30000, 4) != b"regi" or count > 2047:
        raise file.damaged("its table of regions makes no sense")
    for number in range(count):
        place = 0x30010 + number * 32
        start, length = file.unpack("<QI", place + 16)
        file.require(start + length)
        if file.read(place, 16) == _VHDX_BAT:
            for one in file.table(start, length // 8, "Q", big=False):
                if one & 7 in (6, 7):
                    file.require((one >> 20 << 20) + 1)
    return 0


def new_qcow2(descriptor: int, disk_bytes: int) -> None:
    """Make an empty qcow2 of a new file. What is not written yet is read from the disk that QEMU is told to lay below it, or is zero."""
    cluster, tables = 1 << 16, LARGEST_BYTES >> 29 << 3  # the table of tables is for the largest disk: so a disk can grow
    used = 3 + tables // cluster
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", _QCOW2, 3, 0, 0, 16, disk_bytes, 0, tables // 8, 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104)
    os.pwrite(descriptor, header, 0)
    os.pwrite(descriptor, struct.pack(">Q", 2 * cluster), cluster)
    os.pwrite(descriptor, struct.pack(f">{used}H", *([1] * used)), 2 * cluster)
    os.ftruncate(descriptor, used * cluster)


def grow_qcow2(descriptor: int, disk_bytes: int) -> None:
    """Have a disk that :func:`new_qcow2` made be larger. Raises InvalidInput where it would be smaller, or too large."""
    [before] = struct.unpack(">Q", os.pread(descriptor, 8, 24))
    if disk_bytes < before:
        raise InvalidInput("a disk cannot be made smaller", f"it has {before} bytes", "give a larger size")
    if disk_bytes > LARGEST_BYTES:
        raise InvalidInput(f"a disk cannot have {disk_bytes} bytes", f"{LARGEST_BYTES >> 40} TiB is the most", "give a smaller size")
    os.pwrite(descriptor, struct.pack(">Q", disk_bytes), 24)
    os.fsync(descriptor)
