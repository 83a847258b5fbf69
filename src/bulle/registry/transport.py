"""Where images come from: one interface, :class:`Source`, behind every transport, and the values that a source hands out.

The engine opens a source (``open_source``, ``sniff``), gives each layer's bytes to the store and commits the image; sources know nothing of the
store. A source has verified the manifest and the config of what it hands out and that they fit each other. It has not verified the layers: their
bytes are bounded by the size in the descriptor, their digests are checked where they are written, by ``LayerStore.ingest``.
"""

from __future__ import annotations

import socket
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bulle.errors import BulleError
from bulle.model.digest import Digest
from bulle.model.image import Descriptor, Platform
from bulle.model.reference import Reference
from bulle.registry.progress import ProgressCallback, silent


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """One layer that can be fetched: ``open()`` gives its bytes as the descriptor describes them, each time from the start.

    The iterator raises CorruptImage, RegistryFailure or BulleError; it may be used from any one thread.
    """

    descriptor: Descriptor
    diff_id: Digest
    open: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """One image that can be brought into the store: raw documents, layers lowest first, and the names under which it should be kept."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[RemoteLayer, ...]
    references: tuple[Reference, ...] = ()
    host_binds: tuple[str, ...] = ()

    @property
    def id(self) -> Digest:
        """Docker's image id: the digest of the config."""
        return Digest.of(self.config)

    @property
    def manifest_digest(self) -> Digest:
        """What an artifact that speaks of this image calls it."""
        return Digest.of(self.manifest)


Choose = Callable[[Iterable[RemoteImage]], list[RemoteImage]]
"""Which of the images of a source are brought in, and under which names."""


@dataclass(frozen=True, slots=True)
class RemoteArtifact:
    """Something that speaks of an image: its raw manifest, verified, and ``open`` for each blob that the manifest names, bounded but not verified."""

    manifest: bytes
    open: Callable[[Descriptor], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password for one registry, or an identity token in their place; never shown in a message."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """By what a host is believed to be itself: the system's authorities and these (host paths of PEM files); without ``verify`` by nothing.

    ``client`` are the certificate and key (host paths) that we show to it.
    """

    verify: bool = True
    authorities: tuple[Path, ...] = ()
    client: tuple[Path, Path] | None = None


class Stop:
    """That a transfer has no use any more: whoever waits, or reads from a connection, is woken. Shared by threads."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def is_set(self) -> bool:
        """Whether the transfer was given up."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> None:
        """Wait so long, or until it is given up."""
        self._event.wait(timeout_s)

    def watch(self, connection: socket.socket) -> None:
        """Break a connection when the transfer is given up."""
        with self._lock:
            self._connections.add(connection)
        if self.is_set():
            self.set()

    def set(self) -> None:
        """Give the transfer up."""
        self._event.set()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError, ValueError):
                connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, kw_only=True)
class SourceConfiguration:
    """What the user configured, as far as sources care.

    ``temporary`` is a host directory for large temporary files (its owner makes and keeps it private). ``insecure_registries`` are hosts (with port)
    that may speak plain http, or TLS that nobody vouches for; this machine itself may always speak plain http. ``trust`` says how any other host
    shows who it is. ``mirrors`` maps a registry to the hosts to try before it. ``credentials`` finds the login for a registry's host. ``retries``
    and ``backoff_s`` say how often and after how long a failed request is repeated. ``stopped`` is set when what is under way has no use any more.
    """

    temporary: Path | None = None
    insecure_registries: tuple[str, ...] = ()
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    credentials: Callable[[str], Credentials | None] = lambda _host: None
    trust: Callable[[str], Trust] = lambda _host: Trust()
    debian_mirror: str = ""
    retries: int = 4
    backoff_s: float = 0.5
    timeout_s: float = 30.0
    progress: ProgressCallback = silent
    stopped: Stop = field(default_factory=Stop)

    def check_stopped(self) -> None:
        """Raise BulleError once somebody gave the transfer up: other threads of it learn so at their next piece."""
        if self.stopped.is_set():
            raise BulleError("the transfer was given up")


class Source(ABC):
    """One opened place with images. A context manager: leaving it closes files and connections, after which no layer can be opened.

    ``repository`` is ``domain/path`` where the images come from a registry. Layers that are being read end soon after ``stopped`` is set.
    """

    repository = ""
    progress: ProgressCallback = staticmethod(silent)
    stopped: Stop | None = None

    @abstractmethod
    def images(self) -> Iterator[RemoteImage]:
        """Every image that was asked for, fit for the platform. Raises CorruptImage, NotFound, RegistryFailure, Unavailable."""

    def artifacts(self, image: RemoteImage) -> Iterator[RemoteArtifact]:
        """What speaks of an image, as far as it is of reasonable number and size; nothing where the place keeps no such thing. Raises BulleError."""
        yield from ()

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Let go of files and connections; harmless to repeat."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What every kind of source is opened with: the text after the transport's name, and how."""

    text: str
    platform: Platform
    configuration: SourceConfiguration
