"""Documents as YAML that every reader understands alike: texts that some YAML takes for numbers or truth values stand in quotes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bulle.kube.names import Document

_PLAIN = re.compile(r"[A-Za-z/][^\n]*")


def write_yaml(documents: Iterable[Document]) -> str:
    """A stream of YAML documents, keys in the order in which they were made."""
    import yaml

    return str(
        yaml.dump_all(documents, Dumper=_dumper(), sort_keys=False, explicit_start=True, default_flow_style=False, allow_unicode=True, width=2**20)
    )


def _dumper() -> type[Any]:
    import yaml

    parent: type[Any] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(parent):  # type: ignore[misc]
        """Without references to what was said before."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        style = "|" if "\n" in data else None if _PLAIN.fullmatch(data) and data.lower() not in ("y", "n") else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    return Dumper
