"""A volume as a tar: ``volume export`` and ``volume import``.

A child reads and writes the files, with ids as a container sees them; the tar goes over a line to it. What comes in is unpacked aside first, so that
an archive that is damaged or hostile leaves the volume as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from bulle.engine import volume_files
from bulle.engine.copy_ends import WholeWalk
from bulle.engine.inner_worker import Line, beside
from bulle.errors import BulleError
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.registry.tree import attributes_of
from bulle.registry.tree_writer import Rules, TreeWriter, owner_of

_CHUNK_BYTES = 1 << 18


def export_to(base: int, name: str, out: BinaryIO) -> None:
    """Write the tar of what is in the volume whose directory is opened; its first member is the directory itself."""

    def work(line: Line) -> None:
        try:
            with volume_files.data_of(base) as data:
                walk = WholeWalk(Path(f"volume {name}"))
                line.write(walk.directory_header(os.fstat(data), b".", attributes_of(data)))
                for chunk in walk.all(data):
                    line.write(chunk)
        except OSError as error:
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                raise
            raise BulleError(f"volume {name} cannot be exported", f"{error.strerror} ({error.filename})") from error
        line.end_stream()

    with beside(rootless_mappings(), work) as line:
        while chunk := line.reading.read(_CHUNK_BYTES):
            out.write(chunk)
        out.flush()


def import_from(base: int, name: str, stream: BinaryIO) -> None:
    """Unpack a tar in the volume whose directory is opened and locked. Raises CorruptImage, InvalidInput, StorageFull, Conflict."""
    from bulle.registry.compression import decompress, detect

    def work(line: Line) -> None:
        volume_files.settle(base)
        rules = Rules(owners=True, lenient=True, owner=(0, 0), privileges=True, place=f"volume {name}")
        if volume_files.is_empty(base):
            volume_files.replace(base, lambda new: _unpack(new, rules, line.reading))
        else:
            with volume_files.aside(base) as new, volume_files.data_of(base) as data:
                _unpack(new, rules, line.reading)  # everything that is wrong with the archive shows here
                TreeWriter(data, rules).write(cast("BinaryIO", _Pieces(WholeWalk(Path(f"volume {name}")).all(new))))
        line.send(None)
        line.end_stream()

    head = stream.read(_CHUNK_BYTES)
    with beside(rootless_mappings(), work) as line:
        for chunk in decompress(_chunks(head, stream), detect(head), "the archive"):
            line.write(chunk)
        line.end_stream()
        line.receive()


def _unpack(directory: int, rules: Rules, stream: BinaryIO) -> None:
    writer = TreeWriter(directory, rules)
    writer.write(stream)
    if writer.root is not None:
        with suppress(OSError):  # an ordinary user has only so many ids
            os.fchown(directory, *owner_of(writer.root))
    os.fchmod(directory, 0o755 if writer.root is None else writer.root.mode & 0o7777)


class _Pieces:
    """A tar that is being made, as a stream to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        chunk, self._rest = self._rest[:size], self._rest[size:]
        return chunk


def _chunks(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(_CHUNK_BYTES)
