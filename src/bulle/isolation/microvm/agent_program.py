"""The guest's agent as a program for each processor: what an initial ramdisk has as ``/init``. Built from ``native/bulle-agent.c`` with the wheel."""

from __future__ import annotations

from pathlib import Path

from bulle.errors import Unavailable

_PROGRAMS = Path(__file__).parent.parent.parent / "_bin"


def agent_program(machine: str) -> Path:
    """The path of the static program for a processor in the kernel's words (``x86_64``, ``aarch64``, ``riscv64``). Raises Unavailable."""
    path = _PROGRAMS / f"bulle-agent-{machine}"
    if not path.exists():
        raise Unavailable(
            f"virtual machines with the processor {machine} are not available",
            "this installation was built without the agent for it, or there is none",
            "install Bulle from its wheel, or build it where the package ziglang can be had",
        )
    return path
