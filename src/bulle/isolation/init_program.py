"""The small init: what ``--init`` puts in front of the command, and what some commands are executed through. A static binary in sealed memory.

Executed by descriptor, so the image needs no such file and no process inside can reach or change the host's copy. memfd_create(2)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bulle.errors import Unavailable
from bulle.model.run_plan import Process

_PROGRAM = Path(__file__).parent.parent / "_bin" / "bulle-init"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def program_to_go_through(wanted: Process, own_users: bool) -> int:
    """The descriptor to hand to the child: the init that was asked for, or the same program as the last step before a command that could harm the
    host.

    Whose container root is no stranger to the host (its real root, or the ordinary user herself) could write to the interpreter's file through
    /proc/PID/exe (CVE-2019-5736); so that is never the engine's own there. -1 where neither is needed, or an installation without compiled programs
    cannot.
    """
    if wanted.init or wanted.idle:
        return init_program()
    if own_users and os.geteuid() == 0:
        return -1
    return init_program() if _PROGRAM.exists() else -1


def init_program() -> int:
    """A descriptor of the sealed program, which the caller closes. Raises Unavailable."""
    try:
        content = _PROGRAM.read_bytes()
    except FileNotFoundError as error:
        raise Unavailable(
            "the small init is not available", "this installation was built without its compiled programs", "install Bulle from its wheel"
        ) from error
    descriptor = os.memfd_create("bulle-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    os.fchmod(descriptor, 0o555)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
