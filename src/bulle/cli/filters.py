"""``--filter`` as it stands on a command line. What the keys mean is :mod:`bulle.engine.filters`."""

from __future__ import annotations

from collections.abc import Sequence

from bulle.cli.verb import WrongValue
from bulle.engine.filters import check_keys


def parse(texts: Sequence[str], keys: Sequence[str]) -> dict[str, list[str]]:
    """The values by key; raises WrongValue for what is no filter, InvalidInput for one that is not known."""
    values: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().lower()
        if not equals:
            raise WrongValue(f"invalid argument '{text}' for --filter", "", "write it as name=value")
        check_keys((key,), keys)
        values.setdefault(key, []).append(value.strip())
    return values
