"""The processes of a guest's container, in the columns of ps(1): read from the guest's own /proc by its agent. proc_pid_stat(5)"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from bulle.errors import InvalidInput
from bulle.isolation.microvm.files import GuestFiles
from bulle.isolation.microvm.guest import GROUP

_TICKS_A_SECOND = 100  # USER_HZ, the same on every processor that a guest can have
_PAGE_BYTES = 4096
_FULL = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_TITLES = {
    "pid": "PID", "ppid": "PPID", "uid": "UID", "user": "USER", "comm": "COMMAND", "args": "COMMAND", "cmd": "CMD", "command": "COMMAND",
    "rss": "RSS", "vsz": "VSZ", "stat": "STAT", "state": "S", "time": "TIME", "tty": "TT", "c": "C", "stime": "STIME",
}  # fmt: skip


def listing(files: GuestFiles, arguments: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows; pids are the guest's own. Raises InvalidInput for arguments of ps that are not ``-ef`` or a list of columns (``-o``)."""
    columns, titles = _columns(list(arguments))
    up_s = float(files.read("/proc/uptime", own_root=True).split()[0])
    users = _users(files)
    rows = []
    for pid in sorted(_pids(files)):
        with suppress(OSError):  # it has ended meanwhile
            fields = _look(files, pid, users, up_s)
            rows.append([fields[column] for column in columns])
    return titles, rows


def _pids(files: GuestFiles) -> list[int]:
    own = [int(pid) for pid in files.read(f"{GROUP}/cgroup.procs", own_root=True).split()]
    if b"nr_descendants 0\n" in files.read(f"{GROUP}/cgroup.stat", own_root=True):
        return own
    # An init made groups below it.
    for name in files.names("/proc", own_root=True):
        if name.isdecimal() and int(name) not in own:
            with suppress(OSError):
                if f":/{GROUP.rpartition('/')[2]}/".encode() in files.read(f"/proc/{name}/cgroup", own_root=True):
                    own.append(int(name))
    return own


def _columns(arguments: list[str]) -> tuple[list[str], list[str]]:
    if not arguments or arguments in (["-ef"], ["-e", "-f"]):
        return ["uid" if title == "UID" else title.lower() for title in _FULL], list(_FULL)
    wanted: list[str] = []
    while arguments:
        word = arguments.pop(0)
        if word in ("-e", "-A"):
            continue
        if word in ("-o", "-eo", "-Ao") and arguments:
            wanted += arguments.pop(0).replace(" ", ",").split(",")
        else:
            break
    else:
        if wanted and all(column in _TITLES for column in wanted):
            if "pid" not in wanted:
                raise InvalidInput("ps prints no PID column with these arguments", "", "add one")
            return wanted, [_TITLES[column] for column in wanted]
    known = ", ".join(sorted(_TITLES))
    raise InvalidInput("these arguments of ps are not known for a virtual machine", "", f"use -ef, or -o with columns of {known}")


def _users(files: GuestFiles) -> dict[str, str]:
    found = {}
    with suppress(OSError):
        for line in files.read("/etc/passwd").decode(errors="replace").splitlines():
            name, _, rest = line.partition(":")
            found[rest.split(":")[1] if rest.count(":") > 1 else ""] = name
    return found


def _look(files: GuestFiles, pid: int, users: dict[str, str], up_s: float) -> dict[str, str]:
    text = files.read(f"/proc/{pid}/stat", own_root=True).decode(errors="replace")
    name, after = text.partition("(")[2].rpartition(")")[::2]
    stat = after.split()
    line = files.read(f"/proc/{pid}/cmdline", own_root=True).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    status = files.read(f"/proc/{pid}/status", own_root=True).decode(errors="replace")
    uid = next((line.split()[1] for line in status.splitlines() if line.startswith("Uid:")), "0")
    used_s, lived_s = (int(stat[11]) + int(stat[12])) // _TICKS_A_SECOND, max(up_s - int(stat[19]) / _TICKS_A_SECOND, 0.01)
    began = time.localtime(time.time() - lived_s)
    command = line or f"[{name}]"
    return {
        "pid": str(pid), "ppid": stat[1], "uid": uid, "user": users.get(uid, uid), "comm": name, "args": command, "cmd": command,
        "command": command, "rss": str(int(stat[21]) * _PAGE_BYTES // 1024), "vsz": str(int(stat[20]) // 1024), "stat": stat[0], "state": stat[0],
        "time": f"{used_s // 3600:02d}:{used_s // 60 % 60:02d}:{used_s % 60:02d}", "tty": "?" if stat[4] == "0" else f"pts/{int(stat[4]) & 0xFF}",
        "c": str(min(int(100 * used_s / lived_s), 99)), "stime": time.strftime("%H:%M" if lived_s < 86400 else "%b%d", began),
    }  # fmt: skip
