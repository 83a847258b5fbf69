"""The last steps of a workload's process, in its own root: terminal, working directory, identity, privileges, and execve(2).

Called by every driver's child once its root is entered (or joined, for exec). From here on nothing may be imported: the root is the image's.
capabilities(7), seccomp(2), execve(2)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import stat
import struct
import termios

from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound, InvalidInput
from bulle.isolation import identity, inside
from bulle.isolation.channel import Channel
from bulle.isolation.driver import Stdio
from bulle.isolation.launch import ChildKit
from bulle.linux import capabilities, elf, mount, process, seccomp
from bulle.model.run_plan import Process

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHEBANG_DEPTH = 5  # as the kernel's own limit
_HERE = mount.AT_FDCWD
_TIOCSPTLCK = 0x40045431  # ioctl_tty(2); termios has them only since Python 3.13
_TIOCGPTPEER = 0x5441


def become(wanted: Process, channel: Channel, kit: ChildKit, *, read_only_root: bool = False, dev: int = -1) -> None:
    """Turn this process into the command; never returns. Whatever goes wrong is told on the channel, then the process exits.

    ``dev`` is the mount of /dev that was just made (-1 for exec into a running container).
    """
    try:
        user = identity.resolve(wanted.user)
        _take_stdio(wanted, channel, kit.stdio, user)
        if wanted.terminal and dev >= 0:
            _show_console(dev)
        _change_directory(wanted.working_directory or "/", user)
        if read_only_root:
            inside.make_root_read_only()
        for note in _set_limits(wanted):
            channel.report("note", note)
        environment = _environment(wanted, user)
        path = "" if wanted.idle else find_command(wanted.arguments[0], environment)
        arguments = list(wanted.arguments)
        _reset_signals()
        for note in _drop_privileges(wanted, user, kit):
            channel.report("note", note)
        process.close_on_exec_from(3)
        if kit.program_fd >= 0:
            form = ["--"] if wanted.init else ["--exec", path]
            os.execve(kit.program_fd, arguments if wanted.idle else ["bulle-init", *form, *arguments], environment)
        _execute(path, arguments, environment)
    except BaseException as error:  # noqa: BLE001 -- this process has no other way to tell
        channel.report_error(error)
    finally:
        os._exit(127)


def _take_stdio(wanted: Process, channel: Channel, stdio: Stdio, user: identity.Identity) -> None:
    if not wanted.terminal:
        for number, descriptor in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
            os.dup2(descriptor, number)
            if user.user_id and stat.S_ISFIFO(os.fstat(number).st_mode):
                # The user may open /dev/stdout by name; a pipe of somebody outside of the user namespace stays hers.
                with contextlib.suppress(OSError):
                    os.fchown(number, user.user_id, -1)
        return
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if wanted.rows and wanted.columns:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", wanted.rows, wanted.columns, 0, 0))
    if user.user_id:
        with contextlib.suppress(OSError):  # an id that does not exist here is refused with a better word later
            os.fchown(slave, user.user_id, -1)
    channel.report("terminal", descriptor=master)
    os.close(master)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)


def _show_console(dev: int) -> None:
    """Bind this process's terminal at /dev/console, on a file made in our own /dev: no name of the image is followed."""
    os.mknod("console", stat.S_IFREG | 0o600, dir_fd=dev)
    source = mount.open_tree(0, "", mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | mount.AT_EMPTY_PATH)
    mount.attach_mount(source, "console", dev)
    os.close(source)


def _change_directory(path: str, user: identity.Identity) -> None:
    """Enter (and make) the working directory; never through a magic link, which could lead out by a descriptor that is still open."""
    if not path.startswith("/"):
        raise InvalidInput(f"the working directory {path!r} is not an absolute path", "", "begin it with /")
    try:
        directory = inside.make_directory(_HERE, path)
    except OSError as error:
        raise BulleError(f"the working directory {path} cannot be entered", os.strerror(error.errno or 0), "choose another with -w") from error
    os.fchdir(directory)
    os.close(directory)
    if not os.getcwd().startswith("/"):
        raise BulleError(f"the working directory {path} is outside the container", "", "choose another with -w")


def _set_limits(wanted: Process) -> list[str]:
    notes = []
    for limit in wanted.limits:
        number = getattr(resource, f"RLIMIT_{limit.name.upper()}", None)
        if number is None:
            raise InvalidInput(f"no limit is called {limit.name}", "", "see setrlimit(2) for names")
        try:
            resource.setrlimit(number, (limit.soft, limit.hard))
        except ValueError:
            # Raising needs CAP_SYS_RESOURCE in the initial user namespace, which not every root has.
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (min(limit.soft, hard) if limit.soft >= 0 and hard >= 0 else hard, hard))
            notes.append(f"ulimit {limit.name} could not be raised to {limit.hard}; it is {hard}")
    return notes


def _environment(wanted: Process, user: identity.Identity) -> dict[str, str]:
    environment = {"PATH": DEFAULT_PATH, "HOME": user.home}
    if wanted.terminal:
        environment["TERM"] = "xterm"
    for item in wanted.environment:
        key, _, value = item.partition("=")
        environment[key] = value
    return environment


def find_command(name: str, environment: dict[str, str]) -> str:
    """The container path of a command, its interpreters included, or CommandNotFound / CommandNotExecutable."""
    if not name:
        raise CommandNotFound("the command is empty", "", "name one")
    if "/" in name:
        _check_executable(name, name, _SHEBANG_DEPTH)
        return name
    denied = None
    for directory in environment.get("PATH", DEFAULT_PATH).split(":"):
        path = f"{directory or '.'}/{name}"
        try:
            _check_executable(path, name, _SHEBANG_DEPTH)
            return path
        except CommandNotFound:
            continue
        except CommandNotExecutable as error:
            denied = error
    raise denied or CommandNotFound(
        f"{name}: command not found in the container", "it is in no directory of PATH", "check its name, or give its path"
    )


def _check_executable(path: str, name: str, depth: int) -> None:
    """Refuse what execve would, and what it would not: magic links such as /proc/self/exe, which is the engine's own binary at this moment."""
    try:
        fd = process.openat2(_HERE, path, os.O_RDONLY | os.O_NONBLOCK, process.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise CommandNotFound(f"{name}: no such file or directory in the container", "", "check its path") from error
        if error.errno == errno.ELOOP:
            raise CommandNotExecutable(f"{name}: refused", f"{path} leads through a link of /proc", "name the program itself") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            return  # executable without being readable: execve decides
        raise CommandNotExecutable(f"{name}: cannot be executed", os.strerror(error.errno or 0), "") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise CommandNotExecutable(f"{name}: is a directory", "", "name a program")
        if not mode & 0o111:
            raise CommandNotExecutable(f"{name}: permission denied", "the file is not executable", "chmod +x it in the image")
        head = os.read(fd, 256) if stat.S_ISREG(mode) else b""
    finally:
        os.close(fd)
    if head.startswith(b"#!") and depth:
        interpreter = head[2:].split(b"\n")[0].split()
        if interpreter:
            try:
                _check_executable(os.fsdecode(interpreter[0]), name, depth - 1)
            except CommandNotFound as error:
                raise CommandNotFound(
                    f"{name}: its interpreter {os.fsdecode(interpreter[0])} does not exist in the container", "", "install it in the image"
                ) from error


def _reset_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ; the command must not inherit that, nor a blocked signal."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGWINCH, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _drop_privileges(wanted: Process, user: identity.Identity, kit: ChildKit) -> list[str]:
    """Bounding set, filter, ids, capabilities, in the only order that works with and without no_new_privs. Returns what is to be told."""
    notes = []
    keep = frozenset(wanted.capabilities) - kit.withheld
    filter_program = kit.filter_program
    capabilities.drop_bounding(keep)
    if wanted.no_new_privileges:
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    elif filter_program and not _filter(filter_program, wanted.log_refusals):
        notes.append("the command cannot gain privileges (as with no-new-privileges): without CAP_SYS_ADMIN a filter can only be had so")
    try:
        _become_user(user)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        why = "one of its ids does not exist in the container's user namespace, which has those below 65536"
        raise InvalidInput(f"user {user.user_id}:{user.group_id} cannot be used", why, "use a smaller id, or --userns=host") from error
    held = keep if user.user_id == 0 else frozenset()
    capabilities.set_current(held, held)
    if wanted.no_new_privileges and filter_program:
        seccomp.install(filter_program, wanted.log_refusals)
    return notes


def _filter(program: bytes, log: bool) -> bool:
    """Install a filter; False where this is not allowed to a process that can still gain privileges, which it then no longer can."""
    try:
        seccomp.install(program, log)
    except PermissionError:
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(program, log)
        return False
    return True


def _become_user(user: identity.Identity) -> None:
    """Groups before the user, while that is still allowed."""
    try:
        os.setgroups(user.groups)
    except PermissionError:
        # A rootless user namespace with a single id denies it, and has no other groups to give: what the image says of its users' groups (root
        # is in several in many images) means nothing there.
        if user.groups and not _groups_are_denied():
            raise
    os.setresgid(user.group_id, user.group_id, user.group_id)
    os.setresuid(user.user_id, user.user_id, user.user_id)


def _groups_are_denied() -> bool:
    try:
        with open("/proc/self/setgroups") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def _execute(path: str, arguments: list[str], environment: dict[str, str]) -> None:
    try:
        os.execve(path, arguments, environment)
    except OSError as error:
        name = arguments[0]
        if error.errno == errno.ENOENT:
            raise CommandNotFound(
                f"{name}: cannot be started", "its interpreter or dynamic loader does not exist in the container", "install it"
            ) from error
        if error.errno == errno.ENOEXEC:
            raise _wrong_format(name, path) from error
        raise CommandNotExecutable(f"{name}: cannot be executed", os.strerror(error.errno or 0), "") from error


def _wrong_format(name: str, path: str) -> CommandNotExecutable:
    """What nothing here can run, by its first bytes: mostly a program of another processor."""
    made_for = ""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        made_for = elf.architecture_of(file.read(elf.HEAD_BYTES))
    if not made_for:
        return CommandNotExecutable(f"{name}: exec format error", "it is no program for this processor, or a script without #!", "")
    mend = f"use an image that says so (bulle run --platform linux/{made_for}), or a program for this processor"
    return CommandNotExecutable(f"{name}: exec format error", f"it is a program for linux/{made_for}, which its image does not say", mend)
