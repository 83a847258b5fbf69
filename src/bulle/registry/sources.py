"""The table of transports: from what a user wrote (``oci:DIR``, ``deb:bookworm``, ``debian:12``) to an opened
:class:`~bulle.registry.transport.Source`.

The engine calls :func:`open_source` for ``pull`` and :func:`sniff` for ``load``. A transport's module is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from bulle.errors import CorruptImage, InvalidInput
from bulle.model.image import Platform
from bulle.model.platform import this_platform
from bulle.model.reference import Reference
from bulle.registry.archive import open_archive
from bulle.registry.transport import Source, SourceConfiguration, SourceRequest


def open_source(text: str, *, platform: Platform | None = None, configuration: SourceConfiguration | None = None) -> Source:
    """Open what ``text`` names; a reference without a transport means a registry. Paths are the host's.

    Raises InvalidInput, InvalidReference, NotFound, CorruptImage, Unavailable; then nothing stays open.
    """
    transport, rest = _split(text)
    return _TRANSPORTS[transport](SourceRequest(rest, platform or this_platform(), configuration or SourceConfiguration()))


def is_remote(text: str) -> bool:
    """Whether what ``text`` names is in a registry. Raises InvalidInput."""
    return _split(text)[0] == "docker"


def source_reference(text: str) -> Reference | None:
    """The name under which the image of a source will be kept, where the text alone decides it (host, deb, docker, dir); else None.

    So that ``bulle run deb:bookworm`` finds what ``bulle pull deb:bookworm`` made. Raises InvalidReference, InvalidInput.
    """
    transport, rest = _split(text)
    if transport == "docker":
        return Reference.parse(rest.removeprefix("//"))
    if transport == "host":
        return Reference.parse("host")
    if transport == "deb":
        from bulle.registry.debian import parse_recipe

        return parse_recipe(rest).reference
    if transport == "dir":
        from bulle.registry.oci_layout import name_from_path

        return name_from_path(Path(rest), "")
    return None


def sniff(source: Path | BinaryIO, *, platform: Platform | None = None, configuration: SourceConfiguration | None = None) -> Source:
    """Open an archive of whatever kind it is: docker-archive or oci-archive, plain or compressed, a host path or a stream; or an OCI layout
    directory.

    The stream stays the caller's and may be closed afterwards. Raises NotFound, CorruptImage, StorageFull, Unavailable.
    """
    from bulle.registry.docker_archive import DockerArchive
    from bulle.registry.oci_layout import ArchivedBlobs, OciLayout, open_layout

    configuration = configuration or SourceConfiguration()
    platform = platform or this_platform()
    if isinstance(source, Path) and (source / "oci-layout").is_file():
        return open_layout(SourceRequest(str(source), platform, configuration))
    archive = open_archive(source, configuration.temporary)
    try:
        if archive.has("manifest.json"):
            return DockerArchive(archive, platform)
        if archive.has("oci-layout") or archive.has("index.json"):
            path = source if isinstance(source, Path) else None
            return OciLayout(ArchivedBlobs(archive), archive.name, platform, path)
        raise CorruptImage(f"{archive.name} is not an image archive", "it has neither a manifest.json (docker save) nor an index.json (OCI)")
    except BaseException:
        archive.close()
        raise


def _split(text: str) -> tuple[str, str]:
    """The transport and what follows it."""
    if text in ("host", "host:", "host:latest"):
        return "host", ""
    transport, colon, rest = text.partition(":")
    if colon and transport in _TRANSPORTS and transport != "host":
        if not rest:
            raise InvalidInput(f"{text!r} names nothing", f"something must follow {transport}:")
        return transport, rest
    return "docker", text


def _docker_archive(request: SourceRequest) -> Source:
    from bulle.registry.docker_archive import DockerArchive

    archive = open_archive(Path(request.text), request.configuration.temporary)
    try:
        return DockerArchive(archive, request.platform)
    except BaseException:
        archive.close()
        raise


def _oci(request: SourceRequest) -> Source:
    from bulle.registry.oci_layout import open_layout

    return open_layout(request)


def _oci_archive(request: SourceRequest) -> Source:
    from bulle.registry.oci_layout import open_archived_layout

    return open_archived_layout(request)


def _directory(request: SourceRequest) -> Source:
    from bulle.registry.root_directory import RootDirectory

    return RootDirectory(request)


def _host(request: SourceRequest) -> Source:
    from bulle.registry.host import HostImage

    return HostImage(request)


def _debian(request: SourceRequest) -> Source:
    from bulle.registry.debian import DebianImage

    return DebianImage(request)


def _registry(request: SourceRequest) -> Source:
    from bulle.registry.remote import RemoteRepository

    return RemoteRepository(request)


_TRANSPORTS: dict[str, Callable[[SourceRequest], Source]] = {
    "docker-archive": _docker_archive,
    "oci": _oci,
    "oci-archive": _oci_archive,
    "dir": _directory,
    "host": _host,
    "deb": _debian,
    "docker": _registry,
}
