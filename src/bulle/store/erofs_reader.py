"""Reading an EROFS index that :mod:`bulle.store.erofs` wrote: to look up paths in layers below, and to extract a layer to a directory.

It reads our own indexes only, which never left the store; still every offset is checked, so that a damaged file is an error and not a crash.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from bulle.errors import CorruptImage
from bulle.store import erofs
from bulle.store.tree import Node


class Index:
    """One index, mapped into memory. ``nid`` names an inode, as in the kernel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        fields = erofs.SUPERBLOCK.unpack_from(self._data, erofs.SUPERBLOCK_OFFSET)
        if fields[0] != erofs.MAGIC or fields[3] != erofs.BLOCK_BITS:
            raise self._damaged()
        self.root = int(fields[5])

    def close(self) -> None:
        """Unmap it."""
        self._data.close()

    def node(self, nid: int) -> Node:
        """The attributes of an inode; ``children`` is not filled. ``data_offset`` of a sparse file is negative: it lies in the index itself."""
        try:
            return self._node(nid)
        except (struct.error, IndexError, KeyError) as error:
            raise self._damaged() from error

    def entries(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode and EROFS file type of everything in a directory, without ``.`` and ``..``."""
        fields = erofs.INODE.unpack_from(self._data, nid << 5)
        start, size = fields[5] << erofs.BLOCK_BITS, fields[4]
        for position in range(start, start + size, erofs.BLOCK):
            block = self._data[position : position + erofs.BLOCK]
            if len(block) < erofs.BLOCK:
                raise self._damaged()
            count = erofs.DIRECTORY_ENTRY.unpack_from(block)[1] // 12
            found = [erofs.DIRECTORY_ENTRY.unpack_from(block, 12 * index) for index in range(count)]
            ends = [offset for _, offset, _ in found[1:]] + [erofs.BLOCK]
            for (child, offset, kind), end in zip(found, ends, strict=True):
                name = block[offset:end].rstrip(b"\0")
                if name not in (b".", b".."):
                    yield name, child, kind

    def find(self, nid: int, name: bytes) -> int | None:
        """The inode of one name in a directory."""
        fields = erofs.INODE.unpack_from(self._data, nid << 5)
        low, high = 0, fields[4] >> erofs.BLOCK_BITS
        start = fields[5] << erofs.BLOCK_BITS
        while high - low > 1:  # blocks are sorted by their first names
            middle = low + high >> 1
            block = self._data[start + middle * erofs.BLOCK : start + (middle + 1) * erofs.BLOCK]
            low, high = (middle, high) if self._names(block)[0][0] <= name else (low, middle)
        block = self._data[start + low * erofs.BLOCK : start + (low + 1) * erofs.BLOCK]
        return dict(self._names(block)).get(name)

    def data(self, offset: int, size: int) -> bytes:
        """Bytes of the index itself: the content of a sparse file."""
        return self._data[offset : offset + size]

    def _names(self, block: bytes) -> list[tuple[bytes, int]]:
        count = erofs.DIRECTORY_ENTRY.unpack_from(block)[1] // 12
        found = [erofs.DIRECTORY_ENTRY.unpack_from(block, 12 * index) for index in range(count)]
        ends = [offset for _, offset, _ in found[1:]] + [erofs.BLOCK]
        return [(block[offset:end].rstrip(b"\0"), child) for (child, offset, _), end in zip(found, ends, strict=True)]

    def _node(self, nid: int) -> Node:
        position = nid << 5
        layout, xattr_count, mode, _, size, pointer, _, uid, gid, mtime, mtime_ns, links = erofs.INODE.unpack_from(self._data, position)
        node = Node(mode, uid, gid, mtime - (1 << 64) if mtime >> 63 else mtime, mtime_ns)
        node.links = links
        xattrs_length = 12 + 4 * (xattr_count - 1) if xattr_count else 0
        body = position + 64 + xattrs_length
        if xattrs_length:
            node.xattrs = self._xattrs(position + 64 + 12, body)
            node.opaque = node.xattrs.pop(b"trusted.overlay.opaque", b"") == b"y"
            node.holds_whiteouts = node.xattrs.pop(b"trusted.overlay.origin", None) is not None
        if stat.S_ISREG(mode):
            node.size = size
            if size:
                _, device, block = erofs.CHUNK.unpack_from(self._data, body + 7 & ~7)
                node.data_offset = (block << erofs.BLOCK_BITS) * (1 if device else -1)
        elif stat.S_ISLNK(mode):
            start = body if layout >> 1 == erofs.LAYOUT_INLINE else pointer << erofs.BLOCK_BITS
            node.target = self._data[start : start + size]
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            node.device = ((pointer & 0xFFF00) >> 8, (pointer & 0xFF) | ((pointer >> 12) & 0xFFF00))
        return node

    def _xattrs(self, position: int, end: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        while position + 4 <= end:
            name_length, index, value_length = struct.unpack_from("<BBH", self._data, position)
            name_end = position + 4 + name_length
            found[erofs.XATTR_PREFIXES[index] + self._data[position + 4 : name_end]] = self._data[name_end : name_end + value_length]
            position = name_end + value_length + 3 & ~3
        return found

    def _damaged(self) -> CorruptImage:
        return CorruptImage(f"the index {self.path} is damaged", "", "remove the image with `bulle rmi -f` and pull it again")
