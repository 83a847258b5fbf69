"""What a step of a build depends on, as names with digests: its key in the build cache, and the words for why it was not there.

A step stands on the layers below it *by their content* (a chain id), not on how they came about: an instruction that is run again and makes the same
layer leaves all that follows cached. Times, owners of the context's files and secrets count for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from bulle.records.build_steps import BuildStepRow
from bulle.store.build_cache import BuildCache

_MOST_NAMES = 20_000
_SHOWN = 3


@dataclass
class Inputs:
    """Everything that one step depends on; ``parent`` is the chain id of the layers below it, "" where they do not matter."""

    parent: str
    instruction: str
    parts: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: str) -> None:
        """One more input; of its value only a digest is kept."""
        self.parts[name] = hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def add_files(self, digests: Mapping[str, str], prefix: str = "file ") -> None:
        """Files by their path, with digests already."""
        if len(digests) + len(self.parts) > _MOST_NAMES:
            self.add(f"{prefix.strip()}s", repr(sorted(digests.items())))
        else:
            self.parts.update({f"{prefix}{path}": digest[:32] for path, digest in digests.items()})

    @property
    def key(self) -> str:
        """The digest of all of it."""
        return hashlib.sha256(repr((self.parent, self.instruction, sorted(self.parts.items()))).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def document(self) -> bytes:
        """As the cache keeps it, to be compared with later ones."""
        return msgspec.json.encode({_encodable(name): digest for name, digest in self.parts.items()})


def reason(cache: BuildCache, inputs: Inputs) -> str:
    """Why a step was not in the cache: what differs from the one most like it."""
    row = cache.similar(inputs.parent, inputs.instruction)
    if row is None:
        return "nothing like it was built here before"
    if row.instruction != inputs.instruction:
        return f"the instruction changed: it was {_shortened(row.instruction)}"
    changes = _changes(row, inputs)
    if row.parent != inputs.parent and not changes:
        return "what it stands on changed"
    if not changes:
        return "its layer was removed"
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return ("what it stands on changed; " if row.parent != inputs.parent else "") + "; ".join(changes[:_SHOWN]) + more


def _changes(row: BuildStepRow, inputs: Inputs) -> list[str]:
    before: dict[str, str] = msgspec.json.decode(row.inputs, type=dict[str, str])
    after = {_encodable(name): digest for name, digest in inputs.parts.items()}
    changed = [f"{name} changed" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]
    added = [f"{name} is new" for name in sorted(after.keys() - before.keys())]
    return changed + added + [f"{name} is gone" for name in sorted(before.keys() - after.keys())]


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"


def _encodable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
