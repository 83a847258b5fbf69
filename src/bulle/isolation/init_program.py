"""The small init that ``--init`` puts in front of the command: a static binary of the package, executed from sealed memory.

Executed by descriptor, so the image needs no such file and no process inside can reach or change the host's copy. memfd_create(2)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bulle.errors import Unavailable

_PROGRAM = Path(__file__).parent.parent / "_bin" / "bulle-init"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def init_program() -> int:
    """A descriptor of the sealed program, which the caller closes."""
    try:
        content = _PROGRAM.read_bytes()
    except FileNotFoundError as error:
        raise Unavailable(
            "--init is not available", "this installation was built without its compiled programs", "install Bulle from its wheel"
        ) from error
    descriptor = os.memfd_create("bulle-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    os.fchmod(descriptor, 0o555)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
