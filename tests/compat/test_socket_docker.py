"""Docker's own clients, docker-py and the docker command, get the same answers from ``bulle serve`` as from a dockerd: each case is asked of both."""

from __future__ import annotations

import gc
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, ContainerError, DockerException, ImageNotFound, NotFound

from bulle_testing.peers import Docker
from bulle_testing.running import Machine, wait_for
from bulle_testing.socket_clients import Served, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.programs("dockerd", "docker", "containerd", "runc"),
    # docker-py leaves connections to the collector of garbage.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGE = "busybox:latest"


@dataclass
class Side:
    """One daemon, with both clients. ``places`` are where this test keeps files."""

    served: Served
    client: docker.DockerClient
    place: Path

    def run(self, *arguments: str, input: str | None = None) -> tuple[int, str, str]:
        """The docker command."""
        done = self.served.docker(*arguments, input=input, check=False)
        return done.returncode, done.stdout, done.stderr

    def container(self, *command: str, **options: Any) -> Any:
        """A container that runs."""
        return self.client.containers.run(IMAGE, list(command) or ["sleep", "1000"], detach=True, **{"network_mode": "none", **options})


@pytest.fixture(scope="module")
def sockets(module_machine: Machine, dockerd: Docker, busybox_image: Path) -> Iterator[tuple[Served, Served]]:
    """A dockerd's and ours, with the same image."""
    dockerd("load", "-i", str(busybox_image))
    with serving(module_machine.home) as served:
        yield Served(dockerd.socket_path), served


@pytest.fixture
def both(sockets: tuple[Served, Served], box: Machine, tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """Both sides; what a test leaves is removed."""
    sides = []
    for name, served in zip(("docker", "bulle"), sockets, strict=True):
        place = tmp_path / name
        place.mkdir()
        sides.append(Side(served, docker.DockerClient(base_url=served.address, timeout=240), place))
    try:
        yield sides[0], sides[1]
    finally:
        for side in sides:
            for container in side.client.containers.list(all=True):
                with suppress(DockerException):
                    container.remove(force=True, v=True)
            for volume in side.client.volumes.list():
                with suppress(DockerException):
                    volume.remove(force=True)
            for image in side.client.images.list():
                for tag in image.tags or [image.id]:
                    if tag != IMAGE:
                        with suppress(DockerException):
                            side.client.images.remove(tag, force=True)
            side.client.close()
        gc.collect()


Case = Callable[[Side], Any]


def failure(act: Callable[[], object]) -> tuple[str, int]:
    """The class and status of what a call raises."""
    try:
        act()
    except APIError as error:
        return type(error).__name__, error.response.status_code
    raise AssertionError("nothing was raised")


def output_of_runs(side: Side) -> Any:
    run = side.client.containers.run
    both = run(IMAGE, ["sh", "-c", "echo out; echo err >&2"], remove=True, network_mode="none", stdout=True, stderr=True)
    try:
        run(IMAGE, ["sh", "-c", "echo wrong >&2; exit 3"], remove=True, network_mode="none")
    except ContainerError as error:
        return sorted(both.splitlines()), error.exit_status, error.stderr
    raise AssertionError("the container did not fail")


def failures(side: Side) -> Any:
    client = side.client
    with pytest.raises(ImageNotFound):
        client.containers.create("nope:1")
    with pytest.raises(NotFound):
        client.containers.get("nope")
    one = side.container(name="one")
    found = [
        failure(lambda: client.containers.create(IMAGE, name="one")),
        failure(one.remove),
        failure(lambda: client.networks.get("nope")),
        failure(lambda: client.volumes.get("nope")),
        failure(lambda: client.images.get("nope")),
        failure(lambda: client.containers.create(IMAGE, name="not/good")),
        failure(lambda: client.containers.run(IMAGE, ["/nope"], network_mode="none", name="two")),
        failure(lambda: one.kill("NOPE")),
        failure(lambda: one.get_archive("/nope")),
        failure(lambda: one.put_archive("/nope", b"")),
        failure(lambda: client.api.exec_inspect("nope")),
        failure(lambda: client.api.logs(one.id, stdout=False, stderr=False)),
    ]
    one.stop(timeout=0)
    return [*found, failure(lambda: one.exec_run("true")), failure(lambda: one.kill()), failure(one.pause)]


def life(side: Side) -> Any:
    one = side.client.containers.create(
        IMAGE, ["sleep", "1000"], name="one", labels={"a": "b"}, environment={"X": "1"}, network_mode="none", user="nobody", working_dir="/tmp",
        hostname="called", stop_signal="SIGKILL", tty=True, mem_limit="64m", cpu_shares=512, pids_limit=50, read_only=True,
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
    )  # fmt: skip
    states = [one.status]
    for verb in (one.start, one.pause, one.unpause, lambda: one.restart(timeout=0), lambda: one.stop(timeout=0)):
        verb()
        one.reload()
        states.append(one.status)
    one.rename("two")
    one.reload()
    config, host = one.attrs["Config"], one.attrs["HostConfig"]
    shown = {key: config[key] for key in ("Hostname", "User", "Tty", "Env", "Cmd", "Image", "WorkingDir", "Labels", "StopSignal")}
    shown["Env"] = sorted(entry for entry in config["Env"] if not entry.startswith(("HOSTNAME=", "TERM=")))
    limits = {key: host[key] for key in ("Memory", "CpuShares", "PidsLimit", "ReadonlyRootfs", "NetworkMode", "RestartPolicy", "AutoRemove")}
    return states, one.name, one.wait()["StatusCode"], shown, limits, one.attrs["State"]["ExitCode"]


def commands(side: Side) -> Any:
    one = side.container()
    split = one.exec_run(["sh", "-c", "echo out; echo err >&2; exit 5"], demux=True)
    as_user = one.exec_run(["sh", "-c", "id -u; pwd; echo $Y"], user="nobody", workdir="/tmp", environment={"Y": "2"})
    terminal = one.exec_run(["sh", "-c", "tty >/dev/null && echo a terminal"], tty=True)
    detached = side.client.api.exec_create(one.id, ["sh", "-c", "exit 4"])["Id"]
    side.client.api.exec_start(detached, detach=True)
    wait_for(lambda: side.client.api.exec_inspect(detached)["ExitCode"] is not None, "the command ends")
    return split, as_user, terminal, side.client.api.exec_inspect(detached)["ExitCode"]


def files(side: Side) -> Any:
    one = side.container("sh", "-c", "mkdir /made; echo hello >/made/file; ln -s file /made/link; rm /etc/group; sleep 1000")
    wait_for(lambda: one.exec_run(["test", "!", "-e", "/etc/group"]).exit_code == 0, "the files are made")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("given.txt")
        member.size, member.mode = 3, 0o640
        archive.addfile(member, io.BytesIO(b"abc"))
    assert one.put_archive("/made", packed.getvalue())
    found: list[Any] = [one.exec_run(["cat", "/made/given.txt"]).output]
    for path in ("/made", "/made/file", "/made/link"):
        chunks, status = one.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            found.append(sorted((member.name, member.type, member.mode & 0o7777) for member in archive.getmembers()))
        found.append({key: status[key] for key in ("name", "mode", "linkTarget")} if path != "/made/link" else status["name"])
    changes = sorted((change["Path"], change["Kind"]) for change in one.diff())
    with tarfile.open(fileobj=io.BytesIO(b"".join(one.export()))) as archive:
        found.append("made/file" in archive.getnames())
    return found, changes


def logs(side: Side) -> Any:
    one = side.container("sh", "-c", "for i in 1 2 3; do echo line $i; done")
    wrong = side.container("sh", "-c", "echo said; echo wrong >&2")
    for container in (one, wrong):
        container.wait()
    stamped = one.logs(stderr=False, timestamps=True, tail=1)
    assert re.match(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line 3\n", stamped)
    return one.logs(), one.logs(tail=2), list(one.logs(stream=True)), wrong.logs(stderr=False), wrong.logs(stdout=False)


def lists(side: Side) -> Any:
    for name, label in (("one", "x"), ("two", "y")):
        side.container(name=name, labels={"kind": label})
    side.client.containers.create(IMAGE, name="three", network_mode="none")

    def names(**chosen: Any) -> list[str]:
        return sorted(one.name for one in side.client.containers.list(**chosen))

    entry = next(one for one in side.client.api.containers() if one["Names"] == ["/one"])
    fields = {key: entry[key] for key in ("Names", "Image", "ImageID", "Command", "Labels", "State", "Ports")}
    return (
        names(), names(all=True), names(filters={"label": "kind=x"}), names(all=True, filters={"status": "created"}), names(filters={"name": "tw"}),
        names(all=True, filters={"ancestor": IMAGE}), names(all=True, since="one"), names(limit=1), fields,
    )  # fmt: skip


def images(side: Side) -> Any:
    one = side.container("sh", "-c", "echo kept >/kept")
    one.wait()
    made = one.commit("committed", "1", author="me", message="words", changes=["CMD cat /kept", "ENV A=b"])
    output = side.client.containers.run("committed:1", remove=True, network_mode="none")
    made.tag("other", "2")
    saved = b"".join(made.save(named=True))
    for tag in ("committed:1", "other:2"):
        side.client.images.remove(tag)
    assert failure(lambda: side.client.images.get("committed:1")) == ("ImageNotFound", 404)
    (loaded,) = side.client.images.load(saved)
    shown = loaded.attrs["Config"]
    listed = sorted(tag for image in side.client.images.list() for tag in image.tags)
    return output, loaded.tags, shown["Cmd"], [entry for entry in shown["Env"] if entry.startswith("A=")], loaded.attrs["Author"], listed


def builds(side: Side) -> Any:
    text = f"FROM {IMAGE}\nARG WORD=one\nLABEL made=here\nRUN echo $WORD >/word\nCMD cat /word\n"
    image, log = side.client.images.build(
        fileobj=io.BytesIO(text.encode()), tag="built:1", buildargs={"WORD": "two"}, labels={"also": "this"}, network_mode="none", rm=True
    )
    said = [line["stream"] for line in log if "stream" in line]
    assert any(line.startswith("Successfully tagged built:1") for line in said)
    steps = [line.strip() for line in said if re.match("Step .* : (FROM|RUN)", line)]  # what only changes the configuration is no step of ours
    output = side.client.containers.run("built:1", remove=True, network_mode="none")
    with pytest.raises(docker.errors.BuildError) as failed:
        side.client.images.build(fileobj=io.BytesIO(f"FROM {IMAGE}\nRUN exit 3\n".encode()), network_mode="none")
    return output, image.labels, [re.sub(r"^Step \d+/\d+ : ", "", step) for step in steps], bool(failed.value.msg)


def volumes(side: Side) -> Any:
    volume = side.client.volumes.create("kept", labels={"a": "b"})
    bound = side.place / "bound"
    bound.mkdir(mode=0o777)
    bound.chmod(0o777)
    (bound / "file").write_text("of the host")
    side.client.containers.run(
        IMAGE, ["sh", "-c", "echo data >/v/file"], remove=True, network_mode="none", volumes={"kept": {"bind": "/v", "mode": "rw"}}
    )
    read = ["sh", "-c", "cat /v/file /b/file; mount | grep -c ' /t type tmpfs'; touch /b/x 2>/dev/null || echo read-only"]
    places = {"kept": {"bind": "/v", "mode": "ro"}, str(bound): {"bind": "/b", "mode": "ro"}}
    output = side.client.containers.run(IMAGE, read, remove=True, network_mode="none", volumes=places, tmpfs={"/t": "size=1m"})
    one = side.container(volumes=places, name="one")
    mounts = sorted((one["Type"], one["Destination"], one["RW"], one.get("Name", "")) for one in one.attrs["Mounts"])
    in_use = failure(volume.remove)
    one.remove(force=True)
    volume.remove()
    return output, mounts, in_use, volume.attrs["Labels"], [one.name for one in side.client.volumes.list()]


def events(side: Side) -> Any:
    with side.client.api.get(side.client.api._url("/events"), params={"filters": '{"type":["container"]}'}, stream=True) as stream:
        lines = side.client.api._stream_helper(stream, decode=True)
        side.client.containers.run(IMAGE, ["true"], remove=True, network_mode="none", name="one", labels={"a": "b"})
        found = []
        while not found or found[-1]["Action"] != "destroy":
            found.append(next(lines))
    first = found[0]
    die = next(one for one in found if one["Action"] == "die")
    keys = sorted(set(first) - {"id", "status", "from"})
    order = [one["Action"] for one in found if one["Action"] != "attach"]
    return order, keys, first["Actor"]["Attributes"], die["Actor"]["Attributes"]["exitCode"]


def waits(side: Side) -> Any:
    one = side.client.containers.create(IMAGE, ["sh", "-c", "exit 6"], network_mode="none")
    before = one.wait()
    one.start()
    return [said["StatusCode"] for said in (before, one.wait(), one.wait(condition="not-running"))]


def figures(side: Side) -> Any:
    one = side.container(mem_limit="64m")
    shown = one.stats(stream=False)
    assert shown["memory_stats"]["usage"] > 0
    assert shown["cpu_stats"]["system_cpu_usage"] > shown["precpu_stats"]["system_cpu_usage"] > 0
    top = one.top(ps_args="-o pid,comm")
    one.update(mem_limit="128m", memswap_limit="256m", cpu_shares=100)
    one.reload()
    changed = {key: one.attrs["HostConfig"][key] for key in ("Memory", "MemorySwap", "CpuShares")}
    return shown["memory_stats"]["limit"], top["Titles"], [row[1] for row in top["Processes"]], changed


CASES: tuple[Case, ...] = (
    output_of_runs, failures, life, commands, files, logs, lists, images, builds, volumes, events, waits, figures,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_docker_py_gets_the_same(both: tuple[Side, Side], case: Case) -> None:
    theirs, ours = both
    assert case(ours) == case(theirs)


LINES = (
    ("run", "--rm", "--network", "none", IMAGE, "sh", "-c", "echo out; exit 42"),
    ("run", "--rm", "--network", "none", IMAGE, "/nope"),
    ("run", "--rm", "--network", "none", IMAGE, "/etc/passwd"),
    ("run", "--rm", "--network", "none", "--init", IMAGE, "sh", "-c", "echo $$ >/dev/null"),
    ("run", "--rm", "--network", "none", "-e", "A=b", "-w", "/tmp", "-u", "nobody", IMAGE, "sh", "-c", "echo $A; pwd; id -un"),
    ("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/t", IMAGE, "sh", "-c", "touch /x 2>/dev/null || touch /t/x && echo only there"),
    ("run", "--rm", "--network", "none", "--ulimit", "nofile=77:99", IMAGE, "sh", "-c", "ulimit -n"),
    ("run", "--rm", "--network", "none", "--health-cmd", "true", "--no-healthcheck", IMAGE, "true"),
    ("run", "--rm", "--network", "none", "--entrypoint", "echo", IMAGE, "entered"),
    ("run", "--rm", "--network", "none", "--cap-drop", "ALL", IMAGE, "grep", "CapEff", "/proc/self/status"),
    ("inspect", "nope"),
    ("rm", "nope"),
    ("image", "inspect", "--format", "{{.Os}} {{.Config.Cmd}} {{len .RootFS.Layers}}", IMAGE),
    ("images", "--format", "{{.Repository}}:{{.Tag}}"),
    ("history", "--format", "{{.CreatedBy}}", IMAGE),
    ("network", "ls", "--format", "{{.Name}} {{.Driver}}", "--filter", "name=none"),
    ("swarm", "leave"),
    ("plugin", "ls", "-q"),
    ("container", "prune", "-f"),
)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_docker_command_says_the_same(both: tuple[Side, Side], line: tuple[str, ...]) -> None:
    theirs, ours = (side.run(*line) for side in both)
    assert ours[:2] == theirs[:2], (ours, theirs)


def test_docker_cp_and_streams(both: tuple[Side, Side]) -> None:
    def use(side: Side) -> Any:
        (side.place / "tree/below").mkdir(parents=True)
        (side.place / "tree/below/file").write_text("content")
        side.run("create", "--name", "one", "--network", "none", "-i", IMAGE, "sh", "-c", "cat; cat /into/below/file; ls /")
        copied = side.run("cp", f"{side.place}/tree", "one:/into")[0]
        streams = side.run("start", "-ai", "one", input="typed\n")
        back = side.run("cp", "one:/into/below/file", f"{side.place}/back")[0]
        missing = side.run("cp", "one:/nope", f"{side.place}/x")
        return copied, streams, back, (side.place / "back").read_text(), missing[0], "Could not find the file" in missing[2]

    theirs, ours = both
    assert use(ours) == use(theirs)


# Fields that are gone from Docker's newer versions, or that name a part of it (runc, its directories, the kernel's interfaces for memory).
OF_THEIRS = re.compile(
    r"KernelMemory|Runtimes|Commit|BridgeNf|Container(Config)?$|Config\.\w+$|Data\.|IndexConfigs|Nondistributable|memory_stats|cpu_stats|blkio"
)


def fields(theirs: Any, ours: Any, place: str = "") -> Iterator[str]:
    """Where in their document is something that ours has not, or has as something else."""
    for key, value in theirs.items():
        here = f"{place}.{key}"
        if key not in ours:
            yield f"{here} is missing"
        elif isinstance(value, dict) and isinstance(ours[key], dict):
            yield from fields(value, ours[key], here)
        elif value is not None and ours[key] is not None and type(value) is not type(ours[key]):
            yield f"{here} is {ours[key]!r}, theirs {value!r}"


def test_documents_have_the_same_fields(both: tuple[Side, Side]) -> None:
    def documents(side: Side) -> dict[str, Any]:
        one, client = side.container(), side.client
        return {
            "container": one.attrs, "listed": client.api.containers()[0], "image": client.images.get(IMAGE).attrs, "images": client.api.images()[0],
            "network": {**client.networks.get("none").attrs, "Containers": {}}, "info": client.info(), "volume": client.volumes.create("one").attrs,
            "df": client.df(), "stats": one.stats(stream=False), "version": {**client.version(), "Components": []},
        }  # fmt: skip

    theirs, ours = both
    known = documents(ours)
    assert not [
        line
        for line in fields(documents(theirs), known)
        if not (
            line.startswith((".image", ".info", ".stats", ".container.HostConfig.Kernel", ".container.Graph")) and OF_THEIRS.search(line.split()[0])
        )
    ]


TESTCONTAINERS = """
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

made = DockerContainer("busybox:latest").with_command(["sh", "-c", "echo ready; exec sleep 1000"]).with_kwargs(network_mode="none")
with made.with_env("A", "b").waiting_for(LogMessageWaitStrategy("ready")) as container:
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    print(container.exec(["sh", "-c", "echo $A; exit 3"]), container.get_logs(), wrapped.status)
"""


def test_testcontainers_get_the_same(both: tuple[Side, Side]) -> None:
    def use(side: Side) -> Any:
        environment = os.environ | {"DOCKER_HOST": side.served.address, "TESTCONTAINERS_RYUK_DISABLED": "true"}
        done = subprocess.run([sys.executable, "-c", TESTCONTAINERS], env=environment, capture_output=True, text=True, timeout=100)
        return done.returncode, done.stdout, side.client.containers.list(all=True)

    theirs, ours = both
    assert use(ours) == use(theirs)
    assert use(ours)[0] == 0
