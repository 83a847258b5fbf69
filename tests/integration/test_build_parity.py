"""The same Containerfiles, built by ``bulle build`` and by a real dockerd, come to the same files and the same config."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bulle_testing import contexts, tiers
from bulle_testing.contexts import Files, Link, Mode, Same
from bulle_testing.peers import Docker
from bulle_testing.running import Machine, machine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc", "busybox")]

_FIELDS = (
    "Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "ExposedPorts", "Volumes", "Healthcheck", "Shell", "StopSignal", "OnBuild",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One build; ``legacy`` takes dockerd's old builder, which knows less, ``flags`` are for both."""

    name: str
    text: str
    files: Files = field(default_factory=dict)
    legacy: bool = False
    flags: tuple[str, ...] = ()


TREE: Files = {
    "a.txt": "a",
    "b.txt": Mode(0o600, "b"),
    "c.md": "c",
    "run.sh": Mode(0o755, "#!/bin/sh\n"),
    "dir/one": "1",
    "dir/sub/two": Mode(0o640, "2"),
    "dir/sub/deep/three": "3",
    "dir/empty": None,
    "dir/closed": Mode(0o700),
    "dir/setuid": Mode(0o4755, "s"),
    "dir/link": Link("sub/two"),
    "dir/dangling": Link("/nowhere"),
    "link-to-file": Link("a.txt"),
    "link-to-dir": Link("dir"),
    "closed": Mode(0o700),
    "closed/f": "f",
    "twice/x": "same",
    "twice/y": Same("twice/x"),
}

CASES = [
    Case(
        "copy-forms",
        """FROM busybox
        COPY a.txt /one.txt
        COPY a.txt /new/dir/
        COPY a.txt b.txt /several/
        COPY dir /dir-contents
        COPY dir/ /dir-contents-slash/
        COPY *.txt /wild/
        COPY ?.m[cd] /wild2/
        COPY d*r /wild-dir/
        COPY dir/*/tw? /wild-below/
        COPY ["a.txt", "/json form/"]
        COPY . /all/
        COPY dir/sub/../one /dots/
        COPY /a.txt /absolute-source
        COPY ../../a.txt /outside
        """,
        TREE,
    ),
    Case(
        "copy-links",
        """FROM busybox
        RUN mkdir -p /real/deep && ln -s real /linked && ln -s /real/deep /abs && ln -s nowhere /dangling && ln -s /etc/group /file-link
        COPY link-to-file /link-to-file
        COPY link-to-dir /link-to-dir
        COPY link-to-dir/one /through
        COPY dir/link /link-in-dir
        COPY a.txt /linked/
        COPY b.txt /linked/deep/x
        COPY a.txt /abs
        COPY dir /linked/tree
        COPY link-* /links/
        """,
        TREE,
    ),
    Case(
        "copy-over",
        """FROM busybox
        RUN mkdir -p -m 711 /x/sub && mkdir /x/empty && chown 5:6 /x /x/sub && echo old > /x/one && chmod 600 /x/one && ln -s /tmp /x/newlink
        COPY dir /x
        COPY b.txt /x/one
        COPY a.txt /x/sub/deep/three
        """,
        TREE,
    ),
    Case(
        "copy-workdir-relative",
        """FROM busybox
        WORKDIR /work/here
        COPY a.txt .
        COPY b.txt ./
        COPY dir sub
        COPY a.txt ../up.txt
        WORKDIR below
        COPY a.txt file
        COPY dir/sub ./
        """,
        TREE,
    ),
    Case(
        "copy-owners",
        """FROM busybox
        COPY --chown=www-data a.txt /a
        COPY --chown=www-data:audio a.txt /b
        COPY --chown=33 a.txt /c
        COPY --chown=33:7 dir /new/dir
        COPY --chown=daemon:5 dir/one /new/dir/one
        COPY --chmod=0511 a.txt /d
        COPY --chmod=750 dir/sub /modes
        COPY closed /new-closed
        COPY --chown=9 closed/ /new-closed-owned/
        COPY --chown=12:13 --chmod=604 a.txt /made/on/the/way/
        COPY --chown=www-data:nogroup twice /twice
        """,
        TREE,
    ),
    Case(
        "dockerignore",
        """FROM busybox
        COPY . /all/
        COPY *.txt /texts/
        """,
        {
            **TREE,
            ".dockerignore": "# comment\n*.md\n**/two\ndir/closed\n!dir/closed/kept\n/b.txt\ndir/sub\n!dir/sub/deep\nrun.??\nlink-to-dir\n",
            "dir/closed/kept": "k",
            "dir/closed/gone": "g",
            "other/two": "2",
        },
    ),
    Case(
        "dockerignore-all-but",
        """FROM busybox
        COPY . /all/
        """,
        {**TREE, ".dockerignore": "*\n!a.txt\n!dir/sub\ndir/sub/two\n"},
    ),
    Case(
        "add-archives",
        """FROM busybox
        RUN mkdir -m 700 /there && chown 3:4 /there && echo old > /there/f
        ADD plain.tar /plain
        ADD one.tar.gz /gz/
        ADD two.tar.bz2 /bz2/
        ADD three.tar.xz /xz/
        ADD one.tar.gz plain.tar /both/
        ADD plain.tar /there
        ADD not-a-tar.gz /as-it-is/
        ADD a.txt dir /plain-files/
        RUN mkdir -p -m 700 /dotted-there /dotted-both
        ADD dotted.tar /dotted-new
        ADD dotted.tar /dotted-there
        ADD dotted.tar plain.tar /dotted-both/
        COPY plain.tar /copied/
        """,
        {
            **TREE,
            "plain.tar": contexts.archive({"d": Mode(0o750), "d/f": Mode(0o4755, "x"), "f": "f", "l": Link("d/f"), "h": Same("f")}, owner=(7, 8)),
            "dotted.tar": contexts.archive({"./": Mode(0o711), "./in": "in", "./sub/deep": "deep"}, owner=(7, 8)),
            "one.tar.gz": contexts.archive({"in/one": "1", "f": "one"}, "gz"),
            "two.tar.bz2": contexts.archive({"in/two": "2"}, "bz2"),
            "three.tar.xz": contexts.archive({"in/three": "3", "empty": None}, "xz"),
            "not-a-tar.gz": __import__("gzip").compress(b"just text", mtime=0),
        },
    ),
    Case(
        "run-changes",
        """FROM busybox
        RUN mkdir -p /d/sub /opaque/below /gone
        RUN echo 1 > /d/f && echo 2 > /opaque/f && echo 3 > /opaque/below/g && echo x > /gone/x && echo f > /plain
        RUN rm /d/f && rm -r /d/sub && echo now-a-file > /d/sub
        RUN rm /d/sub && mkdir /d/sub && echo again > /d/sub/f
        RUN rm -r /opaque && mkdir /opaque && echo new > /opaque/new
        RUN rm -r /gone && rm /plain && mkdir -p /plain/dir
        RUN rm /etc/os-release && mv /home /house
        """,
    ),
    Case(
        "run-kinds",
        """FROM busybox
        RUN echo 1 > /hard1 && ln /hard1 /hard2 && mkdir /e && ln /hard1 /e/hard3 && ln -s /e/../hard1 /soft
        RUN echo s > /setuid && chmod 4755 /setuid && echo g > /setgid && chmod 2711 /setgid && mkdir -m 1777 /sticky && chown 33:7 /setgid
        RUN mknod /fifo p && mkdir -p /empty/dir/chain
        RUN chmod 700 /root && chown 1:1 /opt && chmod 711 /
        RUN echo more >> /hard2
        """,
    ),
    Case(
        "multi-stage",
        """ARG BASE=busybox
        FROM ${BASE} AS one
        RUN mkdir -p /out/sub && echo 1 > /out/sub/f && chown -R 33:33 /out && ln -s sub/f /out/l && ln -s /out /outlink && ln /out/sub/f /out/h
        ENV FROM_ONE=1
        FROM busybox as two
        COPY --from=one /out/sub/f /two
        FROM one AS three
        COPY --from=two /two /three
        COPY --from=0 /out /zero/
        COPY --from=one /outlink /by-link/
        COPY --from=one --chown=5 /out/s*b /wild/
        COPY --from=busybox /etc/passwd /etc/passwd-copy
        COPY --from=one /out/l /from-link
        """,
    ),
    Case(
        "scopes",
        """ARG GLOBAL=global
        ARG OTHER=other
        FROM busybox
        ARG GLOBAL
        ARG OTHER=default
        ARG GIVEN=default
        ARG UNSET
        RUN echo "[$GLOBAL] [$OTHER] [$GIVEN] [$UNSET]" > /args
        ENV GIVEN=env A=1 B=$GLOBAL C="two words" D=two\\ words E=${UNSET:-none} F=${GLOBAL:+set} G='$A'
        RUN echo "[$GIVEN] [$A] [$B] [$C] [$D] [$E] [$F] [$G]" > /envs
        ENV A=2 H=$A
        ENV PATH=/more:$PATH
        RUN echo "$A $H $PATH $HOME" > /envs2
        LABEL a=$A "b c"="d e" multi="x\\
        y"
        WORKDIR /w/$A
        COPY $GLOBAL.txt /$OTHER/
        USER ${UNSET:-daemon}
        FROM busybox AS parent
        ARG GIVEN=default
        ARG OTHER=mine
        FROM parent AS child
        RUN echo "[$GIVEN] [$OTHER]" > /inherited
        FROM busybox
        COPY --from=child /inherited /inherited
        RUN echo "[$GLOBAL]" > /other-stage
        COPY --from=0 /args /envs /envs2 /from/
        COPY --from=0 /asked /asked
        """,
        {"global.txt": "g"},
        flags=("--build-arg", "GIVEN=given", "--build-arg", "OTHER=asked"),
    ),
    Case(
        "config",
        """FROM busybox
        ENV X=1
        ENTRYPOINT ["/bin/sh", "-c"]
        CMD ["echo", "$X"]
        LABEL one=1 two="2 3"
        LABEL one=changed
        EXPOSE 80 53/udp 8000-8002
        EXPOSE 443/tcp
        VOLUME /data ["/x"]
        VOLUME ["/data2", "/data3"]
        STOPSIGNAL SIGUSR1
        HEALTHCHECK --interval=5s --timeout=1m --retries=4 --start-period=2s CMD test -e /ok
        ONBUILD RUN echo $X > /onbuild
        ONBUILD COPY . /src
        MAINTAINER somebody
        USER daemon:audio
        WORKDIR /somewhere
        """,
    ),
    Case(
        "config-2",
        """FROM busybox
        CMD echo base
        SHELL ["/bin/sh", "-e", "-c"]
        RUN echo $0 $- > /shell
        ENTRYPOINT exec top
        CMD top -b
        HEALTHCHECK CMD ["true"]
        HEALTHCHECK NONE
        STOPSIGNAL 9
        ENV A B C
        """,
    ),
    Case(
        "entrypoint-clears-command",
        """FROM busybox AS base
        CMD ["base-command"]
        FROM base
        ENTRYPOINT ["/bin/echo"]
        """,
    ),
    Case(
        "onbuild",
        """FROM busybox AS base
        ONBUILD COPY a.txt /onbuild/
        ONBUILD RUN echo "$WHAT" > /triggered
        ONBUILD ENV AFTER=1
        ENV WHAT=base
        FROM base
        RUN cat /triggered > /after; echo $AFTER >> /after
        """,
        TREE,
        flags=(),
    ),
    Case(
        "users",
        """FROM busybox
        USER www-data
        WORKDIR /home/www
        WORKDIR deeper/still
        USER 12:34
        WORKDIR /numbers
        USER root
        RUN id > /id-root && mkdir -m 777 /all
        USER www-data
        RUN id > /all/id-www && echo $HOME > /all/home
        USER 12:34
        RUN id -u > /all/id-12 && id -g >> /all/id-12
        COPY a.txt /copied-as-user
        """,
        TREE,
    ),
    Case(
        "legacy-whole",
        """FROM busybox AS first
        RUN mkdir /made && echo x > /made/f && chmod 4711 /made/f
        COPY dir /copied
        FROM busybox
        ARG WHO=nobody
        LABEL who=$WHO
        COPY --from=first /made /made
        COPY --chown=33:7 twice /twice
        ADD a.txt /add/
        COPY *.txt link-to-file /wild/
        RUN rm /add/a.txt && echo $WHO > /who
        VOLUME /v
        EXPOSE 1-3
        CMD exec sleep 1
        """,
        TREE,
        legacy=True,
        flags=("--build-arg", "WHO=me"),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def module_machine(run_directory: Path, busybox_image: Path) -> Iterator[Machine]:
    """One home for all cases, with busybox."""
    with machine(run_directory, "build-parity") as place:
        assert place.command("load", "-i", busybox_image).returncode == 0
        yield place


@pytest.fixture(scope="module")
def docker(dockerd: Docker, busybox_image: Path) -> Docker:
    """The peer, with the same busybox."""
    dockerd("load", "-i", str(busybox_image))
    return dockerd


def client() -> str:
    """Debian's own command, which has BuildKit built in, before newer ones that want a plugin."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else str(tiers.program("docker"))


def of_docker(docker: Docker, case: Case, context: Path) -> tuple[bytes, dict[str, Any], int]:
    """Its files, its config and how many lines its history has."""
    command = [client(), "--host", f"unix://{docker.socket_path}"]
    environment = {"PATH": tiers.SEARCH_PATH, "DOCKER_BUILDKIT": "0" if case.legacy else "1", "HOME": str(context.parent)}
    words = ["build", "--network=none", "-q", "--force-rm", "-t", case.name, "-f", str(context / "Containerfile"), *case.flags, str(context)]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    name = docker("create", "--entrypoint", "x", case.name, "x").stdout.strip()
    try:
        exported = subprocess.run([*command, "export", name], capture_output=True, check=True).stdout
    finally:
        docker("rm", name)
    [inspected] = json.loads(docker("image", "inspect", case.name).stdout)
    return exported, inspected["Config"], lines_of_history(docker, case.name)


def lines_of_history(docker: Docker, name: str) -> int:
    """How many there are."""
    return len(docker("history", "-q", name).stdout.splitlines())


def normal(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something."""
    return {name: config[name] for name in _FIELDS if config.get(name) not in (None, [], {}, "")}


def containerfile(text: str) -> str:
    """A text of the table as a file."""
    return "\n".join(line.strip() for line in text.splitlines()) + "\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_as_docker(module_machine: Machine, docker: Docker, tmp_path: Path, case: Case) -> None:
    context = contexts.fill(tmp_path / "context", {"Containerfile": containerfile(case.text), **case.files})
    exported, config, history = of_docker(docker, case, context)
    archive = tmp_path / "root.tar"
    output = ("-o", "type=image", "-o", f"type=tar,dest={archive}", "-o", f"type=docker,dest={archive}.docker")
    built = module_machine.command("build", "-q", "--network=none", *case.flags, *output, "-t", case.name, context)
    assert built.returncode == 0, built.stderr
    ours, theirs = contexts.tree(archive.read_bytes()), contexts.tree(exported)
    different = [path for path in sorted(ours.keys() | theirs.keys()) if ours.get(path) != theirs.get(path)]
    assert not different, "\n".join(f"{path}: bulle {ours.get(path)}, docker {theirs.get(path)}" for path in different)
    [inspected] = json.loads(module_machine.command("image", "inspect", case.name).stdout)
    assert normal(inspected["Config"]) == normal(config)
    assert f"Loaded image: {case.name}:latest" in docker("load", "-i", f"{archive}.docker").stdout
    assert lines_of_history(docker, case.name) == history
    assert inspected["Id"] == built.stdout.strip()
    module_machine.command("rmi", case.name)
