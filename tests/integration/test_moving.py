"""``save --state``, ``load --state`` and ``move``: a container in a file and on another machine; what is damaged or fails leaves all as it was."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from bulle_testing import places
from bulle_testing.running import Machine, machine, wait_for
from bulle_testing.ssh_servers import OtherMachine, other_machine


@pytest.fixture(scope="module")
def there(run_directory: Path, module_machine: Machine) -> Iterator[Machine]:
    """Another home, empty, and a real sshd that leads to it."""
    with machine(run_directory, "there") as place:
        yield place


@pytest.fixture(scope="module")
def other(run_directory: Path, there: Machine) -> Iterator[OtherMachine]:
    with other_machine(run_directory / "sshd-there", there.home) as made:
        yield made


@pytest.fixture
def both(box: Machine, there: Machine) -> Iterator[tuple[Machine, Machine]]:
    before = kept(box)
    yield box, there
    for place in (box, there):
        for container in place.engine.containers.list(all=True):
            container.remove(force=True)
        for volume in place.engine.volumes.list():
            place.engine.volumes.remove(volume.name)
    for image in there.engine.images.list():
        there.engine.images.remove(image.id, force=True)
    wait_for(lambda: kept(box) == before, "what a killed command had begun is gone")
    wait_for(lambda: not any(kept(there)), "nothing is left there")
    there.close_test()


def kept(place: Machine) -> tuple[list[str], list[str], list[str], list[str]]:
    """What a home holds: names of images, layers, volumes, containers."""
    place.engine.gc()
    layers = place.home / "layers/sha256"
    return (
        sorted(name for image in place.engine.images.list() for name in (image.id, *image.references)),
        sorted(os.listdir(layers)) if layers.exists() else [],
        sorted(os.listdir(place.home / "volumes")) if (place.home / "volumes").exists() else [],
        sorted(os.listdir(place.home / "containers")),
    )


def say(place: Machine, *words: str | Path, code: int = 0) -> str:
    done = place.command(*words)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def start(place: Machine) -> None:
    flags = ["-v", "data:/data", "-v", "/unnamed", "-e", "X=1", "--label", "a=b", "--memory", "200m", "--stop-signal", "KILL"]
    say(place, "run", "-d", "--name", "goes", *flags, "busybox", "sh", "-c", "echo started >>/log; exec sleep 1000")
    say(place, "exec", "goes", "sh", "-c", "echo 1 >/data/file; chown 7:8 /data/file; echo 2 >/unnamed/file; echo 3 >/file; rm /etc/passwd")


LOOK = "stat -c %u:%g /data/file; cat /data/file /unnamed/file /file /log; ls /etc/passwd; echo $X"


def seen(place: Machine, starts: int) -> None:
    shown = place.command("exec", "goes", "sh", "-c", LOOK).stdout
    assert shown == "7:8\n1\n2\n3\n" + "started\n" * starts + "1\n"
    options = place.engine.containers.get("goes").options
    assert (options.labels["a"], options.memory_bytes, options.image) == ("b", 200 << 20, "busybox")


def test_a_container_in_a_file(both: tuple[Machine, Machine], tmp_path: Path) -> None:
    here, there = both
    start(here)
    say(here, "snapshot", "create", "goes", "one")
    say(here, "snapshot", "restore", "goes", "one")  # so that it stands on a layer of its own
    say(here, "exec", "goes", "sh", "-c", "echo 3 >/file")
    say(here, "save", "--state", tmp_path / "state", "goes")
    assert say(there, "load", "--state", tmp_path / "state") == "goes\n"
    say(there, "start", "goes")
    seen(there, 3)
    assert say(there, "image", "inspect", "-f", "{{.Id}}", "busybox") == say(here, "image", "inspect", "-f", "{{.Id}}", "busybox")
    assert "taken" in say(there, "load", "--state", tmp_path / "state", code=1)
    say(there, "rm", "-f", "-v", "goes")
    assert [volume.name for volume in there.engine.volumes.list()] == ["data"], "the one without a name went with it"
    assert "volume data" in say(there, "load", "--state", tmp_path / "state", code=1)


@pytest.mark.programs("sshd", "ssh")
def test_a_move(both: tuple[Machine, Machine], other: OtherMachine) -> None:
    here, there = both
    environment = other.environment(here.home)
    start(here)
    assert move(environment) == (0, "goes\n")
    seen(there, 2)
    assert say(here, "ps", "-aq") == ""
    assert [volume.name for volume in here.engine.volumes.list()] == ["data"]


@pytest.mark.programs("sshd", "ssh")
def test_a_move_that_fails_leaves_it_running_here(both: tuple[Machine, Machine], other: OtherMachine) -> None:
    here, there = both
    environment = other.environment(here.home)
    start(here)
    code, _ = move(environment, "ssh://stranger")
    assert code == 1
    seen(here, 2)
    there.engine.volumes.create("data")  # where it cannot be taken
    code, _ = move(environment)
    assert code == 1
    seen(here, 3)
    there.engine.volumes.remove("data")
    command = subprocess.Popen([*places.command_line(), "move", "goes", "ssh://box"], env=environment, stdout=-3, stderr=-3)
    wait_for(lambda: not here.engine.containers.get("goes").state().active, "it is stopped to be moved")
    command.kill()
    command.wait()
    wait_for(lambda: place_of(here, there) is not None, "it is here or there")


def place_of(here: Machine, there: Machine) -> Machine | None:
    """Where the container is: a command that was killed leaves it stopped here, or had it taken there."""
    found = [place for place in (here, there) if any(one.name == "goes" for one in place.engine.containers.list(all=True))]
    return found[0] if found else None


def move(environment: dict[str, str], host: str = "ssh://box") -> tuple[int, str]:
    line = [*places.command_line(), "move", "goes", host]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL, check=False)
    return done.returncode, done.stdout


Members = list[tuple[tarfile.TarInfo, bytes]]


def unpacked(content: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def packed(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def with_document(change: Callable[[dict[str, object]], None]) -> Callable[[bytes], bytes]:
    def act(content: bytes) -> bytes:
        members = unpacked(content)
        document = msgspec.json.decode(members[0][1])
        change(document)
        return packed([(members[0][0], msgspec.json.encode(document)), *members[1:]])

    return act


def as_link(content: bytes) -> bytes:
    members = unpacked(content)
    members[1][0].type, members[1][0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    return packed(members)


def renamed(content: bytes) -> bytes:
    members = unpacked(content)
    members[-1][0].name = "../../../volume-0.tar"
    return packed(members)


def climbing(content: bytes) -> bytes:
    members = unpacked(content)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../climbed"), io.BytesIO())
    return packed([*members[:-1], (members[-1][0], out.getvalue())])


def other_layer(content: bytes) -> bytes:
    members = unpacked(content)
    at = next(number for number, (member, _) in enumerate(members) if member.name == "layer-0.tar")
    return packed([(member, bytes(10240) if number == at else data) for number, (member, data) in enumerate(members)])


def lying(content: bytes) -> bytes:
    """A member that says it is of terabytes."""
    head = bytearray(content[:512])
    head[124:136] = b"77777777777\0"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + content[512:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda content: b"",
    "garbage": lambda content: os.urandom(20000),
    "zeros": lambda content: bytes(20480),
    "foreign": lambda content: packed([(tarfile.TarInfo("etc/passwd"), b"root")]),
    **{f"cut at {part}/8": lambda content, part=part: content[: len(content) * part // 8] for part in range(1, 8)},  # type: ignore[misc]
    "another format": with_document(lambda document: document.update(format="bulle container state 9")),
    "no options": with_document(lambda document: document.pop("options")),
    "another image": with_document(lambda document: document.update(image="sha256:" + "0" * 64)),
    "no digest": with_document(lambda document: document.update(image="../../x")),
    "a volume's path": with_document(lambda document: document["volumes"][0].update(name="../../x")),  # type: ignore[index]
    "a name's path": with_document(lambda document: document.update(name="../../x")),
    "another user's key": with_document(lambda document: document.update(more=1)),
    "a link": as_link,
    "a member's path": renamed,
    "a path in a volume": climbing,
    "another layer": other_layer,
    "a size that lies": lying,
}


def test_what_is_damaged_or_foreign_is_refused_and_leaves_nothing(both: tuple[Machine, Machine], tmp_path: Path) -> None:
    here, there = both
    start(here)
    say(here, "save", "--state", tmp_path / "good", "goes")
    content = (tmp_path / "good").read_bytes()
    before = kept(there)
    for name, damage in DAMAGES.items():
        (tmp_path / "bad").write_bytes(damage(content))
        done = there.command("load", "--state", tmp_path / "bad")
        assert done.returncode == 1, name
        assert len(done.stderr.splitlines()) == 1 and "internal" not in done.stderr, (name, done.stderr)
        assert kept(there) == before, name
    assert not (tmp_path / "climbed").exists()
