"""``--chown`` and ``--chmod``: names looked up in the image's own files, modes as octal numbers."""

from __future__ import annotations

import re
import stat

from bulle.errors import InvalidInput
from bulle.store.merged_view import MergedView

_LAST_ID = 2**31 - 1


def owner(text: str, view: MergedView, where: str) -> tuple[int, int]:
    """``user[:group]`` as ids; names are those of the image. A number alone is the group as well."""
    user, colon, group = text.partition(":")
    by_name = None if user.isdecimal() or not user else _entry(view, "/etc/passwd", user)
    if user and not user.isdecimal() and by_name is None:
        raise InvalidInput(f"{where}: there is no user {user!r}", "the image's /etc/passwd does not name it", "use a number, or create it first")
    uid = _number(by_name[2] if by_name else user or "0", where)
    if not colon or not group:
        return uid, _number(by_name[3], where) if by_name else uid
    if group.isdecimal():
        return uid, _number(group, where)
    entry = _entry(view, "/etc/group", group)
    if entry is None:
        raise InvalidInput(f"{where}: there is no group {group!r}", "the image's /etc/group does not name it", "use a number, or create it first")
    return uid, _number(entry[2], where)


def mode(text: str, where: str) -> int:
    """An octal mode. Raises InvalidInput."""
    if not re.fullmatch(r"0?[0-7]{3,4}", text):
        raise InvalidInput(f"{where}: --chmod={text} is no mode", "", "write three or four octal digits, such as 755")
    return stat.S_IMODE(int(text, 8))


def _entry(view: MergedView, path: str, name: str) -> list[str] | None:
    text = view.text(path) or b""
    for line in text.decode(errors="surrogateescape").splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) >= 3:
            return [*fields, "0", "0"]
    return None


def _number(text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > _LAST_ID:
        raise InvalidInput(f"{where}: {text!r} is no id", f"ids go from 0 to {_LAST_ID}", "use a smaller number")
    return int(text)
