"""COPY and ADD: from an instruction to what it takes from where, what that depends on, and the layer.

Sources of ADD may besides be archives of the context (unpacked), addresses (downloaded) and repositories (checked out). Dockerfile reference, "COPY",
"ADD".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bulle.build import owners
from bulle.build.cache import Inputs
from bulle.build.copying import Group, Placement, Target
from bulle.build.fetching import check, checkout, download, git_reference, is_http
from bulle.build.instructions import Add, Copy
from bulle.build.patterns import IgnoreRules, has_wildcards
from bulle.build.sources import Entry, HostDirectory, LayersSource, Source, Texts, Top, digest_of
from bulle.build.state import StageState
from bulle.errors import InvalidInput, NotFound
from bulle.registry import tar_format
from bulle.registry.compression import decompress, decompress_bounded, detect
from bulle.registry.download import shown
from bulle.store import Layer, Store
from bulle.store.merged_view import MergedView
from bulle.store.workspace import remove_tree

_HEAD_BYTES = 512


class Files:
    """One COPY or ADD: :meth:`describe` says what it depends on, :meth:`make` makes the layer. A context manager."""

    def __init__(
        self, instruction: Copy | Add, state: StageState, store: Store, open_source: Callable[[str], Source], note: Callable[[str], None]
    ) -> None:
        self._instruction = instruction
        self._state = state
        self._store = store
        self._open_source = open_source
        self._note = note
        self._cleanup = ExitStack()
        self._excludes = IgnoreRules(instruction.excludes) if instruction.excludes else None
        self._groups: list[Group] = []

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def describe(self, inputs: Inputs) -> None:
        """Gather the files and add them to what the step depends on. Raises NotFound for a source that is not there."""
        instruction = self._instruction
        if instruction.heredocs:
            texts = Texts({heredoc.name: heredoc.content.encode("utf-8", "surrogateescape") for heredoc in instruction.heredocs})
            self._groups.append(Group(texts, texts.tops()))
        for pattern in instruction.sources:
            self._groups += self._gather(pattern)
        if not any(group.tops for group in self._groups):
            names = " ".join(instruction.sources)
            raise NotFound(f"{instruction.location}: no file matches {names}", "", "check the names, and .dockerignore")
        if isinstance(instruction, Add) and instruction.checksum:
            inputs.add("checksum", instruction.checksum)
        for number, (group, top) in enumerate([(one, place) for one in self._groups for place in one.tops]):
            tree = digest_of(group.tree(top))
            name = os.fsdecode(top.name) or "."
            files = {name if path == "." else f"{name}/{path}".removeprefix("./"): digest for path, digest in tree.items()}
            taken = any(f"file {path}" in inputs.parts for path in files)
            inputs.add_files(files, f"file of source {number} " if taken else "file ")

    def make(self, view: MergedView, now_ns: int, latest_ns: int | None) -> Layer:
        """The layer, on what ``view`` shows."""
        instruction = self._instruction
        where = str(instruction.location)
        directory = self._state.config.working_dir or "/"
        destination = instruction.destination
        into = destination.endswith(("/", "/.")) or destination in (".", "..") or len(instruction.sources) + len(instruction.heredocs) > 1
        owner = owners.owner(instruction.chown, view, where) if instruction.chown else None
        mode = owners.mode(instruction.chmod, where) if instruction.chmod else None
        target = Target(os.path.join(directory, destination), into, owner, mode, instruction.parents, instruction.link)
        placement = Placement(MergedView([]) if instruction.link else view, target, now_ns)
        try:
            placement.add(self._groups)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.brief}", error.details, error.resolution) from None
        return self._store.layers.add(placement.stream(latest_ns))

    def _gather(self, pattern: str) -> Iterator[Group]:
        instruction = self._instruction
        if isinstance(instruction, Add) and not instruction.from_:
            repository = git_reference(pattern)
            if repository is not None:
                path, _commit = checkout(repository, self._temporary(), self._note, keep_git=instruction.keep_git_dir)
                yield self._everything(HostDirectory(self._opened(path), shown(repository.address)))
                return
            if is_http(pattern):
                yield self._downloaded(pattern)
                return
        source = self._open_source(instruction.from_)
        tops = self._tops(source, pattern)
        if not tops and not has_wildcards(pattern):
            advice = "check the name, and .dockerignore" if not instruction.from_ else "check the name"
            raise NotFound(f"{instruction.location}: there is no {pattern} in {source.what}", "", advice)
        for top in tops:
            unpacked = self._unpacked(top) if isinstance(instruction, Add) and instruction.unpack is not False and not instruction.from_ else None
            yield unpacked or Group(source, [top], self._excludes)

    def _tops(self, source: Source, pattern: str) -> list[Top]:
        tops = source.find(pattern)
        if self._instruction.parents:
            # What stands before /./ is not kept.
            before, pivot, _ = pattern.partition("/./")
            cut = len([part for part in os.path.normpath("/" + before).split("/") if part]) if pivot else 0
            tops = [Top(b"/".join(top.name.split(b"/")[cut:]), top.entry) for top in tops]
        if self._excludes:
            tops = [top for top in tops if not top.name or not self._excludes.excludes(os.fsdecode(top.name), top.entry.is_directory)]
        return tops

    def _unpacked(self, top: Top) -> Group | None:
        """The files of an archive of the context; None where it is none."""
        if top.entry.kind != tar_format.FILE or top.entry.size < _HEAD_BYTES // 8:
            return None
        head = _head(top.entry.open())
        if not detect(head[:8]) and head[257:262] != b"ustar":
            return None
        if detect(head[:8]) and _head(decompress(top.entry.open(), detect(head[:8]), os.fsdecode(top.name)))[257:262] != b"ustar":
            return None  # compressed, but no archive
        return self._archive(top.entry.open(), os.fsdecode(top.name))

    def _archive(self, chunks: Iterator[bytes], what: str) -> Group:
        head, rest = _peeked(chunks)
        diff_id = self._store.layers.add(decompress_bounded(rest, detect(head[:8]), what)).diff_id
        view = self._cleanup.enter_context(self._store.layers.view([diff_id]))
        return self._everything(LayersSource(view, what))

    def _downloaded(self, address: str) -> Group:
        instruction = self._instruction
        assert isinstance(instruction, Add)
        found = download(address, self._temporary(), self._note)
        if instruction.checksum:
            check(found, instruction.checksum, str(instruction.location))
        if instruction.unpack:
            return self._archive(_chunks(found.path), address)
        if not found.name and not instruction.destination.endswith("/"):
            name = os.path.basename(instruction.destination)
        elif not found.name:
            raise InvalidInput(f"{instruction.location}: {shown(address)} names no file", "", "name the file in the destination")
        else:
            name = found.name
        size = found.path.stat().st_size
        entry = Entry(os.fsencode(name), tar_format.FILE, 0o600, size=size, mtime_ns=found.modified_ns, open=lambda: _chunks(found.path))
        return Group(Texts({}), [Top(os.fsencode(name), entry)])

    def _everything(self, source: Source) -> Group:
        top = source.follow(b"")
        assert top is not None
        return Group(source, [Top(b"", top)], self._excludes)

    def _temporary(self) -> Path:
        path = self._store.temporary_directory()
        self._cleanup.callback(remove_tree, path)
        return path

    def _opened(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._cleanup.callback(os.close, descriptor)
        return descriptor


def _head(chunks: Iterator[bytes]) -> bytes:
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) >= _HEAD_BYTES:
            break
    return content[:_HEAD_BYTES]


def _peeked(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    first = next(chunks, b"")

    def whole() -> Iterator[bytes]:
        yield first
        yield from chunks

    return first, whole()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
