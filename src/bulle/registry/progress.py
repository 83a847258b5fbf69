"""Progress of a transfer, as values: sources and writers report, whoever called them draws (or drops) it.

Nothing here prints. A callback may be called from several threads at once and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of one long operation.

    ``kind`` says what goes on, ``id`` what it concerns (a digest, a file, an image's name), ``current`` and ``total`` count bytes (``total`` is 0
    where nobody knows). A ``step`` has a ``message`` for a person instead of a count.
    """

    kind: Literal["resolve", "download", "read", "step", "retry", "compress", "upload"]
    id: str
    current: int = 0
    total: int = 0
    message: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """The callback of a caller who does not want to know."""
