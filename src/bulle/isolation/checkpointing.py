"""The memory of a container's processes in files, by CRIU: whether it works here, what can be kept, and keeping it.

CRIU stops the processes, writes what they are to a directory, and says so by a *script* of ours, which waits for our word: at that moment the disk is
read. They go on in any case, also where this process is killed. What of the host they show (devices, files for ``/etc``, their output) is named
*outside*, and given anew by :mod:`bulle.isolation.namespaces.restoring`. Trusted are images only whose digests the engine has compared, since they
say what a process may do. criu(8)
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from bulle.errors import BulleError, Conflict, Unavailable
from bulle.isolation import inside
from bulle.linux import mount, namespaces, process
from bulle.linux.fork import fork
from bulle.model.run_plan import RunPlan

KNOWN = "known.json"
"""Beside what CRIU wrote; where the next start finds memory (:attr:`RootFilesystem.memory_host_path`), this says that it is whole and unused."""

PROGRAM = "criu"
"""A link beside it to the program that was found to work."""

OPTIONS = ("--manage-cgroups=ignore", "--empty-ns", "net", "--tcp-close", "--skip-in-flight", "--file-locks", "--ghost-limit", "128M")
LOG = "criu.log"
NOT_KEPT = "the processes could not be kept"
"""The brief of the error where CRIU cannot keep them; they go on."""

NOT_HERE = "the processes cannot go on from their memory here"
INSTALL = "a CRIU that knows this kernel (4.1 of Debian 13 or newer: apt-get install criu)"
_STAGE = "/tmp"
_SCRIPT = f"{_STAGE}/script"
_SEARCHED = "/usr/local/sbin:/usr/sbin:/sbin"
_PATIENCE_S = 60.0
_SHOWN_OF_PROCESSOR = ("model name", "flags", "Features", "CPU part")
_MEND = "restore its files alone, with --disk-only"


@dataclass(frozen=True)
class Found:
    """What this machine has: the program and its version, and why it is not usable (empty where it is)."""

    program: str = ""
    version: str = ""
    reason: str = ""
    mend: str = ""


class Known(msgspec.Struct, frozen=True):
    """What is known of kept memory: what it needs here, and what CRIU calls that which is outside the container.

    ``streams`` are its 0, 1 and 2; ``mounts`` pairs of a container path and what is to be shown there.
    """

    criu: str
    kernel: str
    processor: str
    users: tuple[tuple[int, int, int], ...]
    streams: tuple[str, str, str]
    mounts: tuple[tuple[str, str], ...]


def probe() -> Found:
    """Whether CRIU works here, by having it look at this kernel."""
    found = _located()
    if found.reason:
        return found
    checked = _run(found.program, "check")
    if checked.returncode:
        why = _complaint(checked.stderr + checked.stdout) or f"exit code {checked.returncode}"
        return replace(found, reason=f"CRIU {found.version} does not work with Linux {platform.release()}: {why}", mend=INSTALL)
    return found


def _located() -> Found:
    """The program, and which it is."""
    program = shutil.which("criu", path=f"{os.environ.get('PATH', '')}:{_SEARCHED}")
    if program is None:
        return Found(reason="there is no criu", mend=INSTALL)
    if os.geteuid() != 0:
        return Found(program, reason="CRIU needs root", mend="run as root")
    missing = next((name for name in ("tar", "sh") if shutil.which(name) is None), "")
    if missing:
        return Found(program, reason=f"CRIU needs {missing}", mend=f"install {missing}")
    told = _run(program, "--version")
    version = next((line.split(":", 1)[1].strip() for line in told.stdout.splitlines() if line.startswith("Version:")), "")
    if told.returncode or not version:
        return Found(program, reason=f"{program} does not say its version ({told.stderr.strip()[:200] or told.returncode})", mend=INSTALL)
    return Found(program, version)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_PATIENCE_S, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, "", f"Error (run): {error}")


def why_not(plan: RunPlan) -> str:
    """Why the memory of a container of this plan cannot be kept, whatever CRIU can; empty where it may be."""
    security, wanted = plan.security, plan.process
    reasons = (
        (plan.isolation != "container" or plan.guest is not None, f"it is at the level {plan.isolation}"),
        (any(one.kind != "tmpfs" for one in plan.mounts), "its volumes and binds go on, and it would meet other files in them"),
        (bool(plan.root.host_binds), "it shows directories of this machine"),
        (wanted.terminal, "it has a terminal"),
        (wanted.init or wanted.idle, "its first process is Bulle's init"),
        (plan.systemd, "it has an init system"),
        (bool(plan.platform), "its programs are another processor's"),
        (plan.network.mode not in ("own", "none"), "its network is not its own"),
        (security.user_namespace != "own", "its users are this machine's"),
        (security.privileged, "it is privileged"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def require(known: bytes, plan: RunPlan) -> Found:
    """The program that goes on from memory of which this is known, as a container of this plan. Raises Conflict, Unavailable, BulleError."""
    kept, found = decoded(known), _located()  # where the same one kept it with the same kernel, it works
    if found.reason:
        raise Unavailable(NOT_HERE, found.reason, f"{found.mend}; or {_MEND}")
    if kept.criu != found.version:
        raise Conflict(NOT_HERE, f"it was kept with CRIU {kept.criu}, here that is {found.version}", _MEND)
    require_fitting(kept, plan)
    return found


def require_fitting(kept: Known, plan: RunPlan) -> None:
    """Raise Conflict where the memory is not that of a container of this plan on this machine."""
    if why := why_not(plan):
        raise Conflict(NOT_HERE, why, _MEND)
    for name, was, here in (("Linux", kept.kernel, platform.release()), ("the processor", kept.processor, _processor())):
        if was != here:
            raise Conflict(NOT_HERE, f"it was kept with {name} {was}, here that is {here}", _MEND)
    if kept.users != _users(plan):
        raise Conflict(NOT_HERE, "the container's range of user ids is another one now", _MEND)


def decoded(known: bytes) -> Known:
    """What is known, read. Raises BulleError."""
    try:
        return msgspec.json.decode(known, type=Known)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BulleError("the memory that was kept is damaged", str(error), _MEND) from error


def keep(plan: RunPlan, pid: int, place: Path, program: Found, meanwhile: Callable[[], None]) -> None:
    """Write the memory of a running container, whose first process is ``pid``, to a directory (host path); ``meanwhile`` while it stands still.

    Raises BulleError with what CRIU says, or what ``meanwhile`` raises. The container goes on in any case.
    """
    try:
        mounts, streams = tuple(_outside(plan, pid)), _streams(plan, pid)
    except OSError as error:
        raise BulleError(NOT_KEPT, f"they ended ({error.strerror})", "start it first") from error
    words = [f"--external=mnt[{path}]:{path.strip('/')}" for path, _source in mounts]
    words += [f"--external={name}" for name in streams if name.startswith("file")]
    line = [program.program, "dump", "--tree", str(pid), "--root", "/", "--leave-running", "--network-lock", "skip", *words]
    failure: list[BaseException] = []

    def stands_still(_pid: int) -> None:
        try:
            meanwhile()
        except BaseException as error:
            failure.append(error)
            raise

    with Conversation() as conversation:
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            child = fork()
            if child == 0:
                _execute(lambda: become(line, directory, conversation))
        finally:
            os.close(directory)
        pidfd = process.pidfd_open(child)
        try:
            conversation.lead(pidfd, {"post-dump": stands_still})
        except BaseException:
            if not failure:
                raise
        finally:
            os.close(pidfd)
            conversation.close()
            status = os.waitpid(child, 0)[1]
    if failure:
        raise failure[0]
    if status:
        raise BulleError(NOT_KEPT, complaint(place), "leave the memory out, with --disk-only")
    for name in (LOG, "stats-dump"):
        (place / name).unlink(missing_ok=True)
    known = Known(program.version, platform.release(), _processor(), _users(plan), streams, mounts)
    (place / KNOWN).write_bytes(msgspec.json.encode(known))


class Conversation:
    """Two pipes that CRIU's script finds below this process's /proc: it says where CRIU is, and waits to be told to go on."""

    def __init__(self) -> None:
        self._says, self._said = os.pipe()
        self._hears, self._heard = os.pipe()
        self.script = (
            f'#!/bin/sh\ncase "$CRTOOLS_SCRIPT_ACTION" in post-dump|setup-namespaces|post-restore)\n'
            f'echo "$CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID" >/proc/{os.getpid()}/fd/{self._said} || exit 1\n'
            f'read -r word </proc/{os.getpid()}/fd/{self._hears} && test "$word" = go;;\nesac\n'
        )

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it: a script that waits has CRIU give up."""
        for descriptor in (self._says, self._said, self._hears, self._heard):
            with suppress(OSError):
                os.close(descriptor)
        self._says = self._said = self._hears = self._heard = -1

    def lead(self, pidfd: int, acts: dict[str, Callable[[int], None]]) -> None:
        """Do what belongs to each step, with the pid of the first process there, until CRIU (behind ``pidfd``) ends."""
        poll = select.poll()
        poll.register(self._says, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _events in poll.poll()}
            if self._says in ready:
                for line in os.read(self._says, 4096).decode().splitlines():
                    action, _, number = line.partition(" ")
                    if action in acts:
                        acts[action](int(number or 0))
                    os.write(self._heard, b"go\n")
            elif pidfd in ready:
                return


def become(
    line: Sequence[str], directory: int, conversation: Conversation, prepare: Callable[[], Sequence[str]] = tuple, kept: Sequence[int] = ()
) -> None:
    """In a child: be CRIU, in a mount namespace whose /tmp is its own, on a directory of images; ``prepare`` adds words, ``kept`` are inherited."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
    program = os.open(line[0], os.O_PATH)  # it may be below the directory that is about to be covered
    mount.attach_mount(inside.new_mount("tmpfs", {"mode": "1777"}, 0), _STAGE)
    descriptor = os.open(_SCRIPT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    os.write(descriptor, conversation.script.encode())
    os.close(descriptor)
    extra = prepare()
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=directory)
    for number, descriptor in enumerate((null, null, log)):
        os.dup2(descriptor, number)
    process.close_on_exec_from(3)
    for one in (program, directory, *kept):
        os.set_inheritable(one, True)
    words = [*line, "-D", f"/proc/self/fd/{directory}", "-o", LOG, "-v2", "--action-script", _SCRIPT, *OPTIONS, *extra]
    environment = {"PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}", "LC_ALL": "C"}
    os.execve(f"/proc/self/fd/{program}", words, environment)


def _execute(body: Callable[[], None]) -> None:
    """A forked child that becomes CRIU, or ends."""
    try:
        body()
    finally:
        os._exit(127)


def complaint(place: Path) -> str:
    """What CRIU wrote of its failure to a directory, in part of a sentence."""
    try:
        return _complaint((place / LOG).read_text(errors="replace")) or "CRIU does not say why"
    except OSError:
        return "CRIU does not say why"


def _complaint(text: str) -> str:
    """The first complaint that is about more than CRIU's own limits."""
    for line in text.splitlines():
        found = re.search(r"(?:Error|Warn) +\((?:\S+)\): *(.*)", line)
        if found and "Error" in line and "rlimit" not in found[1]:
            return f"CRIU says: {found[1].strip()[:200]}"
    return ""


def _outside(plan: RunPlan, pid: int) -> Iterator[tuple[str, str]]:
    """Mounts of a container that come from outside: its path, and what is there, in words that :mod:`restoring` understands."""
    identity = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        own, _, rest = line.partition(" - ")
        _number, _parent, _device, root, path = own.split()[:5]
        kind, _source, options = rest.split()[:3]
        if path in identity:
            yield path, f"identity {path}"
        elif path.startswith("/dev/") and path[5:] in inside.DEVICES:
            yield path, f"device {path}"
        elif path in plan.security.masked_paths and root.endswith("/null"):
            yield path, "device /dev/null"
        elif kind in ("cgroup", "cgroup2"):
            names = [option for option in options.split(",") if option not in ("rw", "ro")] if kind == "cgroup" else []
            yield path, f"{kind} {','.join(names)}"


def _streams(plan: RunPlan, pid: int) -> tuple[str, str, str]:
    """What CRIU calls the ends of the container's streams that its processes hold; empty for what none of them holds."""
    wanted = {}
    for number, name in ((1, "stdout"), (2, "stderr")):
        found = os.stat(f"{plan.state_host_path}/{name}")
        wanted[found.st_dev, found.st_ino] = number
    names = ["", "", ""]
    with suppress(OSError):
        if (target := os.readlink(f"/proc/{pid}/fd/0")).startswith("pipe:"):
            names[0] = target
    for one in _tree(pid):
        for number in _numbers(f"/proc/{one}/fd"):
            with suppress(OSError, AttributeError):
                found = os.stat(f"/proc/{one}/fd/{number}")
                index = wanted.get((found.st_dev, found.st_ino))
                if index is not None and not names[index]:
                    told = re.search(r"^mnt_id:\s*(\d+)", Path(f"/proc/{one}/fdinfo/{number}").read_text(), re.MULTILINE)
                    names[index] = f"file[{int(told[1]):x}:{found.st_ino:x}]"  # type: ignore[index]
    return names[0], names[1], names[2]


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for task in _numbers(f"/proc/{pid}/task"):
        with suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _tree(int(child))


def _numbers(directory: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(directory))
    except OSError:
        return []


def _users(plan: RunPlan) -> tuple[tuple[int, int, int], ...]:
    security = plan.security
    return tuple((one.container_id, one.host_id, one.size) for one in (*security.id_mappings, *security.group_mappings))


def _processor() -> str:
    """A name for what programs may have found this processor to be."""
    seen: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in _SHOWN_OF_PROCESSOR:
                seen.setdefault(name.strip(), value.strip())
    told = "\n".join(seen.get(name, "") for name in _SHOWN_OF_PROCESSOR)
    return f"{seen.get('model name') or platform.machine()} ({hashlib.sha256(told.encode()).hexdigest()[:8]})"
