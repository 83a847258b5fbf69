"""Numbers, sizes and lengths of time as Go programs read and show them, which Compose files are written for. Everything raises ValueError."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from typing import Any

_WHOLE = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?inf(?:inity)?|[-+]?nan", re.IGNORECASE)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp])?i?b?", re.IGNORECASE | re.ASCII)
_MULTIPLES = {letter: 1 << (10 * power) for power, letter in enumerate("bkmgtp")}
_TRUE, _FALSE = frozenset({"true", "y", "yes", "on"}), frozenset({"false", "n", "no", "off"})
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_LENGTH = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LIMIT = 1 << 63


def go_integer(text: str) -> int:
    """A decimal number of 64 bits."""
    if not _WHOLE.fullmatch(text) or not -_LIMIT <= (number := int(text)) < _LIMIT:
        raise ValueError(f"{text!r} is not a whole number")
    return number


def go_float(text: str) -> float:
    """A number."""
    if not _FLOAT.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def go_boolean(text: str) -> bool:
    """``true`` or ``false``, also in the words of YAML 1.1."""
    word = text.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError(f"{text!r} is neither true nor false")


def bytes_of(text: str) -> int:
    """A size such as ``64m`` or ``1.5 GiB``, in bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64m or 1.5GiB")
    return int(float(match[1]) * _MULTIPLES[(match[2] or "b").lower()])


def nanoseconds_of(text: str) -> int:
    """A length of time such as ``1m30s``."""
    rest = text.removeprefix("-").removeprefix("+") if text[:2] != "-+" else ""
    if rest == "0":
        return 0
    total = Fraction(0)
    position = 0
    for match in _LENGTH.finditer(rest):
        if match.start() != position:
            break
        total += Fraction(match[1] if match[1][0] != "." else "0" + match[1]) * _UNITS[match[2]]
        position = match.end()
    if not rest or position != len(rest) or int(total) >= _LIMIT:
        raise ValueError(f"{text!r} is not a length of time such as 1m30s")
    return -int(total) if text[0] == "-" else int(total)


def shown_length(nanoseconds: int) -> str:
    """A length of time as Go shows it."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if rest < size * 1000 and rest < 10**9:
            return f"{sign}{_decimal(rest, size)}{unit}"
    minutes, rest = divmod(rest, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 10**9)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def _decimal(value: int, size: int) -> str:
    whole, part = divmod(value, size)
    if not part:
        return str(whole)
    return f"{whole}.{str(part).rjust(len(str(size)) - 1, '0').rstrip('0')}"


def single_precision(number: float) -> float:
    """The number that 32 bits hold, in its shortest decimal form."""
    if number == int(number) and abs(number) < 1 << 24:
        return number
    try:
        rounded = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
    for digits in range(6, 10):
        if struct.unpack("f", struct.pack("f", shown := float(f"{rounded:.{digits}g}")))[0] == rounded:
            return shown
    return float(rounded)


def shown_number(number: float, *, wide: bool = True) -> str:
    """A float as Go's shortest form shows it: an exponent from 1e21 on, or below 1e-4."""
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "+Inf" if number > 0 else "-Inf"
    exponent = int(f"{number:e}".partition("e")[2]) if number else 0
    digits = repr(number)
    if -4 <= exponent < (21 if wide else 16):
        if "e" in digits or digits.endswith(".0"):
            return f"{number:.0f}" if number == int(number) else f"{Fraction(digits):f}"
        return digits
    mantissa, _, power = f"{number!r}".partition("e")
    if not power:
        mantissa, _, power = f"{number:e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa.removesuffix('.0')}e{'-' if power[0] == '-' else '+'}{abs(int(power)):02d}"


def sprint(value: Any) -> str:
    """A scalar as Go's Sprint shows it."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return shown_number(value)
    if value is None:
        return "<nil>"
    return str(value)
