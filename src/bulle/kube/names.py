"""Names and amounts as Kubernetes writes them: RFC 1123 labels, labels and annotations, quantities."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

NAME = "app.kubernetes.io/name"
PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "app.kubernetes.io/managed-by"
OURS = frozenset({NAME, PART_OF, MANAGED_BY})
MOST = 63
"""Letters of an RFC 1123 label."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

Document = dict[str, Any]


def digest(content: bytes) -> str:
    """Ten letters that stand for a content."""
    return hashlib.sha256(content).hexdigest()[:10]


def dns_label(text: str) -> str:
    """The nearest RFC 1123 label that begins with a letter, as a Service needs it."""
    label = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"x-{label}".rstrip("-")
    return label if len(label) <= MOST else f"{label[: MOST - 11].rstrip('-')}-{digest(text.encode())}"


def joined(*parts: str) -> str:
    """One label of several parts; it ends as the last does."""
    end = parts[-1]
    begin = "-".join(parts[:-1])
    whole = f"{begin}-{end}"
    return whole if len(whole) <= MOST else f"{begin[: MOST - len(end) - 12].rstrip('-')}-{digest(begin.encode())}-{end}"


def dns_labels(names: Iterable[str]) -> dict[str, str]:
    """A label for each name, no two the same; names that are labels stay."""
    wanted = {name: dns_label(name) for name in names}
    taken = list(wanted.values())
    return {
        name: label if name == label or taken.count(label) == 1 else joined(label[: MOST - 11], digest(name.encode()))
        for name, label in wanted.items()
    }


def is_label_key(key: str) -> bool:
    """Whether Kubernetes takes it as the key of a label or an annotation."""
    prefix, slash, name = key.rpartition("/")
    return _LABEL_NAME.fullmatch(name) is not None and (not slash or _PREFIX.fullmatch(prefix) is not None)


def is_label_value(value: str) -> bool:
    """Whether Kubernetes takes it as the value of a label."""
    return not value or _LABEL_NAME.fullmatch(value) is not None


def memory(size_bytes: int) -> str:
    """A size as a quantity."""
    for letter, factor in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{letter}"
    return str(size_bytes)


def processors(number: float) -> str:
    """A number of processors as a quantity: thousandths, at least one."""
    thousandths = max(1, round(number * 1000))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def seconds(nanoseconds: int) -> int:
    """A length of time in whole seconds, rounded up."""
    return -(-nanoseconds // 1_000_000_000)
