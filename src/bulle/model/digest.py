"""Digests: the names of everything that is stored or pulled, ``algorithm:encoded``.

Used by every room that names content. Pure data: it hashes bytes that it is given and reads no files. Image specification, descriptor.md, "Digests";
the registered algorithms sha256 and sha512 are accepted, others are refused because they could not be verified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from bulle.errors import CorruptImage

_FORM = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Digest(str):
    """``sha256:`` or ``sha512:`` and hexadecimal digits; made by :meth:`parse` or :meth:`of`, so holding one means that it is well-formed."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """A digest from untrusted text. Raises CorruptImage when it is malformed or of an algorithm that cannot be verified here."""
        if isinstance(text, Digest):
            return text
        if not isinstance(text, str) or _FORM.fullmatch(text) is None:
            raise CorruptImage(f"{str(text)[:100]!r} is not a digest", "expected sha256: or sha512: and lower-case hexadecimal digits")
        return cls(text)

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """The sha256 digest of some bytes."""
        return cls("sha256:" + hashlib.sha256(content).hexdigest())

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal digits; safe as a file name."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve digits, as listings show them."""
        return self.encoded[:12]


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chain id of every layer of a stack, lowest first: what the layer is *together with everything below it*.

    Image specification, config.md, "Layer ChainID".
    """
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
