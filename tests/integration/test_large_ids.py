"""Images whose files belong to ids that a container does not have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bulle
from bulle.errors import Unavailable

pytestmark = pytest.mark.root


def test_an_id_beyond_the_range_is_refused_in_a_sentence(home: Path, busybox_rootfs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "bin").mkdir()
    (root / "bin/sh").write_bytes((busybox_rootfs / "bin/busybox").read_bytes())
    (root / "bin/sh").chmod(0o755)
    (root / "far").write_text("x")

    os.chown(root / "far", 70000, 70000)
    with bulle.Engine(home) as engine:
        engine.images.pull(f"dir:{root}")
        with pytest.raises(Unavailable, match="beyond id 65535"):
            bulle.run("root", ["sh", "-c", "true"], home=home)
        assert bulle.run("root", ["sh", "-c", "stat -c %u /far || :"], home=home, user_namespace="host").exit_code == 0
        assert engine.containers.list(all=True) == []
