"""What is in a file that a kernel comes in: its architecture, its release, and the plain image that a machine boots fastest.

Called by :mod:`bulle.isolation.microvm.kernel` once for each kernel; it reads bytes and knows no paths. On x86 a kernel is a bzImage: a stub that
decompresses the payload behind it, which under emulation takes its time. The payload is an ELF file, and one with a PVH entry is booted as it is.
Linux documentation, arch/x86/boot.rst, arch/arm64/booting.rst, arch/riscv/boot-image-header.rst
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Protocol

LARGEST_BYTES = 1 << 30
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_CHUNK_BYTES = 8 << 20
_ELF_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
_PT_NOTE = 4
_PAGE_BYTES = 4096
_XEN_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY, xen/interface/elfnote.h
_BANNER = re.compile(rb"Linux version ([0-9][0-9A-Za-z.+~_-]{0,63}) \(")


@dataclass(frozen=True)
class KernelImage:
    """A kernel's image as read from a file: ``architecture`` as uname(1) says it, ``release`` ("" where it is not told), ``content`` to boot.

    ``plain`` is False where the content is as compressed as it came: bootable, but slower.
    """

    architecture: str
    release: str
    content: bytes
    plain: bool


def read_image(raw: bytes) -> KernelImage:
    """Recognise what a kernel file holds and unwrap it as far as possible. Raises ValueError that says what is wrong."""
    if raw[0x202:0x206] == b"HdrS":
        return _read_bz_image(raw)
    if raw[:2] == b"\x1f\x8b" or raw[:4] == b"\x28\xb5\x2f\xfd":
        raw = decompressed(raw)
    if raw[:4] == b"\x7fELF" and len(raw) >= 64:
        architecture = _ELF_MACHINES.get(struct.unpack_from("<H", raw, 18)[0], "")
    else:
        architecture = {b"ARM\x64": "aarch64", b"RSC\x05": "riscv64"}.get(raw[0x38:0x3C], "")
    if not architecture:
        raise ValueError("it is no kernel of x86_64, aarch64 or riscv64")
    if architecture == "x86_64" and not has_pvh_entry(raw):
        raise ValueError("it is an x86 kernel without PVH entry: give its bzImage (vmlinuz) instead")
    return KernelImage(architecture, _banner(raw), trimmed(raw) if architecture == "x86_64" else raw, True)


def _read_bz_image(raw: bytes) -> KernelImage:
    """A bzImage; the ELF file inside where it can be unpacked and booted directly, else as it is."""
    if len(raw) < 0x260 or not struct.unpack_from("<H", raw, 0x236)[0] & 1:
        raise ValueError("it is a kernel for 32-bit x86")
    version = struct.unpack_from("<H", raw, 0x20E)[0]
    release = raw[version + 0x200 :].split(b"\0", 1)[0].split(b" ", 1)[0].decode("ascii", "replace") if version else ""
    offset, length = struct.unpack_from("<II", raw, 0x248)
    start = ((raw[0x1F1] or 4) + 1) * 512 + offset
    payload = raw[start : start + length]
    try:
        # Its last four bytes are its size unpacked, whatever it is packed with.
        content = decompressed(payload[:-4] if payload[:4] == _LZ4_LEGACY else payload)
    except ValueError:
        return KernelImage("x86_64", release, raw, False)
    if content[:4] != b"\x7fELF" or not has_pvh_entry(content):
        return KernelImage("x86_64", release, raw, False)
    return KernelImage("x86_64", release or _banner(content), trimmed(content), True)


def trimmed(elf: bytes) -> bytes:
    """An ELF kernel with what is loaded and nothing else: no holes, and no zeros at the end of a segment. A third less for QEMU to hold."""
    offset, size, count = struct.unpack_from("<Q14xHH", elf, 32)
    headers, contents = bytearray(elf[offset : offset + size * count]), []
    position = -(-(64 + len(headers)) // _PAGE_BYTES) * _PAGE_BYTES
    begins = position
    for at in range(0, len(headers), size):
        _kind, _flags, start, _virtual, _physical, length = struct.unpack_from("<IIQQQQ", headers, at)
        if start + length > len(elf):
            return elf
        content = elf[start : start + length].rstrip(b"\0")
        content += bytes(-len(content) % _PAGE_BYTES)
        struct.pack_into("<Q", headers, at + 8, position)
        struct.pack_into("<Q", headers, at + 32, min(length, len(content)))
        contents.append(content)
        position += len(content)
    head = bytearray(elf[:64])
    struct.pack_into("<QQ", head, 32, 64, 0)  # the program headers follow; there are no sections
    struct.pack_into("<HHH", head, 58, 0, 0, 0)
    return bytes(head) + headers + bytes(begins - 64 - len(headers)) + b"".join(contents)


def _banner(content: bytes) -> str:
    found = _BANNER.search(content)
    return found[1].decode() if found else ""


def has_pvh_entry(elf: bytes) -> bool:
    """Whether an ELF kernel says where a machine without firmware may enter it (the Xen note PHYS32_ENTRY)."""
    try:
        if elf[:5] != b"\x7fELF\x02":
            return False
        offset, size, count = struct.unpack_from("<Q14xHH", elf, 32)
        for number in range(count):
            kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", elf, offset + number * size)
            if kind == _PT_NOTE and _has_note(elf[start : start + length]):
                return True
    except struct.error:
        return False
    return False


def _has_note(notes: bytes) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        if kind == _XEN_PHYS32_ENTRY and name == b"Xen\0":
            return True
        position += 12 + (name_size + 3 & ~3) + (value_size + 3 & ~3)
    return False


def decompressed(packed: bytes) -> bytes:
    """Unpack what the kernel's own build packs with, told by its first bytes; what trails is ignored. Raises ValueError where that is unknown."""
    import bz2
    import lzma
    import zlib

    try:
        if packed[:2] == b"\x1f\x8b":
            return _whole(zlib.decompressobj(wbits=31), packed)
        if packed[:6] == b"\xfd7zXZ\0":
            return _whole(lzma.LZMADecompressor(lzma.FORMAT_XZ), packed)
        if packed[:3] == b"\x5d\0\0":
            return _whole(lzma.LZMADecompressor(lzma.FORMAT_ALONE), packed)
        if packed[:3] == b"BZh":
            return _whole(bz2.BZ2Decompressor(), packed)
        if packed[:4] == b"\x28\xb5\x2f\xfd":
            return _from_zstd(packed)
        if packed[:4] == _LZ4_LEGACY:
            return _from_lz4_legacy(packed)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, IndexError) as error:
        raise ValueError(f"its compressed part is damaged ({error})") from error
    raise ValueError("it is compressed in a way that is not known here")


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _whole(decompressor: _Decompressor, packed: bytes) -> bytes:
    """Everything, or an error: a kernel that was cut off would boot, and then fail somewhere."""
    content = decompressor.decompress(packed, LARGEST_BYTES)
    if not decompressor.eof:
        raise EOFError("it ends too early, or is too large")
    return content


def _from_zstd(packed: bytes) -> bytes:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    try:
        return _whole(zstd.ZstdDecompressor(), packed)
    except zstd.ZstdError as error:
        raise ValueError(f"its compressed part is damaged ({error})") from error


def _from_lz4_legacy(packed: bytes) -> bytes:
    """The format of `lz4 -l`: blocks, each with its size before it, unpacked to 8 MiB each but the last."""
    out: list[bytes | bytearray] = []
    position = len(_LZ4_LEGACY)
    while position + 4 <= len(packed):
        size = int.from_bytes(packed[position : position + 4], "little")
        if not 0 < size <= 2 * _LZ4_CHUNK_BYTES or position + 4 + size > len(packed):
            raise ValueError("its compressed part is damaged (a block of LZ4 is too long)")
        out.append(_lz4_block(packed[position + 4 : position + 4 + size]))
        position += 4 + size
    return b"".join(out)


def _lz4_block(block: bytes) -> bytearray:
    """One block: literals, and copies of what came before. A second for a kernel, once. LZ4 block format description"""
    out = bytearray()
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        length = token >> 4
        if length == 15:
            length, position = _lz4_long(block, position)
        out += block[position : position + length]
        position += length
        if position >= end:
            break
        distance = block[position] | block[position + 1] << 8
        position += 2
        length = token & 15
        if length == 15:
            length, position = _lz4_long(block, position)
        length += 4
        start = len(out) - distance
        if not distance or start < 0 or len(out) > _LZ4_CHUNK_BYTES:
            raise ValueError("its compressed part is damaged (a copy in LZ4 is out of bounds)")
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]
    return out


def _lz4_long(block: bytes, position: int) -> tuple[int, int]:
    """A length that its token could not hold, and where what follows it begins."""
    length = 15
    while (more := block[position]) == 255:
        length += 255
        position += 1
    return length + more, position + 1
