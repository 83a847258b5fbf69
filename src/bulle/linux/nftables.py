"""nftables, by libnftables or else by the program ``nft``: commands as text, all or nothing; and word of what others change. nft(8), libnftables(3)

The kernel tells every change of every table to whoever listens (netlink(7), NFNLGRP_NFTABLES): :class:`Watcher` says which tables were changed by
somebody else. What the rules mean is not known here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess

from bulle.errors import Unavailable
from bulle.linux.netlink_attributes import attributes

LIBRARY = "libnftables.so.1"

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN, _NFT_MSG_GETGEN = 15, 16
_NFNLGRP_NFTABLES = 7
_NETLINK_NETFILTER = 12
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE...: the first attribute of all of them
_GENERATION_PROCESS = 2  # NFTA_GEN_PROC_PID
_SO_RCVBUFFORCE = 33


class RulesRefused(Exception):
    """nft or the kernel did not take the commands; the text is theirs. Nothing was changed."""


class _Library:
    """libnftables with one context, which holds a socket of the network namespace that this process was in."""

    def __init__(self) -> None:
        library = ctypes.CDLL(LIBRARY)
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        before = set(os.listdir("/proc/self/fd"))
        self.context = library.nft_ctx_new(0)
        if not self.context:
            raise OSError(errno.ENOMEM, "nft_ctx_new")
        for name in set(os.listdir("/proc/self/fd")) - before:
            # The library leaves its socket open for programs that this process executes.
            if os.path.exists(f"/proc/self/fd/{name}"):
                os.set_inheritable(int(name), False)
        library.nft_ctx_buffer_output(self.context)
        library.nft_ctx_buffer_error(self.context)
        self.library = library

    def run(self, commands: str, *, dry: bool) -> str:
        self.library.nft_ctx_set_dry_run(self.context, dry)
        failed = self.library.nft_run_cmd_from_buffer(self.context, commands.encode())
        output: bytes = self.library.nft_ctx_get_output_buffer(self.context) or b""
        complaint: bytes = self.library.nft_ctx_get_error_buffer(self.context) or b""
        if failed:
            raise RulesRefused(complaint.decode(errors="replace").strip())
        return output.decode(errors="replace")


_loaded: tuple[int, _Library | None] = (0, None)  # the process that it belongs to: a fork needs one of its own


def _library() -> _Library | None:
    global _loaded
    if _loaded[0] != os.getpid():
        try:
            _loaded = os.getpid(), _Library()
        except OSError:
            _loaded = os.getpid(), None
    return _loaded[1]


def uses_library() -> bool:
    """Whether commands are given to the library, so by this process itself."""
    return _library() is not None


def understands(commands: str) -> bool:
    """Whether commands could be given; nothing is changed. Errors: Unavailable without nftables."""
    try:
        run(commands, dry=True)
    except RulesRefused:
        return False
    return True


def run(commands: str, *, dry: bool = False) -> str:
    """Give nft's commands to the kernel, as one transaction, and return what they print; ``dry`` only asks whether it would take them.

    Errors: :class:`RulesRefused`, Unavailable without nftables.
    """
    library = _library()
    if library is not None:
        return library.run(commands, dry=dry)
    program = shutil.which("nft", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        raise Unavailable(
            "networks need nftables",
            f"neither the library {LIBRARY} nor the program nft is on this machine",
            "install the package nftables (Debian and most others: libnftables1 is enough)",
        )
    done = subprocess.run([program, *(["-c"] if dry else []), "-f", "-"], input=commands, capture_output=True, text=True)
    if done.returncode:
        raise RulesRefused(done.stderr.strip())
    return done.stdout


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """Type and content (after the nfgenmsg header) of each message in a datagram."""
    found = []
    position = 0
    while position + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, position)
        if length < 16:
            break
        found.append((kind, data[position + 20 : position + length]))
        position += (length + 3) & ~3
    return found


def _own_process() -> int | None:
    """This process as the kernel writes it down with a change: its number in the machine's first pid namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asker:
        asker.settimeout(1)
        kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN
        asker.send(struct.pack("=IHHIIBBH", 20, kind, _NLM_F_REQUEST, 1, 0, socket.AF_UNSPEC, 0, 0))
        for answer, content in _messages(asker.recv(65536)):
            process = attributes(content).get(_GENERATION_PROCESS) if answer == _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWGEN else None
            if process is not None:
                return int(struct.unpack(">I", process)[0])
    return None


class Watcher(socket.socket):
    """A socket that can be read when any table of this network namespace was changed; :meth:`changed` says which, and reads it empty."""

    def __init__(self) -> None:
        super().__init__(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        try:
            self.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
        except OSError:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        self._own = _own_process()
        self._unfinished: set[str] = set()

    def changed(self) -> set[str] | None:
        """The tables that other processes changed since it was asked last; None if more happened than the kernel could keep."""
        tables: set[str] = set()
        lost = False
        while True:
            try:
                data = self.recv(1 << 18)
            except BlockingIOError:
                return None if lost else tables
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                self._unfinished = set()
                continue
            for kind, content in _messages(data):
                if kind >> 8 != _NFNL_SUBSYS_NFTABLES:
                    continue
                said = attributes(content)
                if kind & 0xFF == _NFT_MSG_NEWGEN:  # the end of one transaction, and who made it
                    process = said.get(_GENERATION_PROCESS)
                    if process is None or struct.unpack(">I", process)[0] != self._own:
                        tables |= self._unfinished
                    self._unfinished = set()
                elif _TABLE_NAME in said:
                    self._unfinished.add(said[_TABLE_NAME].rstrip(b"\0").decode(errors="replace"))
