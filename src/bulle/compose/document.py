"""The text of a Compose file as a tree of mappings, lists and scalars that knows where each key was written.

:mod:`bulle.compose.joining` calls it for every file. YAML is understood as go-yaml does, by which Compose is defined: ``yes`` and ``22:22`` are
strings, ``0777`` and ``0o777`` are octal, a key may stand once, aliases and ``<<`` are followed. It interpolates and checks nothing. What a hostile
file could do by nesting or by aliases of aliases is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from bulle.compose.model import Place
from bulle.errors import InvalidInput

MOST_BYTES = 16 << 20
MOST_NODES = 500_000
"""Counting what aliases stand for each time."""
MOST_DEPTH = 100

RESET, OVERRIDE = "!reset", "!override"
_STRING, _NULL, _BOOL, _INT, _FLOAT, _TIME, _BINARY, _MERGE = (f"tag:yaml.org,2002:{name}" for name in (
    "str", "null", "bool", "int", "float", "timestamp", "binary", "merge"))  # fmt: skip
_RESOLVED = frozenset({"", "!", _NULL, _BOOL, _INT, _FLOAT, _TIME})
"""Tags of scalars whose text means more than itself; with any other it is a string."""
_CONSTANTS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}  # fmt: skip
_TYPICAL = re.compile(r"[-+.0-9]")
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_FLOATING = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DATE = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:([Tt ])(\d\d?):(\d\d?):(\d\d?)(?:[.,](\d+))?(Z|[-+]\d\d:\d\d)?)?", re.ASCII
)


class InvalidFile(InvalidInput):
    """A file of an app says something that cannot be right; the brief begins with file and line."""


def refusal(place: Place, what: str, why: str = "", resolution: str = "") -> InvalidFile:
    """The error for something wrong at a place of a file."""
    return InvalidFile(f"{place}: {what}", why, resolution)


class Tree(dict[str, Any]):
    """A mapping of a file, with the place of each of its keys."""

    __slots__ = ("places",)

    def __init__(self, values: dict[str, Any] | None = None, places: dict[str, Place] | None = None) -> None:
        super().__init__(values or {})
        self.places: dict[str, Place] = places if places is not None else {}

    def take(self, key: str, value: Any, origin: Any) -> None:
        """Set a key to what another mapping said, with the place where that said it."""
        self[key] = value
        if isinstance(origin, Tree) and (place := origin.places.get(key)) is not None:
            self.places[key] = place


class Timestamp(str):
    """A plain scalar that looks like a time, in the words that a Go program shows it with."""


class Document:
    """One YAML document: its tree, and the paths that ``!reset`` and ``!override`` take away from what earlier files said."""

    __slots__ = ("resets", "tree")

    def __init__(self, tree: Any, resets: list[tuple[str, ...]]) -> None:
        self.tree = tree
        self.resets = resets


class _Node:
    __slots__ = ("children", "keys", "line", "tag", "value")

    def __init__(self, tag: str, line: int, value: str | None) -> None:
        self.tag = tag
        self.line = line
        self.value = value
        self.children: list[_Node] = []
        self.keys = False
        """Whether the children are keys and values by turns."""


def read_documents(content: bytes, file: str) -> Iterator[Document]:
    """The documents of a file; ``file`` is how messages name it. Raises InvalidFile."""
    if len(content) > MOST_BYTES:
        raise InvalidFile(f"{file} is too large", f"{len(content)} bytes", f"a Compose file has at most {MOST_BYTES >> 20} MB")
    for root in _Composer(content, file).documents():
        yield _Decoder(file).document(root)


class _Composer:
    """Events of the parser into nodes, an alias being the very node that it names."""

    def __init__(self, content: bytes, file: str) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.file = file
        try:
            self.parser = loader(content)
        except yaml.YAMLError as error:
            raise self._broken(error) from None

    def documents(self) -> Iterator[_Node]:
        """The root of each document."""
        try:
            event = self.parser.get_event()
            while not isinstance(event, yaml.StreamEndEvent):
                if isinstance(event, yaml.DocumentStartEvent):
                    yield self._document()
                event = self.parser.get_event()
        except yaml.YAMLError as error:
            raise self._broken(error) from None
        except UnicodeDecodeError:
            raise refusal(Place(self.file, 1), "not text", "it is not UTF-8") from None
        finally:
            self.parser.dispose()

    def _broken(self, error: yaml.YAMLError) -> InvalidFile:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        words = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
        return refusal(Place(self.file, mark.line + 1 if mark else 1), "not YAML", ", ".join(str(word) for word in words if word))

    def _document(self) -> _Node:
        anchors: dict[str, _Node] = {}
        top = _Node("", 0, None)
        open_nodes = [top]
        get_event = self.parser.get_event
        while True:
            event = get_event()
            kind = type(event)
            line = event.start_mark.line + 1
            if kind is yaml.ScalarEvent:
                node = _Node(event.tag or ("" if event.implicit[0] else _STRING), line, event.value)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                node = _Node(event.tag or "", line, None)
                node.keys = kind is yaml.MappingStartEvent
            elif kind is yaml.AliasEvent:
                if event.anchor not in anchors:
                    raise refusal(Place(self.file, line), f"unknown anchor *{event.anchor}")
                open_nodes[-1].children.append(anchors[event.anchor])
                continue
            elif kind is yaml.DocumentEndEvent:
                return top.children[0]
            else:
                open_nodes.pop()
                continue
            if event.anchor:
                anchors[event.anchor] = node
            open_nodes[-1].children.append(node)
            if node.value is None:
                open_nodes.append(node)
                if len(open_nodes) > MOST_DEPTH:
                    raise refusal(Place(self.file, line), "too deep", f"more than {MOST_DEPTH} levels")


class _Decoder:
    """Nodes into values; each use of an alias is a copy of its own."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.resets: list[tuple[str, ...]] = []
        self.nodes = 0

    def document(self, root: _Node) -> Document:
        value = self.value(root, (), 0)
        return Document(value, self.resets)

    def place(self, node: _Node) -> Place:
        return Place(self.file, node.line)

    def value(self, node: _Node, path: tuple[str, ...], depth: int) -> Any:
        """What a node stands for; below ``!override`` no further marks count."""
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise refusal(self.place(node), "too much", f"its aliases stand for more than {MOST_NODES} values")
        if depth > MOST_DEPTH:
            raise refusal(self.place(node), "endless", "an anchor contains itself, or aliases nest too deeply")
        if node.value is not None:
            return scalar(node.value, node.tag, self.place(node))
        if node.tag == OVERRIDE:
            self.resets.append(path)
        if not node.keys:
            numbered = [(one, (*path, str(number))) for number, one in enumerate(node.children)]
            return [self.value(one, below, depth + 1) for one, below in numbered if not self._reset(one, below)]
        return self._mapping(node, path, depth)

    def _reset(self, node: _Node, path: tuple[str, ...]) -> bool:
        if node.tag == RESET:
            self.resets.append(path)
        return node.tag == RESET

    def _mapping(self, node: _Node, path: tuple[str, ...], depth: int) -> Tree:
        tree = Tree()
        places = tree.places
        merged: list[_Node] = []
        children = node.children
        for index in range(0, len(children), 2):
            key, child = children[index], children[index + 1]
            name = key.value
            if name == "<<" and key.tag in ("", "!", _MERGE):
                merged.append(child)
                if len(merged) > 1:
                    raise refusal(self.place(key), "the key << stands twice")
                continue
            if name is None or type(scalar(name, key.tag, self.place(key))) is not str:
                raise refusal(self.place(key), f"the key {name if name is not None else 'of several values'} is not a string", "", "quote it")
            if name in places:
                raise refusal(self.place(key), f"the key {name} stands twice", f"first in line {places[name].line}")
            places[name] = Place(self.file, key.line)
            below = (*path, name)
            if child.tag == RESET:
                self.resets.append(below)
            else:
                tree[name] = self.value(child, below, depth + 1)
        for one in merged:
            self._merge(tree, one, path, depth)
        return tree

    def _merge(self, tree: Tree, node: _Node, path: tuple[str, ...], depth: int) -> None:
        sources = [node] if node.keys or node.value is not None else node.children
        for source in sources:
            if not source.keys:
                raise refusal(self.place(source), "<< needs a mapping, or a list of them")
            other = self.value(source, path, depth + 1)
            for key in other:
                if key not in tree:
                    tree.take(key, other[key], other)


def scalar(text: str, tag: str, place: Place) -> Any:
    """What a scalar stands for: a string, number, boolean, None or :class:`Timestamp`. Raises InvalidFile where its tag says another of these."""
    if tag == _STRING or (tag not in _RESOLVED and tag != _BINARY):
        return text
    value = _plain(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise refusal(place, f"{text} is no number that can be used", "", "quote it")
    if tag in ("", "!"):
        return value
    if tag == _BINARY:
        return _binary(text, place)
    kind = _tag_of(value)
    if tag == _FLOAT and kind == _INT:
        return float(value)
    if tag != kind:
        raise refusal(place, f"{text!r} is not a {tag.removeprefix('tag:yaml.org,2002:')}")
    return value


def _plain(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not _TYPICAL.match(text):
        return text
    if text[0] != ".":
        if (date := _DATE.fullmatch(text)) is not None:
            return _timestamp(text, date)
        digits = text.replace("_", "")
        if (whole := _INTEGER.fullmatch(digits)) is not None:
            sign, hexadecimal, binary, octal, decimal = whole.groups()
            for base, found in ((10, decimal), (16, hexadecimal), (8, octal), (2, binary)):
                if found is not None:
                    number = int(sign + found, base)
                    return number if -(1 << 63) <= number < 1 << 64 else float(number)
        return _float(digits, text)
    return _float(text, text)


def _float(digits: str, text: str) -> Any:
    number = float(digits) if _FLOATING.fullmatch(digits) else math.inf
    return number if math.isfinite(number) else text


def resolves_to_string(text: str) -> bool:
    """Whether a plain scalar means itself."""
    return type(_plain(text)) is str


def _timestamp(text: str, date: re.Match[str]) -> Any:
    import datetime

    year, month, day, between, hour, minute, second, fraction, zone = date.groups()
    if between is not None and (between == " ") != (zone is None):
        return text
    try:
        when = datetime.datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    except ValueError:
        return text
    fraction = (fraction or "").rstrip("0")
    shown = f"{when:%Y-%m-%d %H:%M:%S}" + (f".{fraction}" if fraction else "")
    if zone in (None, "Z"):
        return Timestamp(f"{shown} +0000 UTC")
    compact = zone.replace(":", "")
    return Timestamp(f"{shown} {compact} {compact}")


def _tag_of(value: Any) -> str:
    if value is None:
        return _NULL
    return {bool: _BOOL, int: _INT, float: _FLOAT, Timestamp: _TIME}.get(type(value), _STRING)


def _binary(text: str, place: Place) -> str:
    import base64
    import binascii

    try:
        return base64.b64decode("".join(text.split()), validate=True).decode("utf-8", "surrogateescape")
    except binascii.Error:
        raise refusal(place, "not base64") from None
