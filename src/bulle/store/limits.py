"""How much one layer may be: the bounds that keep a hostile archive from filling the disk or the memory.

Given to the store when it is constructed; the defaults are far above every real image. A layer beyond a bound is a CorruptImage and leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on one layer.

    ``layer_bytes`` is the uncompressed tar; beyond ``ratio_free_bytes`` of it, it may be at most ``ratio`` times its compressed blob.
    ``entries`` counts headers, ``header_bytes`` is one extended header (pax or GNU), ``sparse_bytes`` the sum of the apparent sizes of sparse files.
    """

    layer_bytes: int = 256 << 30
    ratio: int = 200
    ratio_free_bytes: int = 1 << 30
    entries: int = 1_000_000
    header_bytes: int = 1 << 20
    sparse_bytes: int = 1 << 40
    sparse_segments: int = 100_000
