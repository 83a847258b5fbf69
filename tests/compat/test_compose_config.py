"""``compose config`` answers as docker compose's does: a corpus over all keys, several files, and small accidents."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulle.compose import rendering
from bulle.compose.loading import LoadRequest, load, load_tree
from bulle.errors import BulleError
from bulle_testing import compose_corpus
from bulle_testing.compose_corpus import ENVIRONMENT, Case
from bulle_testing.compose_peer import DockerCompose, docker_compose

__all__ = ["docker_compose"]

_CASES = compose_corpus.cases()
_PARTS = 8


def answer(case: Case, place: Path) -> str:
    """What we say: ``refused``, or the digest of the document."""
    flags = case.flags
    request = LoadRequest(
        project_directory=str(place), environment=ENVIRONMENT, profiles=tuple(flag.partition("=")[2] for flag in flags if flag.startswith("--profile=")),
        services=tuple(flag for flag in flags if not flag.startswith("-")), no_interpolate="--no-interpolate" in flags,
        no_normalize="--no-normalize" in flags, no_path_resolution="--no-path-resolution" in flags, no_consistency="--no-consistency" in flags,
    )  # fmt: skip
    try:
        if request.no_interpolate:
            name, tree = load_tree(request)
            text = rendering.as_yaml(rendering.ordered({**tree, "name": name}))
        else:
            document = rendering.shown(rendering.selected(load(request), request.services))
            text = (rendering.as_json if "--format=json" in flags else rendering.as_yaml)(document).replace("$", "$$")
    except BulleError:
        return "refused"
    return compose_corpus.digest(compose_corpus.understood(text, flags, place))


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides have the same home."""
    monkeypatch.setenv("HOME", ENVIRONMENT["HOME"])


@pytest.mark.parametrize("part", range(_PARTS))
def test_answers_are_docker_composes(part: int, tmp_path: Path) -> None:
    kept = compose_corpus.kept_answers()
    wrong = []
    for number, case in enumerate(_CASES[part::_PARTS]):
        (tmp_path / str(number)).mkdir()
        place = case.write(tmp_path / str(number))
        if (found := answer(case, place)) != kept.get(case.key):
            wrong.append(f"{case.name} {' '.join(case.flags)}: {found}, docker compose: {kept.get(case.key, 'was never asked')}")
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.debian_mirror
def test_kept_answers_are_docker_composes(docker_compose: DockerCompose, tmp_path: Path) -> None:
    kept = compose_corpus.kept_answers()
    for number, case in enumerate(_CASES[::100]):
        (tmp_path / str(number)).mkdir()
        place = case.write(tmp_path / str(number))
        code, text = docker_compose.config(case.words, case.files, cwd=place, environment=ENVIRONMENT)
        found = compose_corpus.digest(compose_corpus.understood(text, case.flags, place)) if code == 0 else "refused"
        assert found == kept[case.key], case


def test_corpus_is_large() -> None:
    answers = list(compose_corpus.kept_answers().values())
    assert len(answers) > 2000
    assert answers.count("refused") > 500
    assert len(set(answers)) > 700
