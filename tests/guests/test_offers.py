"""What the guests of `make test-guests` are there for: that what this machine's kernel never needs is really what runs in them.

These tests run inside the guests, before all others, as root and as an ordinary user (tests/guests/inside.sh).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bulle.isolation import overlay
from bulle.isolation.control_group import available
from bulle.linux import mount
from bulle_testing.layers import in_mount_namespace
from bulle_testing.running import LEVELS, Machine

pytestmark = pytest.mark.guests
KERNEL = os.environ.get("BULLE_GUEST_KERNEL", "")
CONTAINER = LEVELS[0]


def own_group(place: Machine) -> str:
    """Where a container with a limit stands, as this machine sees it."""
    with place.running(CONTAINER, memory_bytes=64 << 20, pids_limit=50) as container:
        pid = container.state().pid
        assert place.execute(container, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max").stdout.split() == [b"67108864", b"50"]
        return Path(f"/proc/{pid}/cgroup").read_text().strip()


def test_the_kernel_is_that_of_the_guest() -> None:
    assert KERNEL and os.uname().release.startswith(KERNEL)
    assert Path("/proc/1/comm").read_text() == "systemd\n"


def test_limits_are_those_of_version_2_below_systemd(box: Machine) -> None:
    assert mount.filesystem_type("/sys/fs/cgroup") == 0x63677270, "CGROUP2_SUPER_MAGIC of statfs(2)"
    wanted = {"memory", "pids", "freezer"} | ({"cpu", "cpuset", "io"} if os.geteuid() == 0 else set())
    assert wanted <= available().controllers, available().reason
    manager = "" if os.geteuid() == 0 else f"/user.slice/user-{os.geteuid()}.slice/user@{os.geteuid()}.service"
    assert own_group(box).startswith(f"0::{manager}/bulle.slice/bulle.scope/")


def test_layers_are_shown_the_way_that_this_kernel_has(box: Machine) -> None:
    expected = "directory" if os.geteuid() else "loop" if KERNEL.startswith("6.1.") else "erofs"
    with box.running(CONTAINER) as container:
        assert {layer.kind for layer in container.plan.root.layers} == {expected}
        bound = [Path(path).read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert any(path.startswith(str(box.home)) for path in bound) == (expected == "loop")


@pytest.mark.root
def test_overlays_are_made_by_paths(tmp_path: Path) -> None:
    """And, before 6.5, all layers at once: in a mount namespace of its own, as for a container."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def made() -> list[str]:
        lowers = [mount.open_tree(mount.AT_FDCWD, tmp_path / name) for name in ("one", "two")]
        assert overlay.from_descriptors(overlay.Kind(), lowers) is None
        shown = overlay.from_paths(overlay.Kind(), [str(tmp_path / name) for name in ("one", "two")])
        return sorted(os.listdir(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=shown)))

    assert in_mount_namespace(made) == ["one", "two"]
