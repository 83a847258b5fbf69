"""What the entries of one layer mean together: a tree of nodes, as the layer changes what lies below it.

Built from a tar by :func:`build_tree`, read by the EROFS writer. Here whiteouts become whiteouts and opaque directories, hard links share a
node, later entries replace earlier ones, and directories that the archive never mentions get their attributes from the layers below. All of it
happens in memory: whatever an archive names, nothing outside the tree can be reached. Image specification, layer.md.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from bulle.errors import CorruptImage
from bulle.store.limits import Limits
from bulle.store.tar import Buffer, Entry, read_entries
from bulle.store.tar_extensions import Segments, corrupt, shown

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_NAME_LENGTH = 255
_PATH_LENGTH = 4096
_LINK_DEPTH = 40
_TYPES = {
    b"0": stat.S_IFREG,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}


class Node:
    """One file of any type. ``mode`` includes the type; ``data_offset`` points into the tar; ``target`` is a symlink's."""

    __slots__ = (
        "children", "data_offset", "device", "gid", "holds_whiteouts", "implicit", "links", "mode", "mtime", "mtime_ns",
        "opaque", "parent", "position", "segments", "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, mtime: int = 0, mtime_ns: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_ns = mtime_ns
        self.size = 0
        self.data_offset = 0
        self.target = b""
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] | None = None
        self.segments: Segments | None = None
        self.children: dict[bytes, Node] | None = None
        self.links = 0
        self.opaque = False
        self.holds_whiteouts = False
        self.implicit = False
        self.parent: Node | None = None
        self.position = 0

    @property
    def is_whiteout(self) -> bool:
        """Whether it only says that a name of the layers below is gone."""
        return stat.S_ISCHR(self.mode) and self.device == (0, 0)


Below = Callable[[tuple[bytes, ...]], Node | None]
"""Finds a path in the merged layers below: a Node with its attributes (children unset), or None."""


class Tree:
    """A layer's root directory, and which directories in it the archive did not describe itself."""

    def __init__(self, below: Below | None = None) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.root.children = {}
        self.root.implicit = True
        self.implicit_directories = 0
        self.sparse_bytes = 0
        self.largest_id = 0
        """The largest user or group id of anything that the archive describes."""
        self._below = below
        self._directories: dict[bytes, Node] = {b"": self.root}
        self._late_links: list[tuple[Node, bytes, Entry]] = []
        if below is not None:
            _inherit(self.root, below(()))

    def add(self, entry: Entry) -> None:
        """Apply one entry of the archive. Raises CorruptImage for names that leave the tree."""
        head, _, base = entry.name.rstrip(b"/").rpartition(b"/")
        parent = self._directories.get(head)
        if parent is None or base in (b"", b".", b"..") or len(base) > _NAME_LENGTH or entry.name.startswith(b"/"):
            parts = _components(entry.name)
            if not parts:
                self._add_root(entry)
                return
            parent = self._directory(parts[:-1])
            base = parts[-1]
            if entry.name.rstrip(b"/").endswith(base):
                self._directories[head] = parent
        if base.startswith(WHITEOUT):
            self._white_out(parent, base)
        elif entry.kind == b"1":
            self._link(parent, base, entry)
        elif entry.kind == b"5":
            self._add_directory(parent, base, entry)
        else:
            self._put(parent, base, _node(entry))
            self.sparse_bytes += entry.size if entry.segments is not None else 0

    def finish(self) -> None:
        """Resolve the hard links that came before their targets, and count what stayed implicit."""
        for _ in range(_LINK_DEPTH):
            # Backwards, so that a chain of links to links needs one round and not as many as it is long.
            waiting = self._late_links[::-1]
            self._late_links = []
            for parent, base, entry in waiting:
                if parent.children is not None and base not in parent.children:
                    self._link(parent, base, entry)
        for _, _, entry in self._late_links:
            raise corrupt(f"{shown(entry.name)} is a hard link to {shown(entry.link)}, which is not in the layer")
        self.implicit_directories = 0
        pending = list((self.root.children or {}).values())
        while pending:
            node = pending.pop()
            if node.children is not None:
                self.implicit_directories += node.implicit
                pending.extend(node.children.values())

    def _add_root(self, entry: Entry) -> None:
        if entry.kind != b"5":
            raise corrupt("its root is not a directory")
        _describe(self.root, entry)

    def _add_directory(self, parent: Node, base: bytes, entry: Entry) -> None:
        assert parent.children is not None
        existing = parent.children.get(base)
        if existing is not None and existing.children is not None:
            _describe(existing, entry)
            return
        node = _node(entry)
        node.children = {}
        node.opaque = existing is not None and existing.is_whiteout
        self._put(parent, base, node)

    def _put(self, parent: Node, base: bytes, node: Node) -> None:
        assert parent.children is not None
        if base in parent.children:
            self._remove(parent, base)
        node.links += 1
        parent.children[base] = node
        if node.is_whiteout:
            parent.holds_whiteouts = True

    def _remove(self, parent: Node, base: bytes) -> None:
        assert parent.children is not None
        parent.children.pop(base).links -= 1
        self._directories = {b"": self.root}  # what was remembered may lead through the node that is gone

    def _link(self, parent: Node, base: bytes, entry: Entry) -> None:
        target = self._find(_components(entry.link))
        if target is None:
            self._late_links.append((parent, base, entry))
            if base in (parent.children or {}):
                self._remove(parent, base)
        elif target.children is not None or target.is_whiteout:
            raise corrupt(f"{shown(entry.name)} is a hard link to {shown(entry.link)}, which cannot be linked")
        elif (parent.children or {}).get(base) is not target:
            self._put(parent, base, target)

    def _white_out(self, parent: Node, base: bytes) -> None:
        assert parent.children is not None
        if base == OPAQUE:
            parent.opaque = True
            return
        if base.startswith(WHITEOUT + WHITEOUT):
            return  # metadata of AUFS, which wrote the first layers
        hidden = base[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise corrupt(f"the whiteout {shown(base)} names no file")
        existing = parent.children.get(hidden)
        if existing is None:
            self._put(parent, hidden, Node(stat.S_IFCHR))
        elif existing.children is not None:
            # A whiteout hides only what lies below the layer; what the layer itself brings stays.
            existing.opaque = True

    def _find(self, parts: tuple[bytes, ...]) -> Node | None:
        """The node at a path of this layer, symlinks in its directories followed inside the tree, the last name not."""
        if not parts:
            return self.root
        directory = self._walk(parts[:-1], create=False)
        return None if directory is None or directory.children is None else directory.children.get(parts[-1])

    def _directory(self, parts: tuple[bytes, ...]) -> Node:
        directory = self._walk(parts, create=True)
        assert directory is not None
        return directory

    def _walk(self, parts: tuple[bytes, ...], create: bool) -> Node | None:
        """Walk to a directory; with ``create``, make what is missing as it lies below. Symlinks cannot leave the tree: it has no outside."""
        path: list[bytes] = []
        trail = [self.root]
        todo = list(reversed(parts))
        followed = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del trail[max(1, len(trail) - 1) :], path[max(0, len(path) - 1) :]
                continue
            directory = trail[-1]
            assert directory.children is not None
            node = directory.children.get(part)
            target = node.target if node is not None else b""
            if node is None and create:
                lower = self._lower((*path, part), directory)
                target = lower.target if lower is not None else b""
                if not target:
                    node = self._make_implicit(directory, part, lower)
            elif node is not None and node.children is None and not target and create:
                node = self._make_implicit(directory, part, None)
            if target:
                followed += 1
                if followed > _LINK_DEPTH:
                    raise corrupt(f"the directory {shown(b'/'.join(parts))} is reached through too many symlinks")
                if target.startswith(b"/"):
                    del trail[1:], path[:]
                todo.extend(reversed([piece for piece in target.split(b"/") if piece not in (b"", b".")]))
                continue
            if node is None or node.children is None:
                return None
            trail.append(node)
            path.append(part)
        return trail[-1]

    def _lower(self, path: tuple[bytes, ...], directory: Node) -> Node | None:
        return self._below(path) if self._below is not None and not directory.opaque else None

    def _make_implicit(self, directory: Node, name: bytes, lower: Node | None) -> Node:
        assert directory.children is not None
        existing = directory.children.get(name)
        node = Node(stat.S_IFDIR | 0o755)
        node.children = {}
        if existing is None:
            node.implicit = True
            _inherit(node, lower)
        else:
            node.opaque = existing.is_whiteout
        self._put(directory, name, node)
        return node


def build_tree(data: Buffer, limits: Limits, below: Below | None = None) -> Tree:
    """The tree of one layer's tar. ``below`` is asked about directories that the archive does not describe. Raises CorruptImage."""
    tree = Tree(below)
    add = tree.add
    for entry in read_entries(data, limits):
        add(entry)
        if entry.uid > tree.largest_id or entry.gid > tree.largest_id:
            tree.largest_id = max(entry.uid, entry.gid)
        if tree.sparse_bytes > limits.sparse_bytes:
            raise corrupt(f"its sparse files are larger than {limits.sparse_bytes} bytes")
    tree.finish()
    return tree


def _components(name: bytes) -> tuple[bytes, ...]:
    """The parts of a name of an archive, without ``.``. Raises CorruptImage for one that is absolute, climbs or is too long."""
    if name.startswith(b"/"):
        raise CorruptImage("the layer contains a path that leaves it", f"{shown(name)} is absolute")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise CorruptImage("the layer contains a path that leaves it", f"{shown(name)} contains '..'")
    if len(name) > _PATH_LENGTH or any(len(part) > _NAME_LENGTH for part in parts):
        raise corrupt(f"the name {shown(name)} is too long")
    return parts


def _node(entry: Entry) -> Node:
    node = Node(_TYPES[entry.kind] | entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns)
    if entry.kind == b"0":
        node.size, node.data_offset, node.segments = entry.size, entry.data_offset, entry.segments
    elif entry.kind == b"2":
        node.mode = stat.S_IFLNK | 0o777
        node.target = entry.link
        if not 0 < len(entry.link) < _PATH_LENGTH:
            raise corrupt(f"the symlink {shown(entry.name)} has an empty or too long target")
    elif entry.kind in b"34":
        node.device = entry.device
        if not (0 <= entry.device[0] < 1 << 12 and 0 <= entry.device[1] < 1 << 20):
            raise corrupt(f"the device {shown(entry.name)} has impossible numbers")
    if entry.xattrs:
        node.xattrs = _kept(entry.xattrs, entry.name)
    return node


def _kept(xattrs: dict[bytes, bytes], name: bytes) -> dict[bytes, bytes] | None:
    """The extended attributes that count: an archive must not speak to overlayfs, and labels belong to the machine where it was written."""
    for key, value in xattrs.items():
        if not 0 < len(key) <= _NAME_LENGTH or len(value) > 65536 or b"\0" in key:
            raise corrupt(f"an extended attribute of {shown(name)} is malformed")
    kept = {key: value for key, value in xattrs.items() if not key.startswith(_OVERLAY_XATTRS) and key != b"security.selinux"}
    return kept or None


def _describe(node: Node, entry: Entry) -> None:
    """Give a directory that exists already the attributes that the archive states."""
    node.mode = stat.S_IFDIR | entry.mode
    node.uid, node.gid, node.mtime, node.mtime_ns = entry.uid, entry.gid, entry.mtime, entry.mtime_ns
    node.xattrs = _kept(entry.xattrs, entry.name) if entry.xattrs else None
    node.implicit = False


def _inherit(node: Node, lower: Node | None) -> None:
    if lower is not None and stat.S_ISDIR(lower.mode):
        node.mode, node.uid, node.gid, node.mtime, node.mtime_ns = lower.mode, lower.uid, lower.gid, lower.mtime, lower.mtime_ns
        node.xattrs = lower.xattrs
