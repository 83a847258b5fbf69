"""Images as the OCI image specification and Docker's schema 2 write them: descriptors, manifests, indexes and configs.

Used by the store, the registry client and the engine. The structs are views: unknown fields are tolerated and dropped, so digests are always
taken from the raw bytes, which their owners keep. No I/O. Image specification 1.1: descriptor.md, manifest.md, image-index.md, config.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

from bulle.errors import CorruptImage
from bulle.model.digest import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

EMPTY_MEDIA_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
"""What stands where an artifact must have a config and has none."""

INDEX_MEDIA_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_MEDIA_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_MEDIA_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
LAYER_COMPRESSIONS = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    _FOREIGN: "none",
    f"{_FOREIGN}+gzip": "gzip",
    f"{_FOREIGN}+zstd": "zstd",
    DOCKER_LAYER: "none",
    f"{DOCKER_LAYER}.gzip": "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
"""Media types of layers that can be unpacked, and how each is compressed."""

MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
"""What a media type looks like. RFC 6838, section 4.2."""

METADATA_LIMIT_BYTES = 8 * 1024 * 1024
"""Largest manifest, index or config that is read; registries refuse more than 4 MiB."""

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Platform(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An operating system and processor, in Go's words (``linux``, ``amd64``, ``v8``)."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What a piece of content is, how it is named and how long it is (``size`` in bytes)."""

    media_type: str
    digest: str
    size: Size
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    urls: tuple[str, ...] | None = None
    artifact_type: str | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "digest", str(Digest.parse(self.digest)))  # a plain str: the encoder knows no subclasses

    @property
    def parsed_digest(self) -> Digest:
        """``digest`` as a Digest; it was checked when the descriptor was made."""
        return Digest(self.digest)


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One image for one platform: its config and its layers, lowest first. An artifact is a manifest too; ``subject`` is what it speaks of."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    schema_version: int = 2
    media_type: str = ""
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        """A manifest from untrusted bytes. Raises CorruptImage."""
        manifest = _parse(raw, cls, "manifest")
        if manifest.schema_version != 2:
            raise CorruptImage("the manifest cannot be used", f"schema version {manifest.schema_version} instead of 2")
        return manifest


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Several manifests, usually one for each platform."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = 2
    media_type: str = ""
    annotations: dict[str, str] | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Index:
        """An index from untrusted bytes. Raises CorruptImage."""
        return _parse(raw, cls, "index")


class Healthcheck(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Docker's HEALTHCHECK; durations in nanoseconds."""

    test: tuple[str, ...] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ExecutionConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """How a container of the image is run unless it is told otherwise. ``None`` stands where the JSON has null or nothing."""

    user: str = ""
    exposed_ports: dict[str, Any] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] | None = None
    on_build: tuple[str, ...] | None = None


class RootFilesystemLayers(msgspec.Struct, frozen=True):
    """``rootfs``: digests of the uncompressed layers, lowest first."""

    diff_ids: tuple[str, ...] = ()
    type: str = "layers"

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "diff_ids", tuple(str(Digest.parse(diff_id)) for diff_id in self.diff_ids))


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one layer, or one change of the config, came about."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """The config of an image: its digest is the image id."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    author: str | None = None
    config: ExecutionConfig = ExecutionConfig()
    rootfs: RootFilesystemLayers = RootFilesystemLayers()
    history: tuple[History, ...] | None = None

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """A config from untrusted bytes; ``"config": null`` counts as absent. Raises CorruptImage."""
        try:
            return _parse(raw, cls, "config")
        except CorruptImage:
            nullable = _parse(raw, _NullableConfig, "config")
            if nullable.config is not None:
                raise
            rest = {name: getattr(nullable, name) for name in cls.__struct_fields__ if name != "config"}
            return cls(**rest)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """``rootfs.diff_ids`` as digests, lowest first."""
        return tuple(Digest(diff_id) for diff_id in self.rootfs.diff_ids)

    @property
    def platform(self) -> Platform:
        """What the image was made for."""
        return Platform(self.os, self.architecture, self.variant)


class _NullableConfig(ImageConfig, frozen=True):
    config: ExecutionConfig | None = None  # type: ignore[assignment]


_Parsed = TypeVar("_Parsed", Manifest, Index, ImageConfig, _NullableConfig)


def _parse(raw: bytes, form: type[_Parsed], what: str) -> _Parsed:
    if len(raw) > METADATA_LIMIT_BYTES:
        raise CorruptImage(f"the {what} of the image cannot be used", f"it is larger than {METADATA_LIMIT_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=form)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptImage(f"the {what} of the image cannot be used", str(error)) from error
