"""``system install``: the systemd unit that has ``bulle system boot`` run when the machine comes up, and ``bulle system shutdown`` when it goes down;
where it is wanted also the pair of units for ``bulle serve``, which systemd starts when somebody first connects to the socket.

Containers do not stand in this unit's control group but in ``bulle.scope`` (see :mod:`bulle.isolation.control_group_scope`), which systemd would end
with all else at a shutdown: ordered after the scope, the unit is stopped before it.

Specifications: systemd.service(5), systemd.socket(5), systemd.unit(5)
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bulle.errors import BulleError, Conflict, NotFound, Unavailable
from bulle.isolation import control_group_scope
from bulle.spawner.launch import command_line

UNIT, SOCKET_UNIT, SERVER_UNIT = "bulle.service", "bulle-docker.socket", "bulle-docker.service"
_HEADER = "# Written by `bulle system install`; `bulle system install --remove` takes it away again."
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_PATIENCE_S = 600


@dataclass(frozen=True)
class Unit:
    """One file of units, and the target that wants it, if one does."""

    name: str
    text: str
    target: str = ""


def text(home: Path, *, user: bool) -> str:
    """The unit for this home (a host path), for the system's manager or with ``user`` for the caller's."""
    command = _command(home)
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


def socket_text(*, user: bool) -> str:
    """The unit of the socket that Docker's tools connect to."""
    return f"""{_HEADER}
[Unit]
Description=Docker Engine API of Bulle

[Socket]
ListenStream={"%t" if user else "/run"}/bulle/docker.sock
# Whoever may write to it may do what its owner may; SocketGroup= lets a group.
SocketMode=0660

[Install]
WantedBy=sockets.target
"""


def server_text(home: Path) -> str:
    """The unit of who answers on that socket."""
    return f"""{_HEADER}
[Unit]
Description=Docker Engine API of Bulle
Requires={SOCKET_UNIT}
After={SOCKET_UNIT}
RequiresMountsFor={_word(str(home))}

[Service]
ExecStart={_command(home)} serve
# Containers need no server: they run on when it ends.
KillMode=process
OOMPolicy=continue
"""


def units(home: Path, *, user: bool, socket: bool) -> list[Unit]:
    """What is written, the unit of containers first."""
    found = [Unit(UNIT, text(home, user=user), _target(user))]
    if socket:
        found += [Unit(SERVER_UNIT, server_text(home)), Unit(SOCKET_UNIT, socket_text(user=user), "sockets.target")]
    return found


def install(home: Path, *, user: bool = False, now: bool = False, socket: bool = False) -> list[Path]:
    """Write the unit, with ``socket`` those of the socket too, and have them start with the machine (with the user's manager), with ``now`` also now;
    returns their paths.

    Raises Unavailable where the caller may not, or ``now`` cannot be, Conflict for a unit that somebody else wrote: then nothing is written.
    """
    _check(user, now)
    written = units(home, user=user, socket=socket)
    for unit in written:
        _check_own(unit_path(unit.name, user=user))
    for unit in written:
        _write(unit, user)
    if control_group_scope.systemd_runs():
        _systemctl(user, "daemon-reload", needed=now)
    if now:
        _systemctl(user, "start", *(unit.name for unit in written if unit.target), needed=True)
    return [unit_path(unit.name, user=user) for unit in written]


def _write(unit: Unit, user: bool) -> None:
    path = unit_path(unit.name, user=user)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{unit.name}.{os.getpid()}")
        temporary.write_text(unit.text)
        temporary.chmod(0o644)
        temporary.rename(path)
        if unit.target:
            link = _link(path, unit.target)
            link.parent.mkdir(mode=0o755, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..", unit.name))
    except OSError as error:
        raise Unavailable(f"{path} cannot be written", error.strerror or str(error), "--print shows what it would be") from error


def remove(*, user: bool = False, now: bool = False) -> list[Path]:
    """Take the units away, with ``now`` after containers were stopped as at a shutdown; else they run on. Returns their paths; raises NotFound."""
    _check(user, now)
    targets = {UNIT: _target(user), SOCKET_UNIT: "sockets.target", SERVER_UNIT: ""}
    found = {name: path for name in targets if os.path.lexists(path := unit_path(name, user=user))}
    if not found:
        raise NotFound(f"there is no {unit_path(user=user)}", "nothing was installed for this manager", "with and without --user are two")
    for path in found.values():
        _check_own(path)
    if now:
        _systemctl(user, "stop", *found, needed=True)
    for name, path in found.items():
        _erase(path, targets[name])
    if control_group_scope.systemd_runs():
        _systemctl(user, "daemon-reload", needed=False)
    return list(found.values())


def _erase(path: Path, target: str) -> None:
    try:
        if target:
            _link(path, target).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with suppress(OSError):
            if target:
                _link(path, target).parent.rmdir()  # where nothing else is in it
    except OSError as error:
        raise Unavailable(f"{path} cannot be removed", error.strerror or str(error)) from error


def unit_path(name: str = UNIT, *, user: bool) -> Path:
    """Where the unit is or would be."""
    if not user:
        return Path("/etc/systemd/system", name)
    settings = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(settings) if settings.startswith("/") else Path.home() / ".config") / "systemd" / "user" / name


def starts_without_login() -> bool:
    """Whether the caller's manager runs from the machine's start on, and not only while the user is logged in. loginctl(1)"""
    import pwd

    try:
        return os.path.exists(f"/var/lib/systemd/linger/{pwd.getpwuid(os.geteuid()).pw_name}")
    except KeyError:
        return False


def _target(user: bool) -> str:
    return "default.target" if user else "multi-user.target"


def _link(path: Path, target: str) -> Path:
    """What ``systemctl enable`` would make: it also holds where no systemd runs yet, in an image that is being made."""
    return path.parent / f"{target}.wants" / path.name


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


def _command(home: Path) -> str:
    program, *arguments = _program()
    return " ".join([_word(program), *(_argument(one) for one in (*arguments, "--home", str(home)))])


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
