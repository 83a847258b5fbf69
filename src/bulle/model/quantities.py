"""Durations and sizes as people write them, which is Go's way: ``1m30s``, ``64m``. Raises ValueError."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?(?:ns|[uµμ]s|ms|s|m|h)|\.[0-9]{1,18}(?:ns|[uµμ]s|ms|s|m|h)){1,16}")
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([a-zµμ]+)")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([kmgtp]?)i?b?", re.IGNORECASE)
_MOST = 2**63 - 1


def duration_ns(text: str) -> int:
    """Nanoseconds; negative where the text begins with a minus."""
    if text in ("0", "+0", "-0"):
        return 0
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no duration: write it as 30s, 1m30s or 500ms")
    total = 0
    for whole, fraction, unit in _PART.findall(text.lstrip("+-")):
        total += int(Fraction(f"{whole or '0'}.{fraction or '0'}") * _UNITS_NS[unit])
    if total > _MOST:
        raise ValueError(f"{text[:40]!r} is longer than 292 years")
    return -total if text.startswith("-") else total


def size_bytes(text: str) -> int:
    """Bytes; units are multiples of 1024, whatever their case."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no size: write it as 512k, 64m or 1g")
    total = int(Fraction(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))
    if total > _MOST:
        raise ValueError(f"{text[:40]!r} is more than any machine has")
    return total
