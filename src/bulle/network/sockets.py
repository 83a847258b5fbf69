"""The sockets in the network namespace of a process, as the kernel lists them: who listens, and who is connected. proc_pid_net(5)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LOOPBACKS = ("0100007F", "00000000000000000000000001000000")
_LISTENING = "0A"
_OVER = ("05", "06", "07", _LISTENING)
"""States in which nothing is left to be sent: FIN_WAIT2, TIME_WAIT, CLOSE. linux/net/tcp_states.h"""


def listening(pid: int) -> set[tuple[str, int]]:
    """The protocols and ports at which somebody listens, on more than loopback."""
    found = {("tcp", port) for address, port, state in _sockets(pid, "tcp") if state == _LISTENING and address not in _LOOPBACKS}
    return found | {("udp", port) for address, port, _ in _sockets(pid, "udp") if address not in _LOOPBACKS}


def connected(pid: int) -> set[int]:
    """The TCP ports that somebody is connected to, from outside, who has not got everything yet."""
    return {port for address, port, state in _sockets(pid, "tcp") if state not in _OVER and address not in _LOOPBACKS}


def _sockets(pid: int, protocol: str) -> Iterator[tuple[str, int, str]]:
    """Local address and port, and state, of each."""
    for suffix in ("", "6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{protocol}{suffix}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, _, port = local.rpartition(":")
                yield address, int(port, 16), state
