"""Names for containers that were given none: a quality and a scientist or engineer of computing, as people expect from Docker."""

from __future__ import annotations

import re
import secrets

from bulle.errors import InvalidInput

VALID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")

_QUALITIES = (
    "agile", "airy", "amber", "bold", "brave", "bright", "brisk", "calm", "candid", "clear", "clever", "cosy", "crisp", "curious", "dapper", "deft",
    "eager", "earnest", "elegant", "fair", "fluent", "frank", "free", "fresh", "gentle", "glad", "golden", "graceful", "happy", "hardy", "honest",
    "humble", "jolly", "keen", "kind", "light", "lively", "lucid", "lucky", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "plucky",
    "polite", "proud", "quick", "quiet", "ready", "round", "serene", "sharp", "shiny", "silent", "sincere", "smooth", "sober", "solid", "steady",
    "subtle", "sunny", "swift", "tidy", "tranquil", "upbeat", "vivid", "warm", "wise", "witty", "zesty",
)  # fmt: skip
_PEOPLE = (
    "allen", "babbage", "backus", "bartik", "boole", "borg", "cerf", "chomsky", "church", "codd", "conway", "cray", "dijkstra", "eckert", "engelbart",
    "estrin", "feinler", "floyd", "goldberg", "gray", "hamilton", "hamming", "hoare", "holberton", "hopper", "iverson", "jennings", "johnson", "kay",
    "kernighan", "kleene", "knuth", "lamarr", "lamport", "liskov", "lovelace", "mccarthy", "meitner", "milner", "minsky", "moore", "naur", "noether",
    "nygaard", "pascal", "perlman", "pike", "postel", "ritchie", "rivest", "sammet", "shannon", "sutherland", "tarjan", "thompson", "torvalds",
    "turing", "ullman", "valiant", "wiener", "wilkes", "wing", "wirth", "yao", "zuse",
)  # fmt: skip


def check(name: str) -> None:
    """Raises InvalidInput for what cannot be a container's name."""
    if not VALID.fullmatch(name):
        raise InvalidInput(f"invalid container name {name!r}", "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", "choose another")


def random_name() -> str:
    """Such as ``serene_hopper``; whether it is free is for the database to say."""
    return f"{secrets.choice(_QUALITIES)}_{secrets.choice(_PEOPLE)}"
