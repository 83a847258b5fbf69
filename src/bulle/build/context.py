"""What a build starts from: its context (a directory, an archive, a repository, standard input) and the Containerfile, with what is ignored.

Whatever the context is, it becomes a directory that is only ever reached through one descriptor. Raises a BulleError for all that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bulle.build.fetching import checkout, download, git_reference, is_http
from bulle.build.options import BuildOptions
from bulle.build.patterns import IgnoreRules
from bulle.build.sources import HostDirectory
from bulle.errors import BulleError, InvalidInput, NotFound
from bulle.linux.process import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from bulle.registry.compression import decompress_bounded, detect
from bulle.store import Store
from bulle.store.workspace import remove_tree

NAMES = ("Containerfile", "Dockerfile")
_MOST_TEXT_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 512
_IGNORE_FILES = (".containerignore", ".dockerignore")


@dataclass
class Context:
    """An opened context.

    ``root`` is a descriptor of its directory, ``text`` the Containerfile and ``name`` what errors call that. A context manager.
    """

    root: int
    name: str
    text: bytes
    ignore: IgnoreRules | None
    _cleanup: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def source(self) -> HostDirectory:
        """Its files, for COPY and ADD."""
        return HostDirectory(self.root, "the context", self.ignore)


def open_context(options: BuildOptions, store: Store, stdin: BinaryIO | None, progress: Callable[[str], None]) -> Context:
    """Open what the options name. ``stdin`` is read where they say "-"."""
    with ExitStack() as cleanup:
        text: bytes | None = None
        if options.file == "-":
            if options.context == "-":
                raise InvalidInput("both the context and the Containerfile cannot come from standard input", "", "give one of them a path")
            text = _read(stdin)
        root, sent = open_directory(options.context, store, stdin, progress, cleanup)
        text = sent if text is None else text
        name = options.file if options.file not in ("", "-") else "Containerfile"
        if text is None:
            name, text = _containerfile(root, options.file, beside=os.path.isdir(options.context))
        ignore = ignore_rules(root, name, beside=options.file not in ("", "-") and os.path.isdir(options.context))
        return Context(root, os.path.basename(name), text, ignore, cleanup.pop_all())


def open_directory(text: str, store: Store, stdin: BinaryIO | None, progress: Callable[[str], None], cleanup: ExitStack) -> tuple[int, bytes | None]:
    """A descriptor of the directory that a context means, and the Containerfile where standard input holds nothing else."""

    def temporary() -> Path:
        directory = store.temporary_directory()
        cleanup.callback(remove_tree, directory)
        return directory

    sent: bytes | None = None
    repository = git_reference(text)
    if text == "-":
        first = stdin.read(_CHUNK_BYTES) if stdin is not None else b""
        path = temporary()
        if _is_archive(first):
            path = _unpacked(_chained(first, stdin), store, path, "standard input")
        else:
            sent = first + _read(stdin)
    elif repository is not None and not os.path.exists(text):
        path, _commit = checkout(repository, temporary(), progress, keep_git=False)
    elif is_http(text):
        found = download(text, temporary(), progress)
        path = temporary()
        with found.path.open("rb") as file:
            first = file.read(_HEAD_BYTES)
        if _is_archive(first):
            path = _unpacked(_file_chunks(found.path), store, path, text)
        else:
            sent = found.path.read_bytes()[: _MOST_TEXT_BYTES + 1]
    elif os.path.isfile(text):
        with open(text, "rb") as file:
            if not _is_archive(file.read(_HEAD_BYTES)):
                details = "it is neither a directory nor a tar archive"
                raise InvalidInput(f"the context {text} cannot be used", details, f"for a Containerfile say -f {text} and the directory")
        path = _unpacked(_file_chunks(Path(text)), store, temporary(), text)
    else:
        path = Path(text)
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else error.strerror or ""
        raise NotFound(f"the context {text} cannot be used", why or "there is no such directory", "name a directory, such as .") from None
    cleanup.callback(os.close, root)
    return root, sent


def _containerfile(root: int, wanted: str, *, beside: bool) -> tuple[str, bytes]:
    """Its name and text: the file that was named (with ``beside`` relative to the caller, or else to the context), else the first of the usual."""
    if wanted and beside and os.path.exists(wanted):
        try:
            return wanted, Path(wanted).read_bytes()[: _MOST_TEXT_BYTES + 1]
        except OSError as error:
            raise BulleError(f"{wanted} cannot be read", error.strerror or "", "name a readable file with -f") from None
    for name in (wanted,) if wanted else NAMES:
        text = _text(root, name)
        if text is not None:
            return name, text
    if wanted:
        raise NotFound(f"there is no {wanted}", "neither here nor in the context", "check -f")
    raise NotFound("the context has neither a Containerfile nor a Dockerfile", "", "write one, or name it with -f")


def ignore_rules(root: int, name: str = "Containerfile", *, beside: bool = False) -> IgnoreRules | None:
    """What a context leaves out: the rules for the Containerfile ``name`` (a host path with ``beside``), else those for all."""
    own = f"{name}.dockerignore"
    if beside and os.path.isfile(own):
        return IgnoreRules.parse(Path(own).read_text(errors="surrogateescape"))
    for candidate in (own, *_IGNORE_FILES):
        text = _text(root, candidate)
        if text is not None:
            return IgnoreRules.parse(text.decode("utf-8", "surrogateescape"))
    return None


def _text(root: int, name: str) -> bytes | None:
    """The content of a file of the context; None where there is none."""
    try:
        descriptor = openat2(root, name, os.O_RDONLY | os.O_NONBLOCK, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        try:
            return file.read(_MOST_TEXT_BYTES + 1)
        except OSError:
            return None


def _read(stdin: BinaryIO | None) -> bytes:
    if stdin is None:
        raise InvalidInput("standard input was named, and there is none")
    return stdin.read(_MOST_TEXT_BYTES + 1)


def _is_archive(first: bytes) -> bool:
    return bool(detect(first[:8])) or first[257:262] == b"ustar"


def _unpacked(chunks: Iterator[bytes], store: Store, directory: Path, what: str) -> Path:
    """An archive as a directory: checked as a layer is, so that nothing in it can lead out."""
    first = next(chunks, b"")
    plain = decompress_bounded(_chained(first, chunks), detect(first[:8]), what)
    diff_id = store.layers.add(plain).diff_id
    target = directory / "context"
    target.mkdir()
    store.layers.extract(diff_id, target)
    return target


def _chained(first: bytes, rest: Iterator[bytes] | BinaryIO | None) -> Iterator[bytes]:
    yield first
    if rest is not None:
        yield from rest if isinstance(rest, Iterator) and not hasattr(rest, "read") else _stream_chunks(rest)  # type: ignore[arg-type]


def _stream_chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _stream_chunks(file)
