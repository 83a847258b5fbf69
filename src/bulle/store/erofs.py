"""Writing an EROFS index: a file system image that holds a layer's names and attributes, and points into the layer's tar for the bytes.

Called by the layer store. The image has one extra device, the tar, and 512-byte blocks as tar has. Sparse files cannot be pointed at, so their bytes
are copied behind the metadata, with holes. The whole index is made in memory (about 100 bytes a file) and written once. The format is
described in the kernel's documentation, filesystems/erofs.rst, and in fs/erofs/erofs_fs.h; :mod:`bulle.store.erofs_reader` reads it back.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO

from bulle.store.tar import Buffer
from bulle.store.tar_extensions import corrupt
from bulle.store.tree import Node, Tree

MAGIC = 0xE0F5E1E2
BLOCK_BITS = 9
BLOCK = 1 << BLOCK_BITS
SUPERBLOCK_OFFSET = 1024
DEVICE_SLOT_OFFSET = 1152
FIRST_INODE_OFFSET = 1280
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQBBHIQQ")
DEVICE_SLOT = struct.Struct("<64sIIHH52x")
INODE = struct.Struct("<HHHHQIIIIQII16x")
DIRECTORY_ENTRY = struct.Struct("<QHBx")
CHUNK = struct.Struct("<HHI")
LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKS = 0, 2, 4
NO_BLOCK = 0xFFFFFFFF
XATTR_PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
FILE_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6, stat.S_IFLNK: 7}
_CHUNKED_FEATURE, _DEVICE_TABLE_FEATURE = 0x4, 0x8
_CHUNK_INDEXES = 0x20
_LARGEST_XATTRS = 65535 * 4
_COPY_BYTES = 1 << 20


def write_index(tree: Tree, tar: Buffer, out: BinaryIO) -> None:
    """Write the index of ``tree``, whose bytes lie in ``tar``, to the empty seekable file ``out``. Raises CorruptImage for what EROFS cannot hold."""
    nodes = _in_order(tree.root)
    xattrs = {id(node): packed for node in nodes if (packed := _xattrs(node))}
    inodes_end = _place_inodes(nodes, xattrs)
    image = bytearray(_blocks(inodes_end) << BLOCK_BITS)
    copies: list[tuple[Node, int]] = []
    next_block = _blocks(inodes_end)
    tails: list[bytes] = []
    for number, node in enumerate(nodes, 1):
        packed = xattrs.get(id(node), b"")
        kind = stat.S_IFMT(node.mode)
        layout, pointer, size, links = LAYOUT_PLAIN, 0, node.size, node.links
        body = node.position + 64 + len(packed)
        if kind == stat.S_IFREG:
            layout, pointer = _file_layout(node)
            if size and node.segments is not None:
                copies.append((node, body + 7 & ~7))
            elif size:
                CHUNK.pack_into(image, body + 7 & ~7, 0, 1, node.data_offset >> BLOCK_BITS)
        elif kind == stat.S_IFDIR:
            blocks = _directory_blocks(node)
            pointer, size, links = next_block, len(blocks), 2 + _subdirectories(node)
            tails.append(blocks)
            next_block += len(blocks) >> BLOCK_BITS
        elif kind == stat.S_IFLNK:
            size = len(node.target)
            if 64 + len(packed) + size <= BLOCK:
                layout = LAYOUT_INLINE
                image[body : body + size] = node.target
            else:
                pointer = next_block
                tails.append(node.target.ljust(_blocks(size) << BLOCK_BITS, b"\0"))
                next_block += _blocks(size)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            major, minor = node.device
            pointer = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
        count = (len(packed) - 12) // 4 + 1 if packed else 0
        INODE.pack_into(
            image, node.position, 1 | layout << 1, count, node.mode, 0, size, pointer & 0xFFFFFFFF, number, node.uid, node.gid,
            node.mtime & 0xFFFFFFFFFFFFFFFF, node.mtime_ns, links,
        )  # fmt: skip
        image[node.position + 64 : body] = packed
    total = _place_copies(copies, image, next_block)
    _write_superblock(image, len(nodes), total, len(tar) >> BLOCK_BITS)
    out.write(image)
    for tail in tails:
        out.write(tail)
    out.truncate(total << BLOCK_BITS)
    _copy_sparse(copies, image, tar, out)


def _blocks(size: int) -> int:
    return size + BLOCK - 1 >> BLOCK_BITS


def _in_order(root: Node) -> list[Node]:
    """Every node once, root first, a directory's children together; tells each directory its parent on the way."""
    nodes, pending, seen = [root], [root], {id(root)}
    while pending:
        directory = pending.pop()
        for child in (directory.children or {}).values():
            if child.children is not None:
                child.parent = directory
                pending.append(child)
            elif child.links > 1:
                if id(child) in seen:
                    continue
                seen.add(id(child))
            nodes.append(child)
    return nodes


def _place_inodes(nodes: list[Node], xattrs: dict[int, bytes]) -> int:
    position = FIRST_INODE_OFFSET
    for node in nodes:
        length = 64 + (len(xattrs[id(node)]) if id(node) in xattrs else 0)
        if node.target:
            length += len(node.target)
            # An inline target must lie in one block with the end of its inode.
            if length <= BLOCK and (position & BLOCK - 1) + length > BLOCK:
                position = position + BLOCK - 1 & ~(BLOCK - 1)
            elif length > BLOCK:
                length -= len(node.target)
        elif node.size:
            length = (length + 7 & ~7) + 8
        node.position = position
        position = position + length + 31 & ~31
    return position


def _file_layout(node: Node) -> tuple[int, int]:
    if not node.size:
        return LAYOUT_PLAIN, NO_BLOCK
    bits = max(0, (node.size - 1).bit_length() - BLOCK_BITS)
    if bits > 31:
        raise corrupt("it contains a file larger than a terabyte")
    return LAYOUT_CHUNKS, _CHUNK_INDEXES | bits


def _subdirectories(node: Node) -> int:
    return sum(child.children is not None for child in (node.children or {}).values())


def _directory_blocks(node: Node) -> bytes:
    """The blocks of one directory: in each, fixed-size entries first and their names behind them."""
    assert node.children is not None
    names = [(name, child.position >> 5, FILE_TYPES[child.mode & 0o170000]) for name, child in node.children.items()]
    names.append((b".", node.position >> 5, 2))
    names.append((b"..", (node.parent or node).position >> 5, 2))
    names.sort()
    blocks: list[bytes] = []
    start = used = 0
    for stop in range(len(names) + 1):
        needed = 12 + len(names[stop][0]) if stop < len(names) else BLOCK + 1
        if used + needed > BLOCK:
            blocks.append(_directory_block(names[start:stop]))
            start, used = stop, 0
        used += needed
    return b"".join(blocks)


def _directory_block(names: list[tuple[bytes, int, int]]) -> bytes:
    offset = 12 * len(names)
    block = bytearray(BLOCK)
    pack_into = DIRECTORY_ENTRY.pack_into
    for index, (name, number, kind) in enumerate(names):
        pack_into(block, 12 * index, number, offset, kind)
        offset += len(name)
    start = 12 * len(names)
    block[start:offset] = b"".join([name for name, _, _ in names])
    return bytes(block)


def _xattrs(node: Node) -> bytes:
    """The inline extended attributes of a node, with those by which overlayfs learns of whiteouts and opaque directories."""
    pairs = dict(node.xattrs) if node.xattrs else {}
    if node.opaque:
        pairs[b"trusted.overlay.opaque"] = b"y"
    if node.holds_whiteouts:
        # Without an origin, overlayfs takes a directory that exists in one layer only for free of whiteouts, and would list them.
        pairs[b"trusted.overlay.origin"] = b""
    if not pairs:
        return b""
    packed = bytearray(12)
    for key, value in sorted(pairs.items()):
        for index, prefix in XATTR_PREFIXES.items():
            if key.startswith(prefix):
                suffix = key[len(prefix) :]
                packed += struct.pack("<BBH", len(suffix), index, len(value)) + suffix + value
                packed += bytes(-len(packed) % 4)
                break
    if len(packed) > _LARGEST_XATTRS:
        raise corrupt("the extended attributes of a file are too large together")
    return bytes(packed) if len(packed) > 12 else b""


def _place_copies(copies: list[tuple[Node, int]], image: bytearray, block: int) -> int:
    """Give every sparse file its place behind the metadata; returns the number of blocks of the whole index."""
    for node, chunk_position in copies:
        block = block + 7 & ~7
        CHUNK.pack_into(image, chunk_position, 0, 0, block)
        block += _blocks(node.size)
        if block > NO_BLOCK:
            raise corrupt("its sparse files are too large")
    return block


def _copy_sparse(copies: list[tuple[Node, int]], image: bytearray, tar: Buffer, out: BinaryIO) -> None:
    for node, chunk_position in copies:
        start = CHUNK.unpack_from(image, chunk_position)[2] << BLOCK_BITS
        source = node.data_offset
        for offset, length in node.segments or ():
            out.seek(start + offset)
            for piece in _pieces(source, length):
                out.write(tar[piece])
            source += length
    out.seek(0, os.SEEK_END)


def _pieces(start: int, length: int) -> Iterator[slice]:
    for position in range(start, start + length, _COPY_BYTES):
        yield slice(position, min(position + _COPY_BYTES, start + length))


def _write_superblock(image: bytearray, inodes: int, blocks: int, tar_blocks: int) -> None:
    if blocks > NO_BLOCK or tar_blocks > NO_BLOCK:
        raise corrupt("it is too large for the index")
    # The same layer gives the same index, byte for byte, so its identifier comes from its content.
    identifier = hashlib.sha256(image).digest()[:16]
    SUPERBLOCK.pack_into(
        image, SUPERBLOCK_OFFSET, MAGIC, 0, 0x2, BLOCK_BITS, 0, FIRST_INODE_OFFSET >> 5, inodes, 0, 0, blocks, 0, 0, identifier, b"",
        _DEVICE_TABLE_FEATURE | _CHUNKED_FEATURE, 0, 1, DEVICE_SLOT_OFFSET >> 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    DEVICE_SLOT.pack_into(image, DEVICE_SLOT_OFFSET, b"", tar_blocks, 0, 0, 0)
