"""``ssh`` as the way to another machine: the command line that it gets, the signals that it passes on, and what its failures mean.

The words of a command go through the other user's login shell, whichever that is, so each is percent-encoded and stands in single quotes;
:func:`decode` is the other end. The stub there ends, and its command with it, as soon as the connection does. ssh(1)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from bulle.errors import BulleError, InvalidInput, NotFound, Unavailable
from bulle.fleet.hosts import Host
from bulle.linux.process import PR_SET_PDEATHSIG, prctl
from bulle.version import VERSION

FLAG, CARRY_FLAG, SIGNAL_FLAG, MOVE_FLAG = "--fleet", "--fleet-carry", "--fleet-signal", "--fleet-move"
PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
LOST = 255
"""What ssh(1) ends with when it failed itself."""
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:@/+=-")
_MOST_BYTES = 120_000  # the other shell gets all words as one, which execve(2) bounds to 128 KiB
# Not exec: a shell says by its exit code which signal bulle ended by, sshd would not. The traps keep it alive until then.
_SCRIPT = (
    "PATH=$PATH:/usr/local/bin:$HOME/.local/bin; trap : INT QUIT TERM HUP; "
    "command -v bulle >/dev/null 2>&1 || { echo bulle: there is no bulle on $0: "
    "no program of that name is in the PATH of commands that ssh runs there, install it >&2; exit 125; }; "
    'bulle "$@"; exit $?'
)
_CAUSES = (
    ("could not resolve hostname", "its name is not known", "check the name, or give it an entry in ~/.ssh/config"),
    ("host identification has changed", "its host key is another than the known one", "if you know why, remove the old one: ssh-keygen -R HOST"),
    ("host key verification failed", "its host key is not known", "connect once by `ssh HOST` and check the key"),
    ("permission denied", "it does not accept this user or key", "see that `ssh HOST` works"),
    ("connection refused", "nothing listens for ssh there", "start its sshd, or name the port"),
    ("timed out", "it does not answer", "see that it is up, and that the network leads there"),
    ("no route to host", "no route leads there", "see that it is up, and that the network leads there"),
    ("unreachable", "the network does not lead there", "see that it is up, and that the network leads there"),
)


def encode(word: str) -> str:
    """A word as every shell leaves it alone."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in os.fsencode(word)) or "%"


def decode(word: str) -> str:
    """The inverse of :func:`encode`."""
    first, *rest = word.split("%")
    return os.fsdecode(os.fsencode(first) + b"".join(bytes((int(part[:2], 16),)) + os.fsencode(part[2:]) for part in rest if part))


@dataclass
class Connection:
    """One ssh to one command there. ``token`` names the command for :func:`deliver`."""

    host: Host
    token: str = field(default_factory=lambda: os.urandom(8).hex())
    pid: int = 0
    _log: int = -1

    def start(self, words: Sequence[str], *, terminal: bool = False, stdin: int = 0, stdout: int = 1, batch: bool = False) -> None:
        """Start ``bulle WORDS`` there. Descriptors are the caller's; -1 as stdin is none."""
        script = " ".join(("exec sh -c", f"'{_SCRIPT}'", f"'{self.host.name}'", *(f"'{encode(word)}'" for word in words)))
        if len(script) > _MOST_BYTES:
            raise InvalidInput("the command line is too long for another machine", f"{len(script)} bytes", f"at most {_MOST_BYTES} go there")
        self._log = os.memfd_create("ssh")
        line = [*self._options(terminal, batch), "-E", f"/proc/{os.getpid()}/fd/{self._log}", "--", self.host.name, script]
        parent = os.getpid()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(LOST)
            for number in PASSED_ON:
                # They are told to the command there; ssh would only hang up.
                signal.signal(number, signal.SIG_IGN)
            os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin < 0 else stdin, 0)
            os.dup2(stdout, 1)
            os.execvp("ssh", line)
        except FileNotFoundError:
            os.write(self._log, b"no ssh")
        finally:
            os._exit(LOST)

    def _options(self, terminal: bool, batch: bool) -> list[str]:
        # What else ssh does, ~/.ssh/config says; what would disturb a command is turned off, as is the escape character: input goes through as it is.
        options = ["ssh", "-t" if terminal else "-T", "-x", "-e", "none", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes"]
        options += ["-o", "ConnectTimeout=30"]
        if batch:
            options += ["-o", "BatchMode=yes"]
        if self.host.user:
            options += ["-l", self.host.user]
        if self.host.port:
            options += ["-p", str(self.host.port)]
        return options

    def wait(self) -> int:
        """The exit code of the command there. Raises where ssh could not do its part."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        log = os.pread(self._log, 1 << 16, 0).decode(errors="replace")
        os.close(self._log)
        if code == LOST and (error := failure(self.host, log)) is not None:
            raise error
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """Hang up."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)


def failure(host: Host, log: str) -> BulleError | None:
    """What ssh's own words come to in one sentence; None where they tell of no failure, and 255 was the command's own."""
    lines = [line.strip() for line in log.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Warning:") and not line.endswith(f"to {host.name} closed.")]
    if lines == ["no ssh"]:
        return NotFound("there is no ssh on this machine", "no program of that name is in PATH", "install it: openssh-client")
    text = " ".join(lines).lower()
    for words, cause, mend in _CAUSES:
        if words in text:
            return Unavailable(f"{host} cannot be reached", cause, mend.replace("HOST", host.name))
    if not lines:
        return None
    return Unavailable(f"the connection to {host} was lost", lines[-1], "what the command did there is unknown")


def run(host: Host, words: Sequence[str], *, terminal: bool = False, stdin: int = 0, stdout: int = 1) -> int:
    """Run ``bulle WORDS`` there to its end and return its exit code; signals of this process go to it. Raises BulleError."""
    connection = Connection(host)
    connection.start([FLAG, VERSION, connection.token, *words], terminal=terminal, stdin=stdin, stdout=stdout)
    delivering = False

    def pass_on(number: int, _frame: object) -> None:
        nonlocal delivering
        again, delivering = delivering, True
        if again or not deliver(host, connection.token, number):
            connection.kill()
            _die(number)
        delivering = False

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN}
    try:
        return connection.wait()
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def deliver(host: Host, token: str, number: int) -> bool:
    """Send a signal to the command of that token; False where it did not get it."""
    connection = Connection(host)
    connection.start([SIGNAL_FLAG, VERSION, token, str(number)], stdin=-1, stdout=2, batch=True)
    try:
        return connection.wait() == 0
    except BulleError:
        return False


def _die(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def check_version(version: str) -> None:
    """That the machine that asks has this one's version: both read the same words. Raises Unavailable."""
    if version != VERSION:
        raise Unavailable(f"this machine has Bulle {VERSION}", f"the one that asks has {version}", "install the same version on both")


def signal_command(token: str, number: int) -> bool:
    """On the other machine: send a signal to the command of that token. It is found by its arguments, so that nothing is left of it when it ends."""
    wanted = (FLAG.encode(), token.encode())
    found = False
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                arguments = file.read(1 << 17).split(b"\0")
            # The command itself, not the shells around it: it was not told a script.
            if wanted[1] in arguments and wanted[0] in arguments and b"-c" not in arguments[:2] and os.stat(f"/proc/{entry}").st_uid == os.geteuid():
                os.kill(int(entry), number)
                found = True
        except OSError:
            continue
    return found
