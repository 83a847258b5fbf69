"""What the listing verbs print is what Docker prints for the same containers: columns, fields of templates, documents, streams."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bulle.version import VERSION
from bulle_testing.peers import Docker, docker_archive, pack
from conftest import BulleCommand

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc")]

Say = Callable[..., str]
PS_FIELDS = ("Names", "Image", "Command", "Ports", "State", "Labels", "Networks", "LocalVolumes")
INSPECT_FIELDS = (
    "Path", "Args", "State.Status", "State.Running", "State.ExitCode", "State.OOMKilled", "State.Error", "Name", "RestartCount",
    "HostConfig.Binds", "HostConfig.NetworkMode", "HostConfig.Memory", "HostConfig.ReadonlyRootfs", "HostConfig.ShmSize",
    "HostConfig.AutoRemove", "HostConfig.Privileged", "Config.Image", "Config.Labels", "Config.User", "Config.Tty", "Config.OpenStdin", "Config.Cmd",
    "Config.Entrypoint", "HostConfig.RestartPolicy", "HostConfig.PidsLimit", "HostConfig.NanoCpus", "Image",
    "HostConfig.MemorySwap", "HostConfig.IpcMode", "HostConfig.CapAdd", "HostConfig.SecurityOpt", "NetworkSettings.IPAddress", "Config.Domainname",
)  # fmt: skip
IMAGE_FIELDS = ("Id", "RepoTags", "Architecture", "Os", "Config.Cmd", "Config.Env", "Config.Labels", "Config.Entrypoint", "RootFS")
RUN = (
    "run", "-d", "--name", "web", "--label", "a=b", "--network", "none", "-m", "100m", "-v", "/usr/share:/s:ro", "--tmpfs", "/t", "-u", "nobody",
)  # fmt: skip


@pytest.fixture
def both(dockerd: Docker, bulle: BulleCommand, busybox_rootfs: Path, tmp_path: Path) -> Iterator[dict[str, Say]]:
    """Docker and Bulle with one running, one ended and one new container of the same image, whose configuration has a label."""
    archive = tmp_path / "image.tar"
    docker_archive(archive, [pack(busybox_rootfs)], tags=["labelled:1"], config={"Labels": {"made": "here"}})

    def docker_says(*arguments: str) -> str:
        done = dockerd(*arguments, check=False)
        return done.stdout + done.stderr

    def bulle_says(*arguments: str) -> str:
        done = bulle(*arguments)
        return done.stdout + done.stderr

    engines = {"Docker": docker_says, "Bulle": bulle_says}
    try:
        for say in engines.values():
            assert say("load", "-i", str(archive)) == "Loaded image: labelled:1\n"
            assert re.fullmatch(r"[0-9a-f]{64}\n", say(*RUN, "labelled:1", "sh", "-c", "echo out; sleep 0.1; echo err >&2; exec sleep 1000"))
            assert say("run", "--name", "ended", "--network", "none", "labelled:1", "sh", "-c", "exit 3") == ""
            say("create", "--name", "new", "--network", "none", "labelled:1", "true")
        yield engines
    finally:
        for say in engines.values():
            with suppress(AssertionError):
                say("rm", "-f", "web", "ended", "new")
        dockerd("rmi", "labelled:1", check=False)


def same(engines: dict[str, Say], *arguments: str, change: Callable[[str], object] = str) -> None:
    """Both print the same, once ``change`` has taken away what must differ."""
    said = {name: change(say(*arguments)) for name, say in engines.items()}
    assert said["Bulle"] == said["Docker"], arguments


def titles(text: str) -> list[str]:
    """The words of a table's first line."""
    return re.split(r"\s{2,}", text.split("\n")[0].strip())


def test_listings_are_docker_s(both: dict[str, Say]) -> None:
    for arguments in (("ps",), ("ps", "-a", "--no-trunc"), ("images",), ("images", "--digests"), ("top", "web"), ("top", "web", "aux")):
        same(both, *arguments, change=titles)
    same(both, "ps", "-a", "--format", "\t".join(f"{{{{.{name}}}}}" for name in PS_FIELDS))
    same(both, "ps", "-a", "--format", "table {{.Names}}\t{{.Command}}\t{{.Labels}}")
    same(both, "ps", "-a", "--filter", "label=made=here", "--filter", "status=exited", "--format", "{{.Names}}")
    same(both, "images", "--no-trunc", "--format", "{{.Repository}} {{.Tag}} {{.ID}} {{.CreatedAt}}", change=lambda text: "labelled 1" in text)
    same(both, "top", "web", "-o", "pid,comm", change=lambda text: re.sub(r"\d+ +", "", text))
    same(both, "logs", "web", change=lambda text: sorted(text.split()))
    same(both, "logs", "-t", "web", change=lambda text: sorted(re.sub(r"\S+Z ", "TIME ", text).split("\n")))


def test_version_has_docker_s_parts(both: dict[str, Say], bulle: BulleCommand) -> None:
    same(both, "version", "--format", "{{.Server.Os}} {{.Server.Arch}} {{.Server.KernelVersion}} {{.Client.Os}} {{.Client.Arch}}")
    assert bulle("version", "--format", "{{.Client.Version}} {{.Server.Version}}", check=True).stdout == f"{VERSION} {VERSION}\n"


def test_documents_have_docker_s_values(both: dict[str, Say]) -> None:
    differing = {}
    for name, fields in (("web", INSPECT_FIELDS), ("ended", INSPECT_FIELDS), ("new", INSPECT_FIELDS), ("labelled:1", IMAGE_FIELDS)):
        form = "[" + ",".join(f"{{{{json .{field}}}}}" for field in fields) + "]"
        said = [both[engine]("inspect", "--format", form, name) for engine in ("Docker", "Bulle")]
        assert all(text.startswith("[") for text in said), said
        docker, bulle = map(json.loads, said)
        differing |= {f"{name} {field}": (a, b) for field, a, b in zip(fields, docker, bulle, strict=True) if a != b}
    assert differing == {}


def test_command_and_entrypoint_are_those_of_the_image_unless_given(both: dict[str, Say], tmp_path: Path) -> None:
    layer, names = tmp_path / "layer", ["begin:1", "shell:1", "bare:1"]
    layer.mkdir()
    for name, config in zip(names, ({"Entrypoint": ["echo", "x"]}, {"Entrypoint": ["sh"], "Cmd": ["-c", "true"]}, {"Entrypoint": None}), strict=True):
        docker_archive(tmp_path / "image", [pack(layer)], tags=[name], config=config)
        for say in both.values():
            say("load", "-i", str(tmp_path / "image"))
    try:
        for name in names:
            for flags in ((), ("--entrypoint", "id"), ("--entrypoint", "")):
                for command in ((), ("a", "b")):
                    said = {}
                    for engine, say in both.items():
                        say("create", "--name", "one", "--network", "none", *flags, name, *command)
                        said[engine] = say("inspect", "-f", "{{json .Config.Entrypoint}} {{json .Config.Cmd}} {{.Path}} {{.Args}}", "one")
                        say("rm", "-f", "one")
                    if flags != ("--entrypoint", "") or command:
                        assert said["Bulle"] == said["Docker"], (name, flags, command)
    finally:
        for say in both.values():
            say("rmi", *names)


FAILURES = (
    "start nosuch", "start -a missing", "start missing", "stop nosuch", "kill nosuch", "kill -s NOSUCH web", "kill ended", "rm nosuch",
    "rm -f nosuch", "rm web", "logs nosuch", "logs --since soon web", "exec nosuch true", "exec ended true", "exec web /tmp", "exec -d web nosuch",
    "exec -w relative web true", "exec -u nosuch web true", "exec -e =x web true", "exec --env-file /nosuch web true", "exec -it web true",
    "attach nosuch", "attach ended", "wait nosuch", "top nosuch", "top ended", "inspect nosuch", "inspect --type image web",
    "inspect -f {{.Nosuch}} web", "container inspect nosuch", "image inspect nosuch", "rmi nosuch", "rmi -f nosuch", "rmi labelled:1", "tag nosuch x",
    "tag labelled:1 UPPER", "save nosuch", "save -o /nosuch/x labelled:1", "load -i /etc/passwd", "load -i /dev/null", "load -i /nosuch",
    "create --pull never nosuch", "create --nosuch x", "create -m much x", "create -m 1 labelled:1", "create --name web labelled:1",
    "create --env-file /nosuch x", "create --ulimit nofile=many x", "create --cap-add NOSUCH labelled:1", "create --cidfile /etc/passwd labelled:1",
    "run --pull never nosuch", "run --nosuch x", "run -m 1 labelled:1", "run --name web labelled:1", "run -d --network none labelled:1 nosuch",
    "run --network none labelled:1 /tmp", "run --stop-signal NOSUCH labelled:1", "run", "create", "exec web", "rm", "tag one", "logs a b", "ps extra",
    "ps -n", "ps -n abc", "ps --nosuch", "ps -f bad", "ps -f nosuch=1", "ps --format {{.Nosuch}}", "version extra", "nosuch", "--nosuch", "container",
    "container nosuch", "container --nosuch", "container rm --nosuch",
)  # fmt: skip


def test_failures_exit_as_docker_s(both: dict[str, Say], dockerd: Docker, bulle: BulleCommand) -> None:
    for say in both.values():
        say("create", "--name", "missing", "--network", "none", "labelled:1", "nosuch")
    codes = {words: (dockerd(*words.split(), check=False).returncode, bulle(*words.split()).returncode) for words in FAILURES}
    for say in both.values():
        say("rm", "-f", "missing", *say("ps", "-aq", "--filter", "status=created").split())
    assert {words: code for words, code in codes.items() if code[0] != code[1]} == {}


def test_pausing_measuring_and_changing(both: dict[str, Say]) -> None:
    """What is said and shown of a paused container, of what it uses, and of changed limits."""
    said: dict[str, list[object]] = {}
    for name, say in both.items():
        answers: list[object] = [say("pause", "web"), say("ps", "--filter", "status=paused", "--format", "{{.Names}} {{.State}}")]
        answers.append(say("inspect", "-f", "{{.State.Status}} {{.State.Running}} {{.State.Paused}}", "web"))
        answers.append(say("ps", "--format", "{{.Status}}", "--filter", "name=web").endswith(" (Paused)\n"))
        answers.append("paused" in say("exec", "web", "true"))
        answers.append(say("unpause", "web"))
        answers.append("not paused" in say("unpause", "web"))
        answers.append(say("update", "--memory", "64m", "--memory-swap", "96m", "--pids-limit", "50", "--cpu-shares", "512", "web"))
        chosen = "{{with .HostConfig}}{{.Memory}} {{.MemorySwap}} {{.PidsLimit}} {{.CpuShares}} {{.CpuQuota}} {{.BlkioWeight}} {{.CpusetMems}}{{end}}"
        answers.append(say("inspect", "-f", chosen, "web"))
        one = json.loads(say("stats", "--no-stream", "--format", "json", "web"))
        answers.append((sorted(one), one["Container"], one["Name"], one["PIDs"], one["MemUsage"].partition(" / ")[2], one["NetIO"]))
        answers.append(re.sub(" +", " ", say("stats", "--no-stream").splitlines()[0]))
        answers.append(say("stats", "--no-stream", "--format", "{{.Container}} {{.PIDs}} {{.MemUsage}}", "-a").count("0 0B / 0B\n"))
        said[name] = answers
    assert said["Bulle"] == said["Docker"]
