"""Whether the code that the spawner has loaded is still the code on disk.

The kernel reports changes in the directories of the loaded modules (inotify), so that asking costs nothing while nothing changes; only then, and
once a second in case an event was not seen (a whole tree renamed, network file systems), the files' mtime, size and inode are compared. The
standard library counts only through the interpreter's own file: an upgrade of Python replaces that too.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time

from bulle.linux.inotify import (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    inotify_add_watch,
    inotify_init,
)

_CHANGES = IN_ATTRIB | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MODIFY | IN_MOVE_SELF | IN_MOVED_FROM | IN_MOVED_TO
LOOK_INTERVAL_S = 1.0

Fingerprint = tuple[tuple[int, int, int], ...]


class CodeWatch:
    """The files of every module that is loaded when this object is made, outside the standard library."""

    def __init__(self) -> None:
        standard = {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")}
        site = {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("purelib", "platlib")}
        files = {sys.executable}
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if not path or not path.startswith("/"):
                continue
            in_standard = any(path.startswith(prefix) for prefix in standard)
            if not in_standard or any(path.startswith(prefix) for prefix in site) or "-packages/" in path:
                files.add(path)
        self.files = tuple(sorted(files))
        self.loaded = self.fingerprint()
        self._looked_s = time.monotonic()
        self._suspicious = False
        self.watcher = -1
        try:
            self.watcher = inotify_init()
            for directory in {os.path.dirname(path) for path in self.files}:
                inotify_add_watch(self.watcher, directory, _CHANGES)
        except OSError:
            # No watches left for this user: look every time.
            if self.watcher >= 0:
                os.close(self.watcher)
            self.watcher = -1

    def fingerprint(self) -> Fingerprint:
        """Of every file as it is now; a missing file has zeros."""
        result = []
        for path in self.files:
            try:
                status = os.stat(path)
                result.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                result.append((0, 0, 0))
        return tuple(result)

    def changed(self) -> bool:
        """Whether the files differ from what was loaded; looks only where there is a cause to."""
        if self.watcher >= 0:
            try:
                while os.read(self.watcher, 65536):
                    self._suspicious = True
            except BlockingIOError:
                pass
            if not self._suspicious:
                return False
        self._suspicious = self.fingerprint() != self.loaded
        return self._suspicious

    def look(self) -> None:
        """Look for changes that no event told of, at most once a second; for moments when nobody waits."""
        now = time.monotonic()
        if now - self._looked_s >= LOOK_INTERVAL_S:
            self._looked_s = now
            self._suspicious = self._suspicious or self.fingerprint() != self.loaded
