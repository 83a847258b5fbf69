"""``oci:DIR[:TAG]`` and ``oci-archive:FILE[:TAG]``: the OCI image layout, as a directory or as a tar of one.

Image specification, image-layout.md. Names come from the annotations that tools write: containerd's full name, else the reference name, which is a
tag in most layouts and a full name in some. A layout of somebody else's is not trusted: blobs are found by digest only, and only regular files are
read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from bulle.errors import BulleError, CorruptImage, InvalidInput, InvalidReference, NotFound
from bulle.model.digest import Digest
from bulle.model.image import METADATA_LIMIT_BYTES, OCI_INDEX, Descriptor, Index, Platform
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.archive import Archive, open_archive
from bulle.registry.assembly import Contents, image_at
from bulle.registry.compression import CHUNK_BYTES
from bulle.registry.transport import RemoteImage, Source, SourceRequest

REFERENCE_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
_TAG_AT_END = re.compile(r"(?P<path>.+):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")


class LayoutBlobs(Contents):
    """The files of a layout, wherever they are."""

    def document(self, name: str) -> bytes:
        """A small file by its path inside the layout; CorruptImage where it is missing or too large."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files."""
        raise NotImplementedError

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self.document(blob_path(descriptor.parsed_digest))


class ArchivedBlobs(LayoutBlobs):
    """A layout inside an archive, which it then owns."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.close = archive.close  # type: ignore[method-assign]

    def document(self, name: str) -> bytes:
        """A small member; CorruptImage where it is missing or too large."""
        return self._archive.read(name, METADATA_LIMIT_BYTES)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._archive.chunks(blob_path(descriptor.parsed_digest))


class DirectoryBlobs(LayoutBlobs):
    """A layout in a directory of the host."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def close(self) -> None:
        """Nothing is kept open."""

    def document(self, name: str) -> bytes:
        """A small regular file; CorruptImage where it is missing, too large or something else."""
        descriptor, size = self._open(name)
        with open(descriptor, "rb") as file:
            if size > METADATA_LIMIT_BYTES:
                raise CorruptImage(f"{self._path} is not usable", f"its {name} has {size} bytes, at most {METADATA_LIMIT_BYTES} are read")
            return file.read(METADATA_LIMIT_BYTES)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        file, _ = self._open(blob_path(descriptor.parsed_digest))
        try:
            while chunk := os.read(file, CHUNK_BYTES):
                yield chunk
        finally:
            os.close(file)

    def _open(self, name: str) -> tuple[int, int]:
        """A descriptor of a regular file and its size; a fifo or device in its place must neither hang nor act."""
        try:
            descriptor = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptImage(f"{self._path} is not complete", f"it has no {name}") from None
        except OSError as error:
            raise BulleError(f"cannot read {self._path / name}", error.strerror or str(error)) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise CorruptImage(f"{self._path} is not usable", f"its {name} is not a regular file")
        return descriptor, status.st_size


class OciLayout(Source):
    """The images of one layout; ``tag`` restricts them to one name, ``path`` (of the directory or file) completes names that are only tags."""

    def __init__(self, blobs: LayoutBlobs, name: str, platform: Platform, path: Path | None = None, tag: str = "") -> None:
        self._blobs = blobs
        self._name = name
        self._platform = platform
        self._path = path
        self._tag = tag

    def close(self) -> None:
        self._blobs.close()

    def images(self) -> Iterator[RemoteImage]:
        raw = self._blobs.document("index.json")
        documents.kind_of(raw, OCI_INDEX, self._name)
        groups: dict[str, list[Descriptor]] = {}
        for descriptor in Index.parse(raw).manifests:
            name = _annotated_name(descriptor)
            if not self._tag or self._tag in (name, (descriptor.annotations or {}).get(REFERENCE_NAME)):
                groups.setdefault(name, []).append(descriptor)
        if not groups:
            details = f"it has no image named {self._tag!r}" if self._tag else "its index.json names no image"
            raise NotFound(f"no image in {self._name}", details)
        for name, descriptors in groups.items():
            for descriptor in self._chosen(descriptors):
                reference = self._reference(name)
                what = str(reference) if reference else self._name
                yield image_at(self._blobs, descriptor, self._platform, (reference,) if reference else (), what)

    def _chosen(self, descriptors: list[Descriptor]) -> list[Descriptor]:
        """Of several entries of one name that differ by platform, the one that fits; else all."""
        if len(descriptors) > 1 and all(item.platform is not None and item.platform.architecture for item in descriptors):
            return [documents.choose(Index(manifests=tuple(descriptors)), self._platform, self._name)]
        return descriptors

    def _reference(self, name: str) -> Reference | None:
        if not name:
            return name_from_path(self._path, self._tag) if self._tag and self._path else None
        if "/" not in name and ":" not in name:
            return name_from_path(self._path, name) if self._path else None
        try:
            return Reference.parse(name)
        except InvalidReference as error:
            raise CorruptImage(f"{self._name} is not usable", f"it names an image {name[:200]!r}, which is not a valid name") from error


def _annotated_name(descriptor: Descriptor) -> str:
    annotations = descriptor.annotations or {}
    return annotations.get(CONTAINERD_NAME) or annotations.get(REFERENCE_NAME) or ""


def name_from_path(path: Path, tag: str) -> Reference | None:
    """A reference made of a directory's or archive's own name (without endings) and a tag; None where that is no valid name."""
    name = path.absolute().name.lower()
    for ending in (".gz", ".zst", ".zstd", ".xz", ".bz2", ".tgz", ".tar", ".oci"):
        name = name.removesuffix(ending)
    try:
        return Reference.parse(f"{name}:{tag}" if tag else name) if ":" not in name else None
    except InvalidReference:
        return None


def blob_path(digest: Digest) -> str:
    """Where a layout keeps a blob; a Digest is well-formed, so this is always below ``blobs``."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def open_layout(request: SourceRequest) -> OciLayout:
    """``oci:DIR[:TAG]``. Raises NotFound, InvalidInput, CorruptImage."""
    path, tag = split_tag(request.text)
    if not path.is_dir():
        if path.exists():
            raise InvalidInput(f"{path} is not a directory", "", f"for an archive say oci-archive:{path}")
        raise NotFound(f"no such directory: {path}")
    if not (path / "oci-layout").is_file() and not (path / "index.json").is_file():
        raise CorruptImage(f"{path} is not an OCI layout", "it has no oci-layout and no index.json", f"for a root directory say dir:{path}")
    return OciLayout(DirectoryBlobs(path), str(path), request.platform, path, tag)


def open_archived_layout(request: SourceRequest) -> OciLayout:
    """``oci-archive:FILE[:TAG]``. Raises NotFound, CorruptImage, StorageFull."""
    path, tag = split_tag(request.text)
    archive = open_archive(path, request.configuration.temporary)
    return OciLayout(ArchivedBlobs(archive), archive.name, request.platform, path, tag)


def split_tag(text: str) -> tuple[Path, str]:
    """``PATH[:TAG]``; a path that exists as it stands has no tag."""
    match = _TAG_AT_END.fullmatch(text)
    if match is None or Path(text).exists():
        return Path(text), ""
    return Path(match["path"]), match["tag"]
