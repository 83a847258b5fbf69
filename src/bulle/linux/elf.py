"""The head of a program: which processor it is made for. elf(5)"""

from __future__ import annotations

MAGIC = b"\x7fELF"
HEAD_BYTES = 20

# By e_machine, in Go's words.
ARCHITECTURES = {3: "386", 8: "mips64le", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 258: "loong64"}


def architecture_of(head: bytes) -> str:
    """The architecture of a program that begins with these bytes (at least ``HEAD_BYTES``); "" for what is no program, or of none that is known."""
    if len(head) < HEAD_BYTES or not head.startswith(MAGIC):
        return ""
    return ARCHITECTURES.get(int.from_bytes(head[18:20], "little" if head[5] == 1 else "big"), "")
