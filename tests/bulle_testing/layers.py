"""Layers and images made for tests of the store, and what stands at a path, stat by stat."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bulle.isolation import overlay
from bulle.linux import mount
from bulle.linux.namespaces import CLONE_NEWNS, unshare
from bulle.model.digest import Digest
from bulle.model.image import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from bulle.model.reference import Reference
from bulle.records.database import Database
from bulle.store import Image, Limits, Store

EPOCH_S = 1_600_000_000


class LayerTar:
    """A tar, entry by entry in the order of the calls; ``bytes(tar)`` ends it."""

    def __init__(self, format: int = tarfile.PAX_FORMAT) -> None:
        self._out = io.BytesIO()
        self._format = format

    def add(
        self, name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", *, xattrs: dict[str, bytes] | None = None, **fields: Any
    ) -> LayerTar:
        """One entry; ``fields`` are attributes of TarInfo (mode, uid, gid, mtime, linkname, devmajor…)."""
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mtime = kind, len(content), EPOCH_S
        member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        for field, value in fields.items():
            setattr(member, field, value)
        for key, value in (xattrs or {}).items():
            member.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        self._out.write(member.tobuf(self._format, errors="surrogateescape"))
        self._out.write(content.ljust(len(content) + 511 & ~511, b"\0"))
        return self

    def raw(self, content: bytes) -> LayerTar:
        """Bytes as they are."""
        self._out.write(content)
        return self

    def directory(self, name: str, **fields: Any) -> LayerTar:
        """A directory."""
        return self.add(name, tarfile.DIRTYPE, **fields)

    def symlink(self, name: str, target: str, **fields: Any) -> LayerTar:
        """A symlink."""
        return self.add(name, tarfile.SYMTYPE, linkname=target, **fields)

    def hardlink(self, name: str, target: str, **fields: Any) -> LayerTar:
        """A hard link."""
        return self.add(name, tarfile.LNKTYPE, linkname=target, **fields)

    def __bytes__(self) -> bytes:
        return self._out.getvalue() + bytes(1024)


def documents(tars: Sequence[bytes], compress: Callable[[bytes], bytes] | None = None, suffix: str = "") -> tuple[bytes, bytes, list[bytes]]:
    """Manifest, config and blobs of an image with these layers."""
    blobs = [compress(tar) if compress else tar for tar in tars]
    rootfs = {"type": "layers", "diff_ids": [Digest.of(tar) for tar in tars]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": rootfs}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": Digest.of(config), "size": len(config)},
            "layers": [{"mediaType": OCI_LAYER + suffix, "digest": Digest.of(blob), "size": len(blob)} for blob in blobs],
        }
    ).encode()
    return manifest, config, blobs


def put_image(store: Store, tars: Sequence[bytes], *names: str, compress: Callable[[bytes], bytes] | None = None, suffix: str = "") -> Image:
    """Bring an image into a store as the engine does."""
    manifest, config, blobs = documents(tars, compress, suffix)
    with store.receiving():
        for tar, blob in zip(tars, blobs, strict=True):
            store.layers.ingest(pieces(blob), OCI_LAYER + suffix, Digest.of(blob), len(blob), Digest.of(tar))
        layers = [(Digest.of(blob), Digest.of(tar)) for tar, blob in zip(tars, blobs, strict=True)]
        return store.images.commit(manifest, OCI_MANIFEST, config, layers, [Reference.parse(name) for name in names])


@contextmanager
def open_store(home: Path, limits: Limits | None = None) -> Iterator[Store]:
    """A store on a home, closed at the end with its database."""
    database = Database(home)
    store = Store(home, database, limits)
    try:
        yield store
    finally:
        store.close()
        database.close()


def pieces(content: bytes, size: int = 65536) -> Iterator[bytes]:
    """Content as a stream."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


def write_layout(directory: Path, tars: Sequence[bytes]) -> None:
    """An OCI layout with one image, tagged ``image``, gzip layers."""
    manifest, config, blobs = documents(tars, lambda tar: gzip.compress(tar, 1), "+gzip")
    target = directory / "blobs" / "sha256"
    target.mkdir(parents=True)
    for blob in (manifest, config, *blobs):
        (target / Digest.of(blob).encoded).write_bytes(blob)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    descriptor = {"mediaType": OCI_MANIFEST, "digest": Digest.of(manifest), "size": len(manifest)}
    index = {"schemaVersion": 2, "manifests": [descriptor | {"annotations": {"org.opencontainers.image.ref.name": "image"}}]}
    (directory / "index.json").write_text(json.dumps(index))


def in_mount_namespace(function: Callable[[], Any]) -> Any:
    """What a function returns in a child with a mount namespace of its own; its exception is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            unshare(CLONE_NEWNS)
            mount.mount(None, "/", "", mount.MS_REC | mount.MS_PRIVATE)
            answer: tuple[bool, Any] = (True, function())
        except BaseException as error:  # noqa: BLE001 - raised again in the parent
            answer = (False, error)
        with suppress(BaseException), os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    worked, value = pickle.loads(content)
    if not worked:
        raise value
    return value


def show_merged(store: Store, image: Image, target: Path) -> None:
    """Mount an image's layers at ``target`` read-only, in this mount namespace."""
    layers = store.layers.plan(image.layers)
    store.layers.mount(layers)
    bottom = target.parent / f"{target.name}-empty"
    bottom.mkdir()
    target.mkdir()
    lowers = [*(layer.host_path for layer in reversed(layers)), str(bottom)]
    detached = overlay.from_paths(overlay.Kind(), lowers)
    mount.attach_mount(detached, target)
    os.close(detached)


def census(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below a directory: type and mode, owner, size, time, device, target, extended attributes, content, and which names are one file."""
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    base = os.fsencode(root)
    for directory, directories, files in os.walk(base):
        for name in [*directories, *files]:
            path = directory + b"/" + name
            relative = path[len(base) + 1 :]
            status = os.lstat(path)
            is_file, is_directory, is_link = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode), stat.S_ISLNK(status.st_mode)
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            found[relative] = (
                oct(status.st_mode), status.st_uid, status.st_gid, 0 if is_directory else status.st_size, status.st_mtime_ns,
                status.st_rdev, os.readlink(path) if is_link else b"", tuple(sorted(xattrs.items())),
                _content(path) if is_file else "",
            )  # fmt: skip
            if not is_directory:
                groups.setdefault((status.st_dev, status.st_ino), []).append(relative)
    for names in groups.values():
        for name in names:
            found[name] += (tuple(sorted(names)),)
    return found


def _content(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(ours: dict[bytes, tuple[object, ...]], theirs: dict[bytes, tuple[object, ...]]) -> list[str]:
    """What differs, a line each. The time of a directory that no layer describes is made up (0 is ours), so it is not compared."""
    lines = []
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name), theirs.get(name)
        if mine and other and len(mine) > 4 and str(mine[0]).startswith("0o4") and mine[4] == 0:
            mine, other = mine[:4] + mine[5:], other[:4] + other[5:]
        if mine != other:
            lines.append(f"{name!r}: {mine} != {other}")
    return lines
