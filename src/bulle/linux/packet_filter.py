"""Filters of sockets in the classic machine code of BPF: the kernel drops what nobody wants to hear. socket(7), SO_ATTACH_FILTER; bpf(4) of the
BSDs"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

_SO_ATTACH_FILTER = 26


def attach(line: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Have the kernel pass on what ``program`` (code, jump if true, jump if false, constant) returns a length for."""
    code = b"".join(struct.pack("HBBI", *one) for one in program)
    kept = ctypes.create_string_buffer(code, len(code))
    line.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(kept)))
