"""Builds that somebody means ill, or gets wrong: what must not happen, and what is said instead."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bulle.build.copying import Group, Placement, Target
from bulle.build.sources import HostDirectory
from bulle.errors import Conflict
from bulle.store.merged_view import MergedView
from bulle_testing import tiers

pytestmark = pytest.mark.root


@pytest.fixture
def build(bulle: Any, busybox_image: Path, tmp_path: Path) -> Any:
    """A build of a text in a context; its process."""
    bulle("load", "-i", busybox_image, check=True)

    def run(text: str, *flags: str) -> Any:
        (tmp_path / "Containerfile").write_text(text)
        return bulle("build", *flags, "-f", tmp_path / "Containerfile", tmp_path)

    return run


def said(done: Any) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return str(done.stderr.splitlines()[-1])


def output(done: Any, bulle: Any, *command: str) -> str:
    assert done.returncode == 0, done.stderr
    return str(bulle("run", "--rm", done.stdout.strip(), *command, check=True).stdout)


def test_directories_deeper_than_python_goes(build: Any, bulle: Any, home: Path) -> None:
    """Refused in a sentence; and the store can still be cleaned."""
    done = build("FROM busybox\nRUN --network=none i=0; while [ $i -lt 1500 ]; do mkdir d && cd d; i=$((i+1)); done\n")
    assert "nested too deeply" in said(done)
    assert bulle("system", "prune", "-af").returncode == 0
    assert not list(home.glob("tmp/*/*"))


def test_a_directory_that_changes_between_key_and_layer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("good")
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        source = HostDirectory(root, "the context")
        [top] = source.find("d")
        group = Group(source, [top])
        assert [path for path, _ in group.tree(top)] == [b"", b"file"]
        (tmp_path / "d/file").write_text("evil")
        (tmp_path / "d/another").write_text("evil")
        placement = Placement(MergedView([]), Target("/e", into=True), 0)
        placement.add([group])
        assert sorted(placement.members) == [(b"e",), (b"e", b"file")]
        with pytest.raises(Conflict, match="changed while it was copied"):
            b"".join(placement.stream(None))
    finally:
        os.close(root)


def test_what_a_cache_begins_with_is_in_the_key(build: Any, bulle: Any) -> None:
    for word in ("one", "two"):
        text = f"FROM busybox AS a\nRUN --network=none mkdir /s && echo {word} > /s/v\nFROM busybox\n"
        done = build(f"{text}RUN --network=none --mount=type=cache,target=/z,from=a,source=/s cp /z/v /out\n", "-q")
        assert output(done, bulle, "cat", "/out") == f"{word}\n"


def test_a_cache_that_waits_for_a_stage_holds_nobody_up(build: Any) -> None:
    """The stage that it begins with needs the same cache."""
    text = "FROM busybox AS a\nRUN --network=none sleep 0.3\nRUN --network=none --mount=type=cache,target=/c,sharing=locked echo x > /x\n"
    done = build(f"{text}FROM busybox\nRUN --network=none --mount=type=cache,target=/c,sharing=locked,from=a,source=/etc ls /c/passwd\n")
    assert done.returncode == 0, done.stderr


def test_sources_of_one_instruction_do_not_hide_each_other(build: Any, bulle: Any, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("dir/f")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    for word in ("one", "two"):
        (tmp_path / "dir/f").write_text(word)
        assert output(build("FROM busybox\nADD dir/ x.tar /d/\n", "-q"), bulle, "cat", "/d/f") == word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("COPY .wh.bin /", "Containerfile:2: cannot copy /.wh.bin: in a layer, names that begin with .wh. delete files"),
        ("COPY <<.wh.bin /\nx\n.wh.bin", "names that begin with .wh. delete files"),
        (f"COPY --chown={'9' * 5000} f /", "is no id"),
        (f"EXPOSE {'9' * 5000}", "is no port"),
        (f"STOPSIGNAL {'9' * 5000}", "invalid signal"),
        (f"COPY --from={'9' * 5000} f /", "no stage before is called so"),
        ("COPY --from=nope f /", "Containerfile:2: there is no 'nope' to copy from: no stage before is called so"),
    ],
    ids=["whiteout", "heredoc", "owner", "port", "signal", "stage", "misspelt"],
)
def test_mistakes_and_malice_are_one_sentence(build: Any, tmp_path: Path, text: str, words: str) -> None:
    for name in (".wh.bin", "f"):
        (tmp_path / name).write_text("x")
    assert words in said(build(f"FROM busybox\n{text}\n"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-t", "BAD NAME"), "is not an image name"),
        (("-o", "type=oci,dest=/no/such/place.tar"), "there is no directory /no/such"),
        (("--isolation", "foo"), "there is no isolation level 'foo'"),
        (("--secret", "id=x,src=/no/such"), "the secret 'x' cannot be read"),
        (("--build-context", "x=/no/such"), "the context x cannot be used"),
        (("--annotation", "bad"), "has no value"),
        (("--network", "none"), "RUN --network=host is not allowed"),
    ],
)
def test_what_can_be_known_is_said_before_the_first_step(build: Any, flags: tuple[str, ...], words: str) -> None:
    done = build("FROM busybox\nRUN --network=host sleep 30\n", *flags)
    assert words in said(done)
    assert "RUN" not in "".join(line for line in done.stderr.splitlines()[:-1] if not line.startswith(("#1", "#2")))


def test_a_variable_that_nobody_set_is_warned_of(build: Any) -> None:
    done = build("FROM busybox\nWORKDIR /x$UNDEFINED\n")
    assert "WARNING: Containerfile:2: nobody set the variable UNDEFINED, so it is empty" in done.stderr.splitlines()


def test_a_name_means_one_thing(build: Any, bulle: Any, busybox_rootfs: Path, tmp_path: Path) -> None:
    """An index or an image, whichever was made last; and of an index the image of this machine is meant."""
    native = "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    other = "linux/riscv64"
    shutil.copy(busybox_rootfs / "bin/busybox", tmp_path / "sh")
    text = "FROM scratch\nCOPY sh /bin/\nARG TARGETARCH\nENV WORD=$TARGETARCH\n"
    assert build(text, "-t", "both:1", "--platform", f"{native},{other}").returncode == 0
    assert bulle("run", "--rm", "both:1", "sh", "-c", "echo $WORD", check=True).stdout == native.removeprefix("linux/") + "\n"
    assert "bulle manifest rm both:1" in said(bulle("rmi", "both:1"))
    single = build("FROM busybox\nENV WORD=single\n", "-q", "-t", "both:1")
    assert bulle("run", "--rm", "both:1", "sh", "-c", "echo $WORD", check=True).stdout == "single\n", single.stderr
    assert bulle("manifest", "ls", "-q", check=True).stdout == ""


def test_git_leaves_the_callers_repository_alone(bulle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks set GIT_DIR; and a password in an address is shown to nobody."""
    tiers.need("git")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "mine/.git"))
    done = bulle("build", "https://user:SECRETTOKEN@127.0.0.1:1/x.git")
    assert "https://127.0.0.1:1/x.git cannot be checked out" in said(done)
    assert "SECRETTOKEN" not in done.stderr + done.stdout
    assert not (tmp_path / "mine").exists()
