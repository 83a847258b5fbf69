"""``system install``: the systemd unit that has ``bulle system boot`` run when the machine comes up, and ``bulle system shutdown`` when it goes down.

Containers do not stand in this unit's control group but in ``bulle.scope`` (see :mod:`bulle.isolation.control_group_scope`), which systemd would end
with all else at a shutdown: ordered after the scope, the unit is stopped before it. Specifications: systemd.service(5), systemd.unit(5)
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bulle.errors import BulleError, Conflict, NotFound, Unavailable
from bulle.isolation import control_group_scope
from bulle.spawner.launch import command_line

UNIT = "bulle.service"
_HEADER = "# Written by `bulle system install`; `bulle system install --remove` takes it away again."
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_PATIENCE_S = 600


def text(home: Path, *, user: bool) -> str:
    """The unit for this home (a host path), for the system's manager or with ``user`` for the caller's."""
    program, *arguments = _program()
    command = " ".join([_word(program), *(_argument(one) for one in (*arguments, "--home", str(home)))])
    network = "" if user else "Wants=network-online.target\nAfter=network-online.target\n"
    return f"""{_HEADER}
[Unit]
Description=Containers of Bulle
{network}# Containers are in this scope: what comes after it is stopped before it.
After={control_group_scope.SCOPE}
RequiresMountsFor={_word(str(home))}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} system boot
ExecStop={command} system shutdown
# A container that could not be started must not keep the others from being stopped in order.
SuccessExitStatus=1
# Where containers have no scope they stand in this unit's group: their own monitors end them.
KillMode=process
OOMPolicy=continue
TimeoutStopSec=5min

[Install]
WantedBy={_target(user)}
"""


def install(home: Path, *, user: bool = False, now: bool = False) -> Path:
    """Write the unit and have it start with the machine (with the user's manager), with ``now`` also at once; returns its path.

    Raises Unavailable where the caller may not, or ``now`` cannot be, Conflict for a unit that somebody else wrote: then nothing is written.
    """
    _check(user, now)
    path = unit_path(user=user)
    _check_own(path)
    link = _link(path, user)
    try:
        link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{UNIT}.{os.getpid()}")
        temporary.write_text(text(home, user=user))
        temporary.chmod(0o644)
        temporary.rename(path)
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", UNIT))
    except OSError as error:
        raise Unavailable(f"{path} cannot be written", error.strerror or str(error), "--print shows what it would be") from error
    if control_group_scope.systemd_runs():
        _systemctl(user, "daemon-reload", needed=now)
    if now:
        _systemctl(user, "start", UNIT, needed=True)
    return path


def remove(*, user: bool = False, now: bool = False) -> Path:
    """Take the unit away, with ``now`` after containers were stopped as at a shutdown; else they run on. Returns its path; raises NotFound."""
    _check(user, now)
    path = unit_path(user=user)
    if not os.path.lexists(path):
        raise NotFound(f"there is no {path}", "nothing was installed for this manager", "with and without --user are two")
    _check_own(path)
    if now:
        _systemctl(user, "stop", UNIT, needed=True)
    try:
        _link(path, user).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with suppress(OSError):
            _link(path, user).parent.rmdir()  # where nothing else is in it
    except OSError as error:
        raise Unavailable(f"{path} cannot be removed", error.strerror or str(error)) from error
    if control_group_scope.systemd_runs():
        _systemctl(user, "daemon-reload", needed=False)
    return path


def unit_path(*, user: bool) -> Path:
    """Where the unit is or would be."""
    if not user:
        return Path("/etc/systemd/system", UNIT)
    settings = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(settings) if settings.startswith("/") else Path.home() / ".config") / "systemd" / "user" / UNIT


def starts_without_login() -> bool:
    """Whether the caller's manager runs from the machine's start on, and not only while the user is logged in. loginctl(1)"""
    import pwd

    try:
        return os.path.exists(f"/var/lib/systemd/linger/{pwd.getpwuid(os.geteuid()).pw_name}")
    except KeyError:
        return False


def _target(user: bool) -> str:
    return "default.target" if user else "multi-user.target"


def _link(path: Path, user: bool) -> Path:
    """What ``systemctl enable`` would make: it also holds where no systemd runs yet, in an image that is being made."""
    return path.parent / f"{_target(user)}.wants" / UNIT


def _check(user: bool, now: bool) -> None:
    if not user and os.geteuid() != 0:
        raise Unavailable("the system's unit cannot be changed", "only root may", "use --user for one of your own")
    if now and not control_group_scope.systemd_runs():
        raise Unavailable(f"{UNIT} cannot be started or stopped now", "systemd does not run on this machine", "leave out --now")


def _check_own(path: Path) -> None:
    if os.path.lexists(path) and (path.is_symlink() or not _begins_as_ours(path)):
        raise Conflict(f"{path} is not Bulle's", "somebody else wrote it, or masked it", "move it away first")


def _begins_as_ours(path: Path) -> bool:
    try:
        return path.read_text(errors="replace").startswith("# Written by `bulle system install`")
    except OSError:
        return False


def _program() -> Sequence[str]:
    """How systemd, which knows no PATH of ours, starts this very installation."""
    import sysconfig

    installed = os.path.join(sysconfig.get_path("scripts"), "bulle")
    return [installed] if os.access(installed, os.X_OK) else command_line()


def _word(value: str) -> str:
    """A path as a unit's file has it: quoted where it must be, and without specifiers."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _argument(value: str) -> str:
    """A word of a command line after the first, in which systemd would also put variables."""
    return _word(value).replace("$", "$$")


def _systemctl(user: bool, *arguments: str, needed: bool) -> None:
    """Tell the manager; raises Unavailable where that fails and is ``needed``."""
    command = ["systemctl", *(["--user"] if user else []), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        reason = (done.stderr.strip() or f"it ended with {done.returncode}") if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason and needed:
        raise BulleError(f"`{' '.join(command)}` failed", reason, f"see `systemctl {'--user ' if user else ''}status {UNIT}`")
