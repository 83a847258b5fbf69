"""Where COPY takes files from: a directory of the host that changes while it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bulle.build.sources import HostDirectory
from bulle.errors import Conflict


@pytest.mark.parametrize("change", ["content of the same length", "another file of that name", "longer"])
def test_a_file_that_changes_between_key_and_layer_is_refused(tmp_path: Path, change: str) -> None:
    """Else a layer would stand in the cache under the key of what it is not."""
    (tmp_path / "file").write_bytes(b"before")
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        [top] = HostDirectory(root, "the context").find("file")
        assert b"".join(top.entry.open()) == b"before"
        if change == "another file of that name":
            (tmp_path / "other").write_bytes(b"before")
            (tmp_path / "other").rename(tmp_path / "file")
        else:
            (tmp_path / "file").write_bytes(b"after!" if change.startswith("content") else b"before and more")
        with pytest.raises(Conflict, match="changed while it was copied"):
            b"".join(top.entry.open())
    finally:
        os.close(root)
