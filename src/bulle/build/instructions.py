"""What a Containerfile says, as values: one class for each instruction, and the file as a row of them.

:mod:`bulle.build.parsing` makes them, the executor of builds carries them out. Words stand in them as they were written, with their quotes and their
``$NAME``; :func:`bulle.build.expansion.expanded` replaces both when the instruction's turn comes, for then the variables are known. Nothing here
reads files or knows images. Meanings are those of the Dockerfile reference (docker/dockerfile:1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Location:
    """The lines of an instruction in its file; both are counted from 1, heredocs are within."""

    file: str
    line: int
    end_line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has: where it stands, its text with continued lines joined, and the file's escape character (for expansion)."""

    keyword: ClassVar[str] = ""
    location: Location = field(default=Location("", 0, 0))
    original: str = ""
    escape: str = "\\"


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A text that stands in the file itself. Leading tabs of a ``<<-`` are gone; ``expand`` says whether the delimiter was without quotes."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True, slots=True)
class From(Instruction):
    """The begin of a stage: the image (or earlier stage) that it builds on. The stage's name is in lower case."""

    keyword: ClassVar[str] = "FROM"
    image: str
    platform: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Arg(Instruction):
    """Build arguments: names, each with its default or None."""

    keyword: ClassVar[str] = "ARG"
    names: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Env(Instruction):
    """Variables of the environment, of the build from here on and of the image."""

    keyword: ClassVar[str] = "ENV"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Label(Instruction):
    """Labels of the image."""

    keyword: ClassVar[str] = "LABEL"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RunMount:
    """A ``--mount`` of a RUN. ``read_only`` is decided; what the reference derives (``id`` of a cache or secret, ``/run/secrets/…``) is filled in.

    ``type`` is bind, cache, secret, tmpfs or ssh. ``target`` may be relative to the working directory. ``mode`` is None where none was given;
    ``size_bytes`` is 0 for no limit. Before expansion, an option whose value has a ``$`` stands at its default unless it is a text.
    """

    type: str = "bind"
    target: str = ""
    source: str = ""
    from_: str = ""
    id: str = ""
    read_only: bool | None = None
    sharing: str = "shared"
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    env: str = ""


@dataclass(frozen=True, slots=True)
class Run(Instruction):
    """A command of the build. In the shell form ``command`` is one text, heredocs within it; otherwise the words to execute.

    ``mount_options`` are the texts that ``mounts`` were read from, for expansion.
    """

    keyword: ClassVar[str] = "RUN"
    command: tuple[str, ...]
    shell: bool
    mounts: tuple[RunMount, ...] = ()
    network: str = ""
    security: str = ""
    heredocs: tuple[Heredoc, ...] = ()
    devices: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()

    @property
    def script(self) -> Heredoc | None:
        """The heredoc that is a program of its own (it begins with ``#!``): to be put into a file, ``/dev/pipes/NAME``, which is then executed."""
        if len(self.heredocs) == 1 and self.command == (self.heredocs[0].content,) and self.heredocs[0].content.startswith("#!"):
            return self.heredocs[0]
        return None


@dataclass(frozen=True, slots=True)
class Copy(Instruction):
    """Files from the context, a stage or an image (``from_``) into the image. A heredoc is a file of its name."""

    keyword: ClassVar[str] = "COPY"
    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Add(Instruction):
    """As COPY, and sources may be archives (unpacked), addresses and git repositories. ``unpack`` is None where the flag was not given."""

    keyword: ClassVar[str] = "ADD"
    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()
    checksum: str = ""
    keep_git_dir: bool = False
    unpack: bool | None = None


@dataclass(frozen=True, slots=True)
class Cmd(Instruction):
    """The image's default command; one text in the shell form."""

    keyword: ClassVar[str] = "CMD"
    command: tuple[str, ...]
    shell: bool


@dataclass(frozen=True, slots=True)
class Entrypoint(Instruction):
    """The program that containers of the image start with; one text in the shell form."""

    keyword: ClassVar[str] = "ENTRYPOINT"
    command: tuple[str, ...]
    shell: bool


@dataclass(frozen=True, slots=True)
class Shell(Instruction):
    """The words before the text of a shell form, from here on and in the image."""

    keyword: ClassVar[str] = "SHELL"
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expose(Instruction):
    """Ports that the image's program listens on, as written (``80``, ``53/udp``, ``8000-8010``)."""

    keyword: ClassVar[str] = "EXPOSE"
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Volume(Instruction):
    """Directories whose content is kept apart from containers."""

    keyword: ClassVar[str] = "VOLUME"
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User(Instruction):
    """Who runs commands from here on: a name or number, with or without ``:group``."""

    keyword: ClassVar[str] = "USER"
    user: str


@dataclass(frozen=True, slots=True)
class Workdir(Instruction):
    """The working directory; a relative one is below the one before."""

    keyword: ClassVar[str] = "WORKDIR"
    path: str


@dataclass(frozen=True, slots=True)
class StopSignal(Instruction):
    """The signal that ends containers of the image; a name or a number."""

    keyword: ClassVar[str] = "STOPSIGNAL"
    signal: str


@dataclass(frozen=True, slots=True)
class Healthcheck(Instruction):
    """How to find out whether a container is well: ``("NONE",)``, ``("CMD", …)`` or ``("CMD-SHELL", text)``. 0 stands for what was not given."""

    keyword: ClassVar[str] = "HEALTHCHECK"
    test: tuple[str, ...] | None
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Onbuild(Instruction):
    """An instruction for builds that begin with this image; its text (heredocs within) is for ``parse_one``."""

    keyword: ClassVar[str] = "ONBUILD"
    text: str


@dataclass(frozen=True, slots=True)
class Maintainer(Instruction):
    """The author of the image; a LABEL has taken its place."""

    keyword: ClassVar[str] = "MAINTAINER"
    name: str


@dataclass(frozen=True, slots=True)
class Containerfile:
    """A whole file: its directives (``syntax``, ``escape``, ``check``), its instructions, and what in it is allowed and probably not meant."""

    directives: dict[str, str]
    instructions: tuple[Instruction, ...]
    warnings: tuple[str, ...] = ()
