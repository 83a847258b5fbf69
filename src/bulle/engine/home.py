"""Where everything of one user's Bulle is kept: ``BULLE_HOME``.

Root's default is ``/var/lib/bulle``, anyone else's ``$XDG_DATA_HOME/bulle`` (``~/.local/share/bulle``). One home is one world: its images,
containers and spawner see nothing of another home's. XDG base directory specification
"""

from __future__ import annotations

import os
from pathlib import Path

from bulle.errors import StorageFull, Unavailable


def default_home() -> Path:
    """The home that the environment asks for, as an absolute host path."""
    chosen = os.environ.get("BULLE_HOME")
    if chosen:
        return Path(os.path.abspath(chosen))
    if os.geteuid() == 0:
        return Path("/var/lib/bulle")
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "bulle"


def prepare_home(home: Path) -> None:
    """Make the directories that every command may rely on; they are nobody else's business (0700)."""
    try:
        if not (home / "containers").is_dir():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("containers", "run", "cache", "tmp"):
                (home / name).mkdir(mode=0o700, exist_ok=True)
    except PermissionError as error:
        raise Unavailable(f"{home} cannot be made", "it belongs to another user", "set BULLE_HOME to a directory of your own") from error
    except OSError as error:
        if error.errno == 28:
            raise StorageFull(f"{home} cannot be made", os.strerror(28), "free some space") from error
        raise Unavailable(f"{home} cannot be made", os.strerror(error.errno or 0), "set BULLE_HOME to another directory") from error
