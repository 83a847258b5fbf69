"""Killed by SIGKILL at random moments of what changes the store: no half image is ever seen, and the next collection leaves nothing of the rest.

Each round forks a child that does one thing through the library and kills it after a random part of the time that the thing takes.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import bulle
from bulle.build.builder import build
from bulle.build.options import BuildOptions
from bulle.engine.pruning import prune_build_cache
from bulle.errors import BulleError, Conflict, NotFound, StorageFull
from bulle.model.reference import Reference
from bulle_testing import places
from bulle_testing.layers import LayerTar
from bulle_testing.peers import Registry, docker_archive
from bulle_testing.running import wait_for

pytestmark = pytest.mark.slow

ROUNDS = 34  # of each of six things: two hundred kills in all
CONTAINERFILE = """FROM busybox AS one
RUN mkdir /made && echo $RANDOM > /made/one
COPY file /copied/
FROM busybox
COPY --from=one /made /made
RUN --mount=type=cache,target=/cache echo two | tee /cache/two > /two
LABEL done=1
"""

Action = Callable[[bulle.Engine], object]


@pytest.fixture
def engine(home: Path, busybox_image: Path) -> Iterator[bulle.Engine]:
    with bulle.Engine(home) as engine:
        engine.images.load(busybox_image)
        yield engine


@pytest.fixture
def archive(run_directory: Path) -> Path:
    """An image of three layers, one of some megabytes."""
    path = run_directory / "killed.tar"
    if not path.exists():
        large = LayerTar().directory("d")
        for number in range(200):
            large.add(f"d/{number}", content=random.Random(number).randbytes(20_000))
        layers = [bytes(large), bytes(LayerTar().add("one", content=b"1" * 5000)), bytes(LayerTar().add(".wh.one").add("two"))]
        docker_archive(path, layers, tags=["killed:latest"])
    return path


def kill_in_the_middle(engine: bulle.Engine, action: Action, prepare: Action, check: Callable[[], None]) -> None:
    """The rounds of one thing."""
    chance = random.Random(2026)
    prepare(engine)
    took = 0.0
    for number in range(ROUNDS + 1):
        since = time.monotonic()
        engine.close()  # nothing of ours may be held by the child
        pid = os.fork()
        if pid == 0:
            try:
                with bulle.Engine(engine.home) as own:
                    action(own)
                os._exit(0)
            finally:
                os._exit(1)
        if number:
            time.sleep(chance.uniform(0, took))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not number:
            assert status == 0, "it must work when nobody kills it"
            took = time.monotonic() - since
        check()
        inspect(engine)
        prepare(engine)
    engine.close()


def inspect(engine: bulle.Engine) -> None:
    """What is there is whole, and a collection takes away everything else."""
    store = engine.store
    # The monitor of a step that was killed with its build may still be at it.
    wait_for(lambda: engine.gc() >= 0 and not others_work(engine) and not engine.containers.list(all=True), "a collection of what the dead left")
    images = engine.images.list()
    assert any("busybox" in name for image in images for name in image.references)
    assert not [verdict.faults for verdict in engine.images.verify() if verdict.faults]
    for image in images:
        assert store.layers.plan(image.layers)
    rows = {str(row[0]) for row in engine.database.rows("SELECT diff_id FROM layer")}
    assert {f"sha256:{path.name}" for path in engine.home.glob("layers/sha256/*")} == rows
    blobs = {str(row[0]) for row in engine.database.rows("SELECT blob_digest FROM layer_blob")}
    assert {f"sha256:{path.name}" for path in engine.home.glob("blobs/sha256/*")} == blobs


def others_work(engine: bulle.Engine) -> list[Path]:
    """What lies in workspaces of others."""
    return [path for path in engine.home.glob("tmp/*/*") if not path.parent.name.startswith(f"{os.getpid()}-")]


def remove(engine: bulle.Engine, name: str) -> None:
    with suppress(NotFound):
        engine.images.remove(name, force=True)


def whole_or_absent(engine: bulle.Engine, name: str, layers: int) -> Callable[[], None]:
    def check() -> None:
        with suppress(NotFound):
            assert len(engine.images.get(name).layers) == layers

    return check


@pytest.mark.root
def test_load(engine: bulle.Engine, archive: Path) -> None:
    check = whole_or_absent(engine, "killed", 3)
    kill_in_the_middle(engine, lambda own: own.images.load(archive), lambda own: remove(own, "killed"), check)


@pytest.mark.root
def test_remove(engine: bulle.Engine, archive: Path) -> None:
    check = whole_or_absent(engine, "killed", 3)
    kill_in_the_middle(engine, lambda own: remove(own, "killed"), lambda own: own.images.load(archive), check)


@pytest.mark.root
def test_pull(engine: bulle.Engine, archive: Path, registry: Registry) -> None:
    registry.push(f"docker-archive:{archive}", "killed:latest")
    name = f"{registry.address}/killed:latest"
    check = whole_or_absent(engine, name, 3)
    kill_in_the_middle(engine, lambda own: own.images.pull(name), lambda own: remove(own, name), check)


@pytest.mark.root
def test_build(engine: bulle.Engine, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(CONTAINERFILE)
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    base = len(engine.images.get("busybox").layers)

    def prepare(own: bulle.Engine) -> None:
        remove(own, "killed-build")
        own.store.build_cache.prune()

    def act(own: bulle.Engine) -> None:
        build(own, BuildOptions(context=str(tmp_path), tags=("killed-build",), network="none"))

    kill_in_the_middle(engine, act, prepare, whole_or_absent(engine, "killed-build", base + 2))


@pytest.mark.root
def test_push(engine: bulle.Engine, archive: Path, registry: Registry) -> None:
    """What was made here is compressed on its way, and its manifest replaced: the image is whole before, after and in between."""
    name = f"{registry.address}/killed-push"
    turns = itertools.count()

    def prepare(own: bulle.Engine) -> None:
        remove(own, "killed")
        remove(own, name)
        own.images.load(archive)
        own.images.tag("killed", f"{name}:{next(turns)}")

    def act(own: bulle.Engine) -> None:
        [reference] = [one for image in own.images.list() for one in image.references if "killed-push" in one]
        own.images.push(reference)

    kill_in_the_middle(engine, act, prepare, whole_or_absent(engine, "killed", 3))


@pytest.mark.root
def test_prune(engine: bulle.Engine, archive: Path) -> None:
    identifier = engine.images.load(archive)[0].id

    def prepare(own: bulle.Engine) -> None:
        own.images.load(archive)
        own.store.images.untag(Reference.parse("killed"))
        (own.store.build_mounts.directory("killed") / "content").mkdir(exist_ok=True)

    def act(own: bulle.Engine) -> None:
        own.images.prune()
        prune_build_cache(own.store, every=True)

    kill_in_the_middle(engine, act, prepare, whole_or_absent(engine, identifier, 3))


@pytest.mark.root
def test_many_at_once_come_to_one_result(engine: bulle.Engine, archive: Path, registry: Registry, tmp_path: Path) -> None:
    """Four processes pull, build, prune and remove the same things at the same time; nothing breaks, and what is there at the end is whole."""
    registry.push(f"docker-archive:{archive}", "many:latest")
    name = f"{registry.address}/many:latest"
    (tmp_path / "Containerfile").write_text("FROM busybox\nCOPY file /file\nRUN wc -c file > count\nRUN cat count > again\n")
    (tmp_path / "file").write_bytes(os.urandom(1 << 18))
    allowed = (NotFound, Conflict)

    def work(own: bulle.Engine, number: int) -> None:
        for turn in range(8):
            for act in (
                lambda: own.images.pull(name),
                lambda turn=turn: build(own, BuildOptions(context=str(tmp_path), tags=(f"built:{turn}",), network="none")),
                lambda: own.store.build_cache.prune() if number == 0 else own.gc(),
                lambda: own.images.remove(name, force=True) if number == 1 else own.gc(),
            ):
                with suppress(*allowed):  # removed by another one meanwhile: said, and no harm
                    act()

    engine.close()
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with bulle.Engine(engine.home) as own:
                    work(own, number)
                code = 0
            except BaseException:  # noqa: BLE001 - shown, and told by the exit code
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    inspect(engine)
    engine.images.pull(name)
    ids = {engine.images.get(f"built:{turn}").id for turn in range(8)}
    for built in ids:
        command = [*places.command_line(), "run", "--rm", built, "cat", "again"]
        assert subprocess.run(command, env=places.environment(engine.home), capture_output=True).stdout.split()[0] == str(1 << 18).encode()
    engine.close()


@pytest.mark.root
def test_a_full_disk_in_the_middle_of_a_build(run_directory: Path, busybox_image: Path, tmp_path: Path) -> None:
    """One sentence, and the images are as they were."""
    disk = run_directory / "small-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], check=True)
    try:
        home = disk / "home"
        home.mkdir(mode=0o700)
        with bulle.Engine(home) as engine:
            engine.images.load(busybox_image)
            before = [image.id for image in engine.images.list()]
            for text in ("RUN dd if=/dev/zero of=/large bs=1M count=30", "COPY large /"):
                (tmp_path / "Containerfile").write_text(f"FROM busybox\n{text}\n")
                (tmp_path / "large").write_bytes(os.urandom(30 << 20))
                with pytest.raises(BulleError) as caught:
                    build(engine, BuildOptions(context=str(tmp_path), tags=("large",), network="none"))
                if text.startswith("COPY"):
                    assert isinstance(caught.value, StorageFull)
                assert [image.id for image in engine.images.list()] == before
            inspect(engine)
            (tmp_path / "Containerfile").write_text("FROM busybox\nRUN echo small > /small\n")
            build(engine, BuildOptions(context=str(tmp_path), tags=("small",), network="none"))
        places.close_home(home)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
