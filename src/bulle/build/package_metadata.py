"""The files in which packages describe themselves: paragraphs of dpkg and apk, Python's METADATA, ``package.json``, ``/etc/os-release``.

Every reader takes bytes of unknown origin and answers with what it could make out; none of them raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

_KEY = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):[ \t]*(.*)")
_PAIR = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
_CLASSIFIER = "License :: OSI Approved :: "
# Names of licences in Python's classifiers that are not an identifier with a word after it.
_CLASSIFIED = {
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}


@dataclass(frozen=True, slots=True)
class Described:
    """What a package says of itself."""

    name: str
    version: str
    license: str = ""
    author: str = ""
    homepage: str = ""


def _lines(content: bytes) -> Iterator[str]:
    # Only these end a line in such files; str.splitlines() knows more.
    yield from content.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")


def fields_of(content: bytes) -> Iterator[dict[str, str]]:
    """Paragraphs of ``Key: value`` with empty lines between them; of a value over several lines only the first."""
    fields: dict[str, str] = {}
    for line in _lines(content):
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif match := _KEY.match(line):
            fields.setdefault(match[1], match[2].strip())
    if fields:
        yield fields


def os_release(content: bytes) -> dict[str, str]:
    """The variables of an os-release file, without their quotes."""
    found = {}
    for line in _lines(content):
        if match := _PAIR.fullmatch(line.strip()):
            value = match[2]
            found[match[1]] = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return found


def dpkg_license(content: bytes) -> str:
    """The licences that a machine readable copyright file names, joined with AND; empty for the free form."""
    if not content.lstrip().startswith(b"Format"):
        return ""
    names: dict[str, str] = {}
    for fields in fields_of(content):
        # A paragraph of a licence alone is its text, which another paragraph refers to.
        if "Files" not in fields and "Format" not in fields:
            continue
        text = fields.get("License", "").replace(" or ", " OR ").replace(" and ", " AND ")
        for name in [text] if " OR " in text else text.split(" AND "):
            if name:
                names.setdefault(name.lower(), name)
    return " AND ".join(f"({name})" if " OR " in name and len(names) > 1 else name for _, name in sorted(names.items()))


def python_package(content: bytes) -> Described | None:
    """A METADATA or PKG-INFO file; its description, after the first empty line, is not looked at."""
    fields: dict[str, str] = {}
    classified: list[str] = []
    for line in _lines(content):
        if not line.strip():
            break
        match = _KEY.match(line)
        if match is None:
            continue
        key, value = match[1].lower(), match[2].strip()
        if key == "classifier" and value.startswith(_CLASSIFIER):
            classified.append(value.removeprefix(_CLASSIFIER))
        fields.setdefault(key, value)
    if not fields.get("name") or not fields.get("version"):
        return None
    license_text = fields.get("license-expression") or fields.get("license", "")
    # Some have the whole text of the licence in that field.
    if not license_text or len(license_text) > 100 or license_text == "UNKNOWN":
        license_text = " AND ".join(sorted(_CLASSIFIED.get(name, name) for name in classified))
    author = fields.get("author") or fields.get("author-email", "")
    return Described(fields["name"], fields["version"], license_text, author, fields.get("home-page", ""))


def node_package(content: bytes) -> Described | None:
    """A ``package.json``. Names and versions that npm would not take are none."""
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    name, version = document.get("name"), document.get("version")
    if not (isinstance(name, str) and isinstance(version, str) and name and version):
        return None
    licenses = document.get("license") or document.get("licenses")
    listed = licenses if isinstance(licenses, list) else [licenses]
    texts = [text for text in (_text(each, "type") for each in listed) if text]
    author, homepage = _text(document.get("author"), "name"), document.get("homepage")
    return Described(name, version, " OR ".join(texts), author, homepage if isinstance(homepage, str) else "")


def _text(value: object, key: str) -> str:
    """A text, or the one that an object has under a name; both ways are in use."""
    found = value.get(key) if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""
