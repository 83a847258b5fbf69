"""What packages say of their licence, as expressions of SPDX where that is certain.

Package databases carry free text (``GPLv2+``, ``BSD``, ``see LICENSE``). Only a text that is an expression over identifiers known here counts as one;
everything else stays the text that it is. The table has the identifiers that distributions and registries of packages use most.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_IDENTIFIERS = """
    0BSD AFL-2.1 AFL-3.0 AGPL-1.0-only AGPL-3.0-only AGPL-3.0-or-later Apache-1.0 Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-1.0-Perl Artistic-2.0
    BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSD-4-Clause-UC BSL-1.0 BlueOak-1.0.0 CC-BY-3.0
    CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-PDDC CC0-1.0 CDDL-1.0 CDDL-1.1 CNRI-Python CPL-1.0 ClArtistic EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 FSFAP
    FSFUL FSFULLR FTL GFDL-1.1-only GFDL-1.1-or-later GFDL-1.2-only GFDL-1.2-or-later GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-only GPL-1.0-or-later
    GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later HPND HPND-sell-variant ICU IJG IPL-1.0 ISC JSON LGPL-2.0-only LGPL-2.0-or-later
    LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later LPPL-1.3c Libpng MIT MIT-0 MIT-CMU MIT-Modern-Variant MPL-1.0 MPL-1.1 MPL-2.0
    MPL-2.0-no-copyleft-exception MS-PL MulanPSL-2.0 NCSA NTP NetCDF ODbL-1.0 OFL-1.0 OFL-1.1 OLDAP-2.8 OpenSSL PHP-3.0 PHP-3.01 PSF-2.0 PostgreSQL
    Python-2.0 Python-2.0.1 QPL-1.0 Ruby SGI-B-2.0 SMLNJ SSH-OpenSSH SSH-short SSPL-1.0 Sleepycat TCL TCP-wrappers Unicode-3.0 Unicode-DFS-2016
    Unlicense Vim W3C WTFPL X11 XFree86-1.1 ZPL-2.1 Zlib Zend-2.0 curl libpng-2.0 libtiff zlib-acknowledgement
"""
_EXCEPTIONS = """
    Autoconf-exception-2.0 Autoconf-exception-3.0 Bison-exception-2.2 Classpath-exception-2.0 Font-exception-2.0 GCC-exception-2.0 GCC-exception-3.1
    GNU-compiler-exception LLVM-exception Libtool-exception Linux-syscall-note OCaml-LGPL-linking-exception OpenJDK-assembly-exception-1.0
    Qt-GPL-exception-1.0 Swift-exception u-boot-exception-2.0
"""
IDENTIFIERS = frozenset(_IDENTIFIERS.split())
EXCEPTIONS = frozenset(_EXCEPTIONS.split())
_TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9.+-]+)")
_LONGEST = 500
_DEEPEST = 20
# What older versions of SPDX, Debian and most package databases call these.
_OLDER = {
    **{f"{name}-{version[0]}": f"{name}-{version}-only" for name in ("GPL", "LGPL", "AGPL") for version in ("1.0", "2.0", "3.0")},
    **{f"{name}-{version[0]}+": f"{name}-{version}-or-later" for name in ("GPL", "LGPL", "AGPL") for version in ("1.0", "2.0", "3.0")},
    "Expat": "MIT",
    "Apache-2": "Apache-2.0",
    "CC0": "CC0-1.0",
    **{f"{name}-{version}": f"{name}-{version}-only" for name in ("GPL", "LGPL") for version in ("1.0", "2.0", "2.1", "3.0")},
    **{f"{name}-{version}+": f"{name}-{version}-or-later" for name in ("GPL", "LGPL") for version in ("1.0", "2.0", "2.1", "3.0")},
    "AGPL-3.0": "AGPL-3.0-only",
    "AGPL-3.0+": "AGPL-3.0-or-later",
}
_BY_LOWER = {name.lower(): name for name in IDENTIFIERS} | {name.lower(): now for name, now in _OLDER.items() if now in IDENTIFIERS}
_EXCEPTIONS_BY_LOWER = {name.lower(): name for name in EXCEPTIONS}


def expression(text: str) -> str:
    """The expression of SPDX that a text is, with identifiers in their own case; empty where it is none, or has identifiers not known here."""
    if len(text) > _LONGEST:
        return ""
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            return ""
        tokens.append(match[1])
        position = match.end()
    reader = _Reader(tokens)
    found = reader.alternatives(0)
    return found if found and reader.at_end() else ""


class _Reader:
    """An expression, read from its tokens: AND binds closer than OR; empty stands for a mistake."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._position = 0

    def at_end(self) -> bool:
        return self._position >= len(self._tokens)

    def _take(self, word: str) -> bool:
        if self.at_end() or self._tokens[self._position].upper() != word:
            return False
        self._position += 1
        return True

    def alternatives(self, depth: int) -> str:
        return self._row("OR", lambda: self._row("AND", lambda: self._single(depth)))

    def _row(self, word: str, read: Callable[[], str]) -> str:
        parts = [read()]
        while self._take(word):
            parts.append(read())
        return f" {word} ".join(parts) if all(parts) else ""

    def _single(self, depth: int) -> str:
        if self._take("("):
            inner = self.alternatives(depth + 1) if depth < _DEEPEST else ""
            return f"({inner})" if inner and self._take(")") else ""
        if self.at_end():
            return ""
        name = _BY_LOWER.get(self._tokens[self._position].lower(), "")
        self._position += 1
        if not name or not self._take("WITH"):
            return name
        exception = "" if self.at_end() else _EXCEPTIONS_BY_LOWER.get(self._tokens[self._position].lower(), "")
        self._position += 1
        return f"{name} WITH {exception}" if exception else ""
