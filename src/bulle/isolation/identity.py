"""Who a process is inside the container: Docker's ``USER[:GROUP]`` resolved against the container's own passwd and group files.

Called inside the container's root. Ids are numbers of the container's user namespace; 4294967295 and above are never accepted (an overflow would be
root). passwd(5), group(5)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from bulle.errors import InvalidInput
from bulle.linux import mount, process

_MOST_BYTES = 4 * 1024 * 1024
_LAST_ID = 2**31 - 1  # what Docker and runc accept


@dataclass(frozen=True)
class Identity:
    """Numeric ids and the home directory (a container path) of a user."""

    user_id: int
    group_id: int
    groups: tuple[int, ...]
    home: str


LOOKED_AT = ("/etc/passwd", "/etc/group")
"""What :func:`resolve` reads."""


def resolve(user: str, read: Callable[[str], bytes | None] | None = None) -> Identity:
    """Look ``name|uid[:group|gid]`` up; an unknown number is allowed, an unknown name is not.

    ``read`` gives a file's content by its container path (None where there is none); by default it is read below this process's own root.
    """
    name, _, group = (user or "0").partition(":")
    read = read or _read
    entries = _entries(read("/etc/passwd"), 7)
    user_id, found = _number(name, "user"), None
    for entry in entries:
        if entry[0] == name or (user_id is not None and entry[2] == str(user_id)):
            found = entry
            break
    if found is not None:
        user_id = _number(found[2], "user")
    if user_id is None:
        raise InvalidInput(f"unable to find user {name}", "no matching entries in the container's /etc/passwd", "use an existing name or a number")
    groups = _entries(read("/etc/group"), 4)
    default_group = _number(found[3], "group") if found else 0
    group_id = _group(group, groups) if group else default_group
    account = found[0] if found else ""
    extra = [] if group else [_number(entry[2], "group") for entry in groups if account and account in entry[3].split(",")]
    return Identity(user_id, group_id or 0, tuple(sorted({number for number in extra if number is not None})), (found[5] if found else "") or "/")


def _group(group: str, entries: list[list[str]]) -> int:
    for entry in entries:
        if entry[0] == group:
            group = entry[2]
            break
    number = _number(group, "group")
    if number is None:
        raise InvalidInput(f"unable to find group {group}", "no matching entries in the container's /etc/group", "use an existing name or a number")
    return number


def _number(text: str, what: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    number = int(text)
    if number > _LAST_ID:
        raise InvalidInput(f"the {what} id {text} is out of range", f"ids go from 0 to {_LAST_ID}", "use a smaller number")
    return number


def _read(path: str) -> bytes | None:
    """Of a regular file alone, and an endless one only so far."""
    try:
        # Never a blocking open: an image may put a FIFO there.
        fd = process.openat2(mount.AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK, process.RESOLVE_IN_ROOT | process.RESOLVE_NO_MAGICLINKS)
    except OSError:
        return None
    try:
        return os.read(fd, _MOST_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _entries(content: bytes | None, fields: int) -> list[list[str]]:
    """Well-formed lines; a file that is missing has none."""
    text = (content or b"").decode(errors="surrogateescape")
    return [parts for line in text.splitlines() if len(parts := line.split(":")) >= fields]
