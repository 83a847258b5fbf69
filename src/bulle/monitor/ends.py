"""What a container's directory says of its ends: the word of a command that wants one (``intent.json``), and how earlier runs ended (``ends.jsonl``).

The intent is written by commands before they send a signal, so that the monitor, also one that takes over, knows that the end was wanted and by whom;
a new start takes it away. The ends are appended by the monitor and read by ``bulle why``; the last ones are kept.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from bulle.model.lifecycle import End, Intent
from bulle.records import reserve

_INTENT, _ENDS = "intent.json", "ends.jsonl"
_KEPT = 20
_MOST_BYTES = 256 * 1024
_intents = msgspec.json.Decoder(Intent)
_ends = msgspec.json.Decoder(End)


def intend(directory: str, verb: str, signal: str) -> None:
    """Say that the end of the container with this host directory is wanted, with the signal that follows ("" for none)."""
    uid = os.environ.get("SUDO_UID", "") if os.getuid() == 0 else ""
    said = Intent(verb, signal, int(uid) if uid.isdecimal() else os.getuid(), time.time_ns())
    try:
        reserve.replace_file(_home(directory), f"{directory}/{_INTENT}", msgspec.json.encode(said))
    except OSError as error:  # removed meanwhile; or on a full disk, where what runs must still be ended
        if error.errno not in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise


def read_intent(directory: str) -> Intent | None:
    """What the last command wanted since the container was started."""
    try:
        with open(f"{directory}/{_INTENT}", "rb") as file:
            return _intents.decode(file.read())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def forget_intent(directory: str) -> None:
    """It is started: what was wanted before is over."""
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{_INTENT}")


def record(directory: str, end: End) -> None:
    """Add how a run ended."""
    path = f"{directory}/{_ENDS}"
    with suppress(OSError):  # a full disk, or removed by force meanwhile
        reserve.append(_home(directory), path, msgspec.json.encode(end) + b"\n")
        if os.stat(path).st_size > _MOST_BYTES:
            reserve.replace_file(_home(directory), path, b"".join(msgspec.json.encode(one) + b"\n" for one in read(directory)))


def read(directory: str) -> list[End]:
    """How the last runs ended, oldest first."""
    try:
        with open(f"{directory}/{_ENDS}", "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines[-_KEPT - 1 :]:
        with suppress(msgspec.DecodeError):  # cut by a full disk
            found.append(_ends.decode(line))
    return found


def _home(directory: str) -> Path:
    return Path(directory).parent.parent
