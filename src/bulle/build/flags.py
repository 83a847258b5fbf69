"""The flags of instructions: which there are, and what values they take.

Flags that another builder knows and that mean nothing here are in the tables all the same, so that its files can be read. The table of a ``--mount``
is in :mod:`bulle.build.mounts`.
"""

from __future__ import annotations

from collections.abc import Iterable

from bulle.build.instructions import Location
from bulle.build.syntax import refusal

TEXT, TEXTS, SWITCH = "text", "texts", "switch"

_FILES = {"chown": TEXT, "chmod": TEXT, "link": SWITCH, "exclude": TEXTS}
FLAGS: dict[str, dict[str, str]] = {
    "ADD": {**_FILES, "checksum": TEXT, "keep-git-dir": SWITCH, "unpack": SWITCH},
    "COPY": {**_FILES, "from": TEXT, "parents": SWITCH},
    "FROM": {"platform": TEXT},
    "HEALTHCHECK": {"interval": TEXT, "timeout": TEXT, "start-period": TEXT, "start-interval": TEXT, "retries": TEXT},
    "RUN": {"mount": TEXTS, "network": TEXT, "security": TEXT, "device": TEXTS},
}


class Flags:
    """The flags of one instruction, checked against its table."""

    def __init__(self, keyword: str, flags: Iterable[str], location: Location) -> None:
        self._keyword, self._location = keyword, location
        self._known = FLAGS.get(keyword, {})
        self._texts: dict[str, list[str]] = {}
        for flag in flags:
            self._read(flag)

    def _read(self, flag: str) -> None:
        name, equals, value = flag[2:].partition("=")
        kind = self._known.get(name)
        if kind is None:
            raise refusal(self._location, f"{self._keyword} has no flag --{name}", self._instead(name))
        if kind != SWITCH and not equals:
            raise refusal(self._location, f"--{name} wants a value", f"write --{name}=value, without a space")
        if kind == SWITCH:
            value = value.lower() if equals else "true"
            if value not in ("true", "false"):
                raise refusal(self._location, f"--{name} is true or false, not {value!r}", f"write --{name} or --{name}=false")
        if name in self._texts and kind != TEXTS:
            raise refusal(self._location, f"--{name} stands there twice", "keep one of them")
        self._texts.setdefault(name, []).append(value)

    def _instead(self, name: str) -> str:
        if not self._known:
            json = ", a command that begins with -- is written as JSON" if self._keyword in ("CMD", "ENTRYPOINT", "SHELL") else ""
            return f"{self._keyword} takes no flags{json}"
        close = nearest(name, self._known)
        return f"did you mean --{close}?" if close else f"it has {', '.join(f'--{known}' for known in sorted(self._known))}"

    def text(self, name: str, default: str = "") -> str:
        """The value of a flag that may be given once."""
        return self._texts.get(name, [default])[0]

    def texts(self, name: str) -> tuple[str, ...]:
        """The values of a flag that may be repeated."""
        return tuple(self._texts.get(name, ()))

    def switch(self, name: str) -> bool | None:
        """Whether a switch is on; None where it was not given."""
        return self._texts[name][0] == "true" if name in self._texts else None


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that someone may have meant; empty where there is none."""
    import difflib  # only errors need it

    # A long word is nobody's slip of the pen, and the comparison takes its length squared.
    found = difflib.get_close_matches(word.lower(), {name.lower(): name for name in known}, 1, 0.6) if len(word) <= 40 else []
    return next((name for name in known if found and name.lower() == found[0]), "")
