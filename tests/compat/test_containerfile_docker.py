"""Variables, quotes and escapes in a Containerfile become what Docker makes of them: labels built by dockerd, and expanded here."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

import pytest

from bulle.build import instructions as known
from bulle.build.expansion import expanded
from bulle.build.parsing import parse
from bulle.build.patterns import IgnoreRules
from bulle.errors import BuildSyntaxError
from bulle_testing.peers import Docker

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc")]

HEAD = 'FROM scratch\nENV a=1 empty="" words="b c" quoted="x\\"y" back="p\\\\q" dollar=\'$a\'\n'
# Older versions of Docker know fewer forms of ${…} than we do: the later ones are in tests/unit/test_containerfile_expansion.py.
PIECES = (
    *("$a", "${a}", "$empty", "$words", "$unset", "$quoted", "${back}", "$dollar", "${unset:-d}", "${empty:-d e}"),
    *("${a:+s}", "${a:-t}", "${empty:+u}"),
    *("${unset:-$a}", "${unset:-'q}'}", '${unset:-"r}"}', "${unset:-\\}}", "${unset:-${words}}", "'", '"', "'", '"'),
    *("\\", "\\\\", "\\$", "\\'", '\\"'),
    *(" ", "x", "y/z", "$", "$$", "$1", "$-", "<<", "<", "=", "é", "{", "}", "#", "$/", "'$a'", '"$a"', '"\\$a"', "'\\'"),
)


def files() -> list[str]:
    """Texts of labels that we can expand; the same ones in every run."""
    chance = random.Random(20)
    texts: list[str] = []
    while len(texts) < 160:
        text = "x" + "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 6))) + "x"
        try:
            ours(f"{HEAD}LABEL l {text}")
        except BuildSyntaxError:
            continue
        texts.append(text)
    return texts


def ours(text: str) -> dict[str, str]:
    """The labels of a file, by us."""
    variables: dict[str, str] = {}
    labels: dict[str, str] = {}
    for instruction in parse(text).instructions:
        found = expanded(instruction, variables)
        if isinstance(found, known.Env):
            variables |= dict(found.pairs)
        elif isinstance(found, known.Label):
            labels |= dict(found.pairs)
    return labels


def test_labels_are_those_of_docker(dockerd: Docker, tmp_path: Path) -> None:
    text = HEAD + "".join(f"LABEL l{number} {value}\n" for number, value in enumerate(files()))
    # One instruction is one layer of history here, and an image has 127 at most; so the labels come in pieces.
    lines = text.splitlines()[2:]
    for begin in range(0, len(lines), 100):
        part = HEAD + "\n".join(lines[begin : begin + 100]) + "\n"
        (tmp_path / "Dockerfile").write_text(part)
        dockerd("build", "--tag", "labels", str(tmp_path))
        theirs = json.loads(dockerd("image", "inspect", "--format", "{{json .Config.Labels}}", "labels").stdout)
        assert ours(part) == theirs


RULES = (
    *("a", "b/", "/c", "*", "*.x", "**/*.x", "a/*", "a/**", "**/c", "b/**/c", "?", "[ab]", "[^a]", "a/b", "**"),
    *("**b", "a**", "./c", "a//b", "a/../c", "*/*/c", "b/*/*", "a/[b-c]", "*b*", "c.x", "*/c.x", "# c", " a ", "a\\/b"),
    *("b\\*", "a", "b", "**/b/*", "*/b/**"),
)
# The walk of this docker command, unlike that of BuildKit, does not enter a directory for the sake of an exception with wildcards.
EXCEPTIONS = ("a", "/b/", "c", "a/b", "b/c/", "a/b/c", "c/a/c.x", "./a//b/../c", "c.x", "nothing")
NAMES = ("a", "b", "c", "c.x", "ab")


def tree(directory: Path) -> set[str]:
    """Files of every name, three levels deep."""
    paths = {f"{one}/{two}/{three}" for one in "abc" for two in NAMES[:3] for three in NAMES}
    paths |= {f"{one}/{two}" for one in "abc" for two in ("c.x", "ab")} | {"c.x", "ab", "x", "# c", "b*"}
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).touch()
    return paths


def test_contexts_are_those_of_docker(dockerd: Docker, tmp_path: Path) -> None:
    chance = random.Random(7)
    context = tmp_path / "context"
    paths = tree(context)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\nLABEL a=b\n")
    for number in range(40):
        lines = [chance.choice(RULES) if chance.random() < 0.6 else "! " + chance.choice(EXCEPTIONS) for _ in range(chance.randint(1, 6))]
        text = "\n".join(lines if number else ["a", "!a/b", "a"]) + "\n"
        (context / ".dockerignore").write_text(text)
        rules = IgnoreRules.parse(text)
        kept = {path for path in paths if not rules.excludes(path)}
        walked = {path for path in paths if not any(rules.prunes(path[:end]) for end, letter in enumerate(path) if letter == "/")}
        assert kept <= walked, text
        if not kept:
            continue  # Docker refuses to copy nothing
        dockerd("build", "--quiet", "--no-cache", "--tag", "context", "--file", str(tmp_path / "Dockerfile"), str(context))
        archive = tmp_path / "image.tar"
        dockerd("save", "--output", str(archive), "context")
        assert files_of(archive) - {".dockerignore"} == kept, text


def files_of(archive: Path) -> set[str]:
    """The regular files of an image of one layer."""
    found: set[str] = set()
    with tarfile.open(archive) as image:
        for member in image.getmembers():
            if member.name.endswith("layer.tar"):
                with tarfile.open(fileobj=image.extractfile(member)) as layer:
                    found |= {file.name for file in layer.getmembers() if file.isfile()}
    return found
