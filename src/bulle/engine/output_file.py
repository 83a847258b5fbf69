"""Where an archive is written to: standard output, or a file that is whole or not there at all. For ``save``, ``export``, ``build --output``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bulle.errors import InvalidInput
from bulle.store.failures import storage_errors


@contextmanager
def output_file(path: str | None) -> Iterator[BinaryIO]:
    """A host path, or standard output for None (not where that is a terminal). Raises InvalidInput, StorageFull."""
    if path is None:
        if os.isatty(1):
            raise InvalidInput("an archive is not written to a terminal", "", "name a file, or redirect")
        with open(1, "wb", closefd=False) as out:
            yield out
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a device or FIFO is written to, not replaced
        with target.open("wb") as out:
            yield out
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with storage_errors(f"{path} could not be written"):
        try:
            with partial.open("wb") as out:
                yield out
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
