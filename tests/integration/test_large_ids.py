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
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_bytes((busybox_rootfs / "bin/busybox").read_bytes())
    (root / "bin/sh").chmod(0o755)
    (root / "far").write_text("x")
    os.chown(root / "far", 70000, 70000)
    with bulle.Engine(home) as engine:
        engine.images.pull(f"dir:{root}")
        with pytest.raises(Unavailable, match="beyond id 65535"):
            engine.containers.create(bulle.ContainerOptions(image="root", command=("sh", "-c", "exit 3")))
        assert engine.containers.list(all=True) == []
        container = engine.containers.create(bulle.ContainerOptions(image="root", command=("sh", "-c", "exit 3"), user_namespace="host"))
        container.start()
        assert container.wait() == 3
        container.remove()
