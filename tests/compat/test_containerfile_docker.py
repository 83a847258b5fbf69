"""Variables, quotes and escapes in a Containerfile become what Docker makes of them: labels built by dockerd, and expanded here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bulle.build import instructions as known
from bulle.build.expansion import expanded
from bulle.build.parsing import parse
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
    while len(texts) < 400:
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
