"""Apps as Kubernetes documents: a corpus of Compose files whose comments say what becomes of them, held to Kubernetes' own strict schemas.

``# gives: KIND NAME: PATH = VALUE`` is a value in a document (a ``*`` in NAME stands for a hash), ``# lacks:`` one that is not there, ``# noted:``
and ``# refused:`` are the keys that are, all of them; ``# order:`` says which document stands before which, ``# newest`` that older versions lack
something.
"""

from __future__ import annotations

import fnmatch
import functools
from pathlib import Path
from typing import Any, get_type_hints

import kubernetes_validate
import msgspec
import pytest
import yaml
from kubernetes_validate import utils

from bulle.compose.loading import LoadRequest, load
from bulle.compose.model import FileObject, Network, Project, Service, Volume
from bulle.compose.service_parts import Healthcheck, Nanoseconds
from bulle.kube import keys
from bulle.kube.manifests import Manifests, manifests
from bulle.kube.report import NotMapped
from bulle.kube.writing import write_yaml
from bulle_testing import places

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.yaml"))
EXAMPLES = sorted((places.SOURCE / "examples").glob("*/compose.yaml"))
OLDEST, NEWEST = "1.25", "1.37"


def project(path: Path) -> Project:
    """A Compose file as the command reads it."""
    return load(LoadRequest(files=(str(path),), environment={}))


def said(path: Path, word: str) -> list[str]:
    """What a file's comments say of itself after a word."""
    start = f"# {word}: "
    return [line.removeprefix(start) for line in path.read_text().splitlines() if line.startswith(start)]


@functools.cache
def found(path: Path) -> tuple[Manifests, set[str]]:
    """What becomes of a file, and which keys are refused; then the documents are none."""
    read = project(path)
    try:
        return manifests(read), set()
    except NotMapped as error:
        for one in error.refusals:
            assert one.place.file == str(path) and one.place.line <= len(path.read_text().splitlines()) and one.text
        # What is noted beside a refusal is in the strict reading.
        with pytest.raises(NotMapped) as strict:
            manifests(read, strict=True)
        return Manifests((), tuple(one for one in strict.value.refusals if one not in error.refusals)), {one.key for one in error.refusals}


def value(path: Path, where: str) -> Any:
    """What stands in a document, ``KIND NAME: PATH``; None where there is nothing."""
    document, _, steps = where.partition(": ")
    kind, name = document.split(" ")
    matching = [one for one in found(path)[0].documents if one["kind"] == kind and fnmatch.fnmatchcase(one["metadata"]["name"], name)]
    current: Any = matching[0] if matching else None
    for step in steps.split():
        if isinstance(current, list):
            current = current[int(step)]
        elif isinstance(current, dict):
            current = current.get(step)
    return current


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_each_file_becomes_what_it_says(path: Path) -> None:
    result, refused = found(path)
    assert refused == set(said(path, "refused"))
    assert {note.key for note in result.notes} == set(said(path, "noted"))
    for note in result.notes:
        assert note.place.file == str(path) and note.text
    for line in said(path, "gives"):
        where, _, expected = line.partition(" = ")
        assert value(path, where) == yaml.safe_load(expected), where
    for where in said(path, "lacks"):
        assert value(path, where) is None, where
    names = [f"{one['kind']} {one['metadata']['name']}" for one in result.documents]
    for line in said(path, "order"):
        places_ = [names.index(name) for name in line.split(", ")]
        assert places_ == sorted(places_)


@pytest.fixture(scope="module")
def schemas() -> Any:
    """Each file of schemas is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


@pytest.mark.parametrize("path", [*CORPUS, *EXAMPLES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_schemas_of_kubernetes_take_every_document(path: Path, schemas: None) -> None:
    newest = "# newest" in path.read_text().splitlines()
    text = write_yaml(found(path)[0].documents)
    documents = list(yaml.safe_load_all(text))
    assert documents == list(found(path)[0].documents)
    for document in documents:
        name = document["metadata"]["name"]
        assert len(name) <= 63 and name == name.lower() and "_" not in name
        for version in (NEWEST,) if newest else (OLDEST, NEWEST):
            assert kubernetes_validate.validate(document, version, strict=True) == version
    if newest:
        with pytest.raises(kubernetes_validate.ValidationError):
            for document in documents:
                kubernetes_validate.validate(document, OLDEST, strict=True)


def test_the_same_file_gives_the_same_text(tmp_path: Path) -> None:
    for path in CORPUS:
        if documents := found(path)[0].documents:
            assert write_yaml(manifests(project(path)).documents) == write_yaml(documents), path


def test_another_content_is_another_name(tmp_path: Path) -> None:
    def names(word: str) -> list[str]:
        (tmp_path / "compose.yaml").write_text(f"services: {{a: {{image: a, configs: [c]}}, b: {{image: b, restart: 'no', command: {word}}}}}\n"
            f"configs: {{c: {{content: {word}}}}}\n")  # fmt: skip
        return [one["metadata"]["name"] for one in manifests(project(tmp_path / "compose.yaml")).documents if one["kind"] in ("ConfigMap", "Job")]

    first, second = names("one"), names("two")
    assert len(first) == 2 and not set(first) & set(second)
    assert names("one") == first


def test_the_health_check_of_an_image_is_taken(tmp_path: Path) -> None:
    services = "a: {image: known, healthcheck: {retries: 7}}, b: {image: known, healthcheck: {disable: true}}"
    (tmp_path / "compose.yaml").write_text(f"services: {{{services}}}")
    check = Healthcheck(test=("CMD", "ready"), interval=Nanoseconds(10**9))
    documents = manifests(project(tmp_path / "compose.yaml"), lambda image: check if image == "known" else None).documents
    containers = {one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0] for one in documents if one["kind"] == "Deployment"}
    assert containers["a"]["readinessProbe"] == {"exec": {"command": ["ready"]}, "timeoutSeconds": 30, "periodSeconds": 1, "failureThreshold": 7}
    assert "readinessProbe" not in containers["b"]


def test_strict_refuses_what_is_noted(tmp_path: Path) -> None:
    path = next(path for path in CORPUS if path.stem == "settings")
    with pytest.raises(NotMapped) as caught:
        manifests(project(path), strict=True)
    assert {one.key for one in caught.value.refusals} == set(said(path, "noted"))
    assert manifests(project(next(path for path in CORPUS if path.stem == "web")), strict=True).documents


def inner_kinds(of: Any) -> set[type[msgspec.Struct]]:
    """The structs that a type names."""
    if isinstance(of, type) and issubclass(of, msgspec.Struct):
        return {of}
    return {kind for part in getattr(of, "__args__", ()) for kind in inner_kinds(part)}


def test_every_key_of_the_model_has_a_verdict() -> None:
    waiting: list[type[msgspec.Struct]] = [Service, Network, Volume, FileObject]
    seen: set[type[msgspec.Struct]] = set()
    while waiting:
        kind = waiting.pop()
        if kind not in seen:
            seen.add(kind)
            fields = {field.name for field in msgspec.structs.fields(kind)}
            assert fields == keys.KEYS[kind].keys(), kind
            hints = get_type_hints(kind)
            waiting += [inner for name in fields if keys.KEYS[kind][name].verdict == "mapped" for inner in inner_kinds(hints[name])]
    assert seen == keys.KEYS.keys() == keys.HEADINGS.keys()


def test_the_page_has_the_table() -> None:
    page = (places.SOURCE / "docs/kubernetes.md").read_text()
    assert "\n".join(keys.table()) in page, "the table of docs/kubernetes.md is `'\\n'.join(bulle.kube.keys.table())`"


def test_texts_stay_texts_in_every_reader() -> None:
    words = ["1e3", "0o17", "y", "N", "on", "~", "", "1_000", "null", ".inf", "0x1f", "2001:db8::1", "12:30:45", "a: b", "- a", "#x", "a\nb\n", "é"]
    text = write_yaml([{"words": words}])
    assert list(yaml.safe_load_all(text)) == [{"words": words}]
    plain = {line.removeprefix("- ") for line in text.splitlines() if not line.startswith(('- "', "- '", "- |"))}
    assert not plain & set(words)
