"""Being told of changes to files instead of looking for them. inotify(7)"""

from __future__ import annotations

import os

from bulle.linux.libc import check, libc

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_ONLYDIR = 0x1000000


def inotify_init() -> int:
    """A new watcher: a non-blocking, close-on-exec descriptor that is readable when something happened. inotify_init1(2)"""
    return check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def inotify_add_watch(watcher: int, path: str, mask: int) -> int:
    """Watch ``path`` for the events of ``mask``; returns the watch's number. inotify_add_watch(2)"""
    return check(libc.inotify_add_watch(watcher, os.fsencode(path), mask), "inotify_add_watch", path)
