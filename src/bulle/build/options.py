"""What can be asked of a build, and what happens in one: the typed form of ``bulle build``'s flags, and the events that a progress display gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from bulle.model.run_plan import ResourceLimit

IMAGE_CONTEXTS = ("docker-image://", "oci-layout://")
"""How a place given with ``--build-context`` begins when it is an image and no directory."""


class Output(msgspec.Struct, frozen=True):
    """``--output``: where the result goes besides, or instead of, the store.

    ``oci`` and ``docker`` are archives, ``local`` a directory and ``tar`` an archive of the root filesystem, ``image`` the store. ``destination`` is
    a host path, "-" standard output.
    """

    type: Literal["image", "oci", "docker", "local", "tar"] = "image"
    destination: str = ""


class Secret(msgspec.Struct, frozen=True):
    """``--secret``: a value by its id, from a file (host path) or a variable of the caller's environment; shown nowhere."""

    id: str
    source: str = ""
    variable: str = ""


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be asked of ``build``; names and meanings are Docker's.

    ``context`` is a host directory, a tar file, an address of a git repository or "-" (a tar, or a Containerfile, on standard input); ``file`` a host
    path, relative to the context first. ``allowed`` is what a Containerfile may not ask for by itself (``security.insecure``). ``environment`` is
    the caller's, for arguments and secrets without a value. ``source_date_epoch_s`` are seconds since the epoch, None for the time of the build.
    """

    context: str = "."
    file: str = ""
    tags: tuple[str, ...] = ()
    target: str = ""
    arguments: tuple[str, ...] = ()
    contexts: tuple[tuple[str, str], ...] = ()
    secrets: tuple[Secret, ...] = ()
    ssh: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    allowed: tuple[str, ...] = ()
    no_cache: bool = False
    no_cache_stages: tuple[str, ...] = ()
    pull: bool = False
    network: str = ""
    isolation: str = ""
    memory_bytes: int = 0
    shm_bytes: int = 0
    extra_hosts: tuple[tuple[str, str], ...] = ()
    """Names and addresses for /etc/hosts in RUN."""
    limits: tuple[ResourceLimit, ...] = ()
    """What is set with setrlimit(2) in RUN."""
    sbom: str = ""
    source_date_epoch_s: int | None = None
    environment: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction that is carried out: where it stands in its stage (counted from 1, ``total`` of them), and its text."""

    stage: str
    number: int
    total: int
    text: str


@dataclass(frozen=True, slots=True)
class BuildEvent:
    """What happened to a step: it ``started``, was ``cached``, wrote ``output`` (bytes), is ``done`` or ``failed``; or a ``note`` about it, or a
    ``warning``.

    ``explanation`` says why a step was not cached, ``seconds`` how long it took. ``progress`` is how far the transfer of ``text`` is: ``part``, bytes
    so far and all of them (0: nobody knows).
    """

    kind: Literal["started", "cached", "output", "done", "failed", "note", "warning", "progress"]
    step: Step | None
    data: bytes = b""
    text: str = ""
    explanation: str = ""
    seconds: float = 0.0
    part: tuple[int, int] = (0, 0)


Report = Callable[[BuildEvent], None]
"""Called from several threads at once; must not raise."""


def silent(_event: BuildEvent) -> None:
    """The report of a caller who does not want to know."""
