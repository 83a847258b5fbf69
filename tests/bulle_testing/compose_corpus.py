"""Compose files to compare with docker compose: where they are, what is made of them by chance, and what docker compose answered to each.

The answers are kept as digests in ``answers.txt``, so that thousands of cases take seconds and a machine without the peer holds to them as well; tests ask
the peer itself for a sample. ``python -m bulle_testing.compose_corpus`` (in ``tests/``) asks for all that is not kept yet.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulle.compose.document import read_documents

FOLDER = Path(__file__).resolve().parents[1] / "compat/compose_corpus"
ANSWERS = FOLDER / "answers.txt"
ENVIRONMENT = {"HOME": "/root", "PATH": "/usr/bin:/bin", "SET": "value", "EMPTY": "", "NUM": "3"}
_BEFORE_VERB = ("--profile",)

_FRAME = """services:
  a:
    image: x
    LINE
  b: {image: y, build: .}
networks: {n: , m: {driver: d}}
volumes: {v: }
configs: {c: {file: ./c}}
secrets: {s: {file: ./s}}
"""
_ANY_VALUE = (
    "", "true", "1", "-1", "1.5", "text", '"7"', "[]", "{}", "[a]", "[a, a]", "{a: b}", "{a: }", "[{a: b}]", "10s", "08", "[null]", '"true"', "./rel",
)  # fmt: skip
# docker compose crashes on it, or ignores a size without a word: docs/differences.md
_DIFFERENT = frozenset({
    "pid: ", *(f"{key}: {value}" for key in ("mem_limit", "memswap_limit", "mem_reservation", "shm_size") for value in ("1.5", "08")), "mem_swappiness: 08",
})  # fmt: skip
_NEWER = frozenset({"provider", "models"})


@dataclass(frozen=True)
class Case:
    """Files of a directory called ``proj``, and the flags of ``config``."""

    name: str
    files: dict[str, str]
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What its answer is kept by."""
        return hashlib.sha256(json.dumps([self.flags, sorted(self.files.items())]).encode()).hexdigest()[:16]

    @property
    def words(self) -> list[str]:
        """The words of a command line behind ``compose``."""
        before = [flag for flag in self.flags if flag.startswith(_BEFORE_VERB)]
        return [*before, "config", *(flag for flag in self.flags if flag not in before)]

    def write(self, directory: Path) -> Path:
        """Make its files below this directory; returns the one that the command is run in."""
        place = directory / "proj"
        place.mkdir()
        for name, text in self.files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        return place


def cases() -> list[Case]:
    """All of them, each once."""
    found = {case.key: case for case in (*_values(), *_apps(), *_everything(), *_mutated())}
    return list(found.values())


def _values() -> Iterator[Case]:
    for line in (FOLDER / "values.txt").read_text().splitlines():
        if line and not line.startswith("# "):
            text = _FRAME.replace("image: x\n    LINE", line) if line.startswith("image:") else _FRAME.replace("LINE", line)
            yield Case(line, {"compose.yaml": text, "some.env": "A=1\n", "labels": "l=1\n"})


def _apps() -> Iterator[Case]:
    for block in (FOLDER / "apps.txt").read_text().split("\n=== ")[1:]:
        head, _, rest = block.partition("\n")
        files = {}
        for part in f"\n{rest}".split("\n--- ")[1:]:
            name, _, text = part.partition("\n")
            files[name] = text if not text or text.endswith("\n") else f"{text}\n"
        title, _, flags = head.partition(" | ")
        yield Case(title, files, tuple(flags.split()))
        if not flags:
            yield Case(f"{title} (JSON)", files, ("--format=json",))


def _everything() -> Iterator[Case]:
    """Every key of a service with values of every form."""
    from bulle.compose import keys

    for key in [*keys.SERVICE, "bogus", "net"]:
        for value in _ANY_VALUE:
            line = f"{key}: {value}"
            if key not in _NEWER and line not in _DIFFERENT:
                text = f"services:\n  a:\n    {line}\n" if key == "image" else f"services:\n  a:\n    image: x\n    {line}\n"
                yield Case(line, {"compose.yaml": text})


def _mutated(count: int = 500) -> Iterator[Case]:
    """Small accidents to the apps of several services, by a seed."""
    chance = random.Random(7)
    whole = [case for case in _apps() if case.name in ("a long app", "override: every kind of key", "network options", "configs of each kind")]
    for number in range(count):
        case = chance.choice(whole)
        name = chance.choice([name for name in case.files if name.endswith("yaml")])
        tree = next(read_documents(_untagged(case.files[name]).encode(), name)).tree
        for _ in range(chance.choice((1, 1, 2))):
            _damage(tree, chance)
        yield Case(f"{case.name} {number}", {**case.files, name: json.dumps(tree, indent=1) + "\n"})


def _untagged(text: str) -> str:
    return text.replace("!reset ", "").replace("!override ", "")


_REPLACEMENTS: tuple[Any, ...] = (None, True, 0, 3, -1, "", "text", "1m", "10s", [], {}, ["a"], {"a": "b"}, [None], "${SET}", "./x", "80:80", ["a", "a"])


def _damage(tree: Any, chance: random.Random) -> None:
    nodes: list[Any] = []

    def collect(node: Any) -> None:
        if isinstance(node, (dict, list)) and node:
            nodes.append(node)
            for one in node.values() if isinstance(node, dict) else node:
                collect(one)

    collect(tree)
    node = chance.choice(nodes)
    key: Any = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
    match chance.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[chance.choice((f"{key}s", f"x-{key}", "driver", "image", "a"))] = node.pop(key)
        case 2:
            node[key] = [node[key]]
        case 3 if isinstance(node, list):
            node.append(node[key])
        case _:
            node[key] = chance.choice(_REPLACEMENTS)


def digest(answer: Any) -> str:
    """What tells one answer from another; how numbers are written is no part of it."""
    return hashlib.sha256(json.dumps(answer, sort_keys=True, default=str).encode()).hexdigest()[:12]


def understood(text: str, flags: tuple[str, ...], place: Path) -> Any:
    """The output of ``config`` as values, the same in every directory."""
    text = text.replace(str(place.parent), "/@here@")
    if "--format=json" in flags:
        return json.loads(text)
    return next(read_documents(text.encode(), "the answer")).tree


def kept_answers() -> dict[str, str]:
    """The answers by the keys of their cases: ``refused``, or a digest."""
    return dict(line.split() for line in ANSWERS.read_text().splitlines()) if ANSWERS.exists() else {}


def main() -> None:
    """Ask docker compose for what is not kept yet, and keep it."""
    import tempfile

    from bulle_testing import places
    from bulle_testing.compose_peer import DockerCompose

    peer = DockerCompose(places.cache_directory() / "docker-compose-trixie")
    kept, found = kept_answers(), {}
    for case in cases():
        if case.key in kept:
            found[case.key] = kept[case.key]
            continue
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
            place = case.write(Path(directory))
            done = peer.run(*case.words, cwd=place, environment=ENVIRONMENT)
            found[case.key] = digest(understood(done.stdout, case.flags, place)) if done.returncode == 0 else "refused"
    ANSWERS.write_text("".join(f"{key} {answer}\n" for key, answer in sorted(found.items())))


if __name__ == "__main__":
    main()
