"""An overlay as a detached mount, in the words that the running kernel understands: all that differs from one kernel to the next is known here.

Since 6.15 layers may be given as descriptors of mounts that are attached nowhere, which :func:`from_descriptors` does; before, their paths must
be found in the caller's mount namespace, which is private to it. Since 6.7 they are given one by one (``lowerdir+``). Kernels before take all of them
in one option, for which the 256 bytes of fsconfig(2) are too few: there mount(2) has its page of options, and what it mounted is copied and detached.
Overlay documentation, "Multiple lower layers"
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from bulle.linux import mount

# Decided once for ever: no feature whose state on disk a later commit or diff could misread.
_OPTIONS = (("redirect_dir", "off"), ("metacopy", "off"), ("index", "off"))
# userxattr by itself means redirect_dir=nofollow and metacopy=off, and refuses to hear it differently.
_OPTIONS_OF_USERS = (("index", "off"),)
# What says so: it knows no descriptors at all (before 6.5), not those of O_PATH, or not those of mounts that are attached nowhere.
_WANT_PATHS = (errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
_LONGEST_VALUE = 255
_NO_DESCRIPTOR = 2**31 - 1


@dataclass(frozen=True)
class Kind:
    """What all overlays of a kind have: ``unprivileged`` for those made in a user namespace, ``attributes`` of the mount (MOUNT_ATTR_*)."""

    unprivileged: bool = False
    volatile: bool = False
    attributes: int = 0

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """With a value."""
        return _OPTIONS_OF_USERS if self.unprivileged else _OPTIONS

    @property
    def flags(self) -> tuple[str, ...]:
        """Without one."""
        return ("userxattr",) * self.unprivileged + ("volatile",) * self.volatile


def from_descriptors(kind: Kind, lowers: Sequence[int], writable: dict[str, int] | None = None) -> int | None:
    """Of detached mounts, the topmost first, and descriptors for ``upperdir`` and ``workdir``; None where this kernel wants paths. Raises OSError."""
    with contextlib.ExitStack() as stack:
        context = _context(stack, kind)
        try:
            for lower in lowers:
                mount.fsconfig_set_fd(context, "lowerdir+", lower)
            for key, directory in (writable or {}).items():
                mount.fsconfig_set_fd(context, key, directory)
            mount.fsconfig_create(context)
        except OSError as error:
            if error.errno not in _WANT_PATHS:
                raise
            return None
        return mount.fsmount(context, kind.attributes)


def from_paths(kind: Kind, lowers: Sequence[str], writable: dict[str, str] | None = None) -> int:
    """Of directories (host paths), the topmost first. This process's mount namespace is its own: the first may be covered for a moment.

    Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        lowers = [_short(stack, path) for path in lowers]
        directories = {key: _short(stack, path) for key, path in (writable or {}).items()}
        context = _context(stack, kind)
        if not _knows_descriptors(context):
            return _all_at_once(stack, kind, lowers, directories)
        try:
            for lower in lowers:
                mount.fsconfig_set_string(context, "lowerdir+", lower)
            for key, path in directories.items():
                mount.fsconfig_set_string(context, key, path)
            mount.fsconfig_create(context)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _all_at_once(stack, kind, lowers, directories)
        return mount.fsmount(context, kind.attributes)


def _context(stack: contextlib.ExitStack, kind: Kind) -> int:
    context = mount.fsopen("overlay")
    stack.callback(os.close, context)
    mount.fsconfig_set_string(context, "source", "overlay")
    for name in kind.flags:
        mount.fsconfig_set_flag(context, name)
    for key, value in kind.options:
        mount.fsconfig_set_string(context, key, value)
    return context


def _knows_descriptors(context: int) -> bool:
    """Whether overlay speaks fsconfig(2) itself, since 6.5; before, it takes any option, and complains of them in the kernel's log at the end."""
    try:
        mount.fsconfig_set_fd(context, "lowerdir+", _NO_DESCRIPTOR)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def _all_at_once(stack: contextlib.ExitStack, kind: Kind, lowers: Sequence[str], directories: dict[str, str]) -> int:
    names = ":".join(_opened(stack, path) for path in lowers)
    values = {"lowerdir": names, **{key: _opened(stack, path) for key, path in directories.items()}, **dict(kind.options)}
    place = lowers[0]
    options = ",".join([*(f"{key}={value}" for key, value in values.items()), *kind.flags])
    mount.mount("overlay", place, "overlay", kind.attributes, options)  # MS_* are the same bits as MOUNT_ATTR_*
    try:
        return mount.open_tree(mount.AT_FDCWD, place)
    finally:
        mount.umount(place, mount.MNT_DETACH)


def _short(stack: contextlib.ExitStack, path: str) -> str:
    return path if len(os.fsencode(path)) <= _LONGEST_VALUE else _opened(stack, path)


def _opened(stack: contextlib.ExitStack, path: str) -> str:
    """A name for a directory that is short, and has nothing in it that means something in options."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return f"/proc/self/fd/{descriptor}"
