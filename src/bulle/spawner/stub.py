"""The command's stub: hands its whole self to the spawner and waits. The Python twin of ``native/bulle.c``, behaviour for behaviour.

Used as ``bin/bulle`` where no compiler was at hand when the wheel was built, and as the readable version of the C one. Where the spawner does not
serve this caller, or cannot be had, the command runs here: ``python -I -m bulle ARGS`` in this process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bulle.spawner.launch import command_line, connect_or_start, default_home, interpreter_directory
from bulle.spawner.protocol import Flag, Reply, Request, current_limits, pack_request, read_reply, send_with_descriptors

# The last three of the deadly ones because `run` passes them on to the container.
DEADLY = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
FORWARDED = (*DEADLY, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
ATTEMPTS = 3


def main(argv: Sequence[str] | None = None, home: Path | None = None, command: Sequence[str] | None = None) -> NoReturn:
    """Run one command through the spawner; ends this process as the command's ended. ``command`` runs the package (default: this one)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # What systemd opened for this very process nobody else could take. sd_listen_fds(3)
    given_sockets = os.environ.get("LISTEN_PID") == str(os.getpid())
    elsewhere = _is_for_elsewhere(arguments, home or default_home())
    if os.environ.get("BULLE_NO_SPAWNER", "") in ("", "0") and not given_sockets and not elsewhere:
        for _ in range(ATTEMPTS):
            connection = connect_or_start(home or default_home(), command)
            if connection is None:
                break
            if _ask(connection, arguments):
                break
            connection.close()
    here = [*(command or command_line()), *arguments]
    os.execv(here[0], here)


def _is_for_elsewhere(arguments: Sequence[str], home: Path) -> bool:
    """Whether the command may be for another machine: it then runs ssh, which wants this process's terminal and session (:mod:`bulle.fleet`)."""
    rest = list(arguments)
    if rest and rest[0].startswith("--fleet"):
        return False  # another machine meant this one
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag.startswith(("-H", "-c", "--host", "--context")):
            return True
        del rest[: flag == "--home"]
    return bool(os.environ.get("BULLE_HOST") or os.environ.get("BULLE_CONTEXT")) or (home / "context").exists()


def _ask(connection: socket.socket, arguments: Sequence[str]) -> bool:
    """Send the request and follow the child to its end. Returns True for a bypass, False where nothing was started and one may ask again."""
    try:
        cwd = os.fsencode(os.getcwd())
    except OSError:
        cwd = b""
    request = Request(
        entry="command",
        interpreter=interpreter_directory(),
        package=os.fsencode(Path(__file__).resolve().parents[1]),
        cwd=cwd,
        argv=[os.fsencode(argument) for argument in arguments],
        environment=[name + b"=" + value for name, value in os.environb.items()],
        flags=Flag.ATTACHED,
        limits=current_limits(),
        descriptor_count=4,
    )
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
    for number in FORWARDED:
        # nohup(1) and shells' background jobs ignore signals: so must the command.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)
    descriptors = [_open_or_null(number) for number in range(3)]
    descriptors.append(os.open(".", os.O_PATH | os.O_CLOEXEC))
    try:
        send_with_descriptors(connection, pack_request(request), descriptors)
    except (BrokenPipeError, ConnectionResetError):
        return False
    outcome = _follow(connection, wake_read, remote=arguments[:1] == ["--fleet"])
    if outcome in (0, Reply.BYPASS):
        signal.set_wakeup_fd(-1)
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    return outcome == Reply.BYPASS


def _follow(connection: socket.socket, signals: socket.socket, *, remote: bool) -> int:
    """Pass signals on and wait for the exit; returns only where the command did not start: BYPASS or 0.

    A command that another machine asked for ends with the connection: the kernel says on standard error that nobody reads it any more.
    """
    child, pid = -1, 0
    accepted = False
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if remote:
        poll.register(2, 0)
    while True:
        # Between the two replies a signal waits: the child may live already.
        poll.register(signals, 0 if accepted and not pid else select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        # Replies first: a signal that came together with one is for the child that it tells of.
        if connection.fileno() not in ready:
            if 2 in ready:
                os._exit(125)
            if signals.fileno() not in ready:
                continue
            for number in signals.recv(64):
                _pass_on(number, child, pid)
            continue
        reply = read_reply(connection)
        if reply is None:
            if not accepted:
                return 0
            os.write(2, b"bulle: the spawner was killed together with this command; what it did is unknown\n")
            os._exit(125)
        kind, value, descriptor = reply
        if kind == Reply.ACCEPTED:
            accepted = True
        elif kind == Reply.CHILD:
            child, pid = descriptor, value
        elif kind == Reply.EXITED:
            os._exit(value)
        elif kind == Reply.SIGNALED:
            _die(value)
        else:
            return Reply.BYPASS


def _pass_on(number: int, child: int, pid: int) -> None:
    if pid:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(child, number) if child >= 0 else os.kill(pid, number)
    elif number in DEADLY:
        _die(number)
    if number == signal.SIGTSTP:
        os.kill(os.getpid(), signal.SIGSTOP)


def _die(number: int) -> NoReturn:
    """End by the signal that the child ended by, without a second core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _open_or_null(number: int) -> int:
    """The standard descriptor, or /dev/null where the caller has closed it."""
    try:
        os.fstat(number)
    except OSError:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    return number


if __name__ == "__main__":
    main()
