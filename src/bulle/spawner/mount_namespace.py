"""The spawner's own mount namespace: where layers are mounted, unseen by the rest of the machine, and how it keeps up with the host's mounts.

A slave of the host's: what the host mounts on a shared tree appears by itself. Where the host's tree is not shared (no systemd, most containers)
nothing propagates, so the kernel is asked to tell when the host's mounts change (poll on an old mountinfo), and the namespace is made anew when it
lags behind; the old one lives on as long as monitors stand in it. Processes without CAP_SYS_ADMIN stay where they are. mount_namespaces(7),
proc_pid_mountinfo(5)
"""

from __future__ import annotations

import contextlib
import os

from bulle.linux.mount import AT_FDCWD, MS_REC, MS_SLAVE, attach_mount, mount, open_tree
from bulle.linux.namespaces import CLONE_NEWNS, setns, unshare


class MountNamespace:
    """Descriptors of where the spawner came from, and the way into a namespace of its own."""

    def __init__(self, origin: int = -1, origin_mounts: int = -1) -> None:
        """Of this process as it stands, or from the descriptors that a predecessor kept."""
        self.origin = origin if origin >= 0 else os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.origin_mounts = origin_mounts if origin_mounts >= 0 else os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def own(self) -> int:
        """The inode number of the namespace that this process is in."""
        return os.stat("/proc/self/ns/mnt").st_ino

    def enter(self, home: str, join_pid: int | None = None) -> bool:
        """Move into a namespace of its own: of process ``join_pid`` where that lives, else a new slave of the origin. False: not allowed."""
        if join_pid:
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/{join_pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    setns(fd, CLONE_NEWNS)
                finally:
                    os.close(fd)
                if self.lags_behind(home):
                    return self.renew(home)
                return True
        return self.renew(home)

    def renew(self, home: str) -> bool:
        """A new slave copy of the origin as it is now, with what was mounted below ``home`` (the layers) in the old one.

        False: not allowed to, or the root cannot be made a slave.
        """
        carried = self._carried(home)
        try:
            if self.own != os.fstat(self.origin).st_ino:
                setns(self.origin, CLONE_NEWNS)
            unshare(CLONE_NEWNS)
            try:
                mount(None, "/", flags=MS_REC | MS_SLAVE)
            except OSError:
                # In a chroot "/" may be no mount: without propagation under control a copy would leak mounts to the host.
                setns(self.origin, CLONE_NEWNS)
                return False
            for path, descriptor in carried.items():
                with contextlib.suppress(OSError):  # a monitor mounts it again
                    attach_mount(descriptor, path)
        except OSError:
            return False
        finally:
            for descriptor in carried.values():
                os.close(descriptor)
        return True

    def _carried(self, home: str) -> dict[bytes, int]:
        """Detached copies of what is mounted below ``home`` in this namespace alone, by mount point, parents first."""
        copies: dict[bytes, int] = {}
        if self.own == os.fstat(self.origin).st_ino:
            return copies
        with open("/proc/self/mountinfo", "rb") as file:
            points = [line.split()[4] for line in file]
        for point in points:
            if point.startswith(os.fsencode(home) + b"/") and point not in copies and b"\\" not in point:
                with contextlib.suppress(OSError):
                    copies[point] = open_tree(AT_FDCWD, point)
        return copies

    def lags_behind(self, home: str) -> bool:
        """Whether the origin has other mounts than this namespace, not counting what is below ``home``."""
        os.lseek(self.origin_mounts, 0, os.SEEK_SET)
        own = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _mounts(self.origin_mounts, home) != _mounts(own, home)
        finally:
            os.close(own)


def _mounts(fd: int, home: str) -> set[tuple[bytes, ...]]:
    content = b""
    while chunk := os.read(fd, 1 << 16):
        content += chunk
    below = os.fsencode(home) + b"/"
    # Fields 3-5: device, root of the mount inside its file system, mount point.
    return {tuple(fields[2:5]) for fields in map(bytes.split, content.splitlines()) if not fields[4].startswith(below)}
