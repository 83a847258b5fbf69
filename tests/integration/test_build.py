"""``bulle build`` through the command line: mounts and what cannot leave them, secrets, the cache, outputs, errors and their aftermath."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle_testing import contexts, peers, places, tiers
from bulle_testing.contexts import Files, Link, Mode
from bulle_testing.running import Machine, Terminal, machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("busybox")]
ISOLATIONS = pytest.mark.parametrize("isolation", ["container", "chroot"])
SECRET = "correct-horse-battery"


@pytest.fixture(scope="module")
def module_machine(run_directory: Path, busybox_image: Path) -> Iterator[Machine]:
    """One home with busybox."""
    with machine(run_directory, "build") as place:
        assert place.command("load", "-i", busybox_image).returncode == 0
        yield place


@pytest.fixture
def builder(module_machine: Machine, tmp_path: Path) -> Iterator[Builder]:
    """Builds of one test; whatever they came to, nothing of them is left but images and the cache."""
    made = Builder(module_machine, tmp_path / "context")
    yield made
    module_machine.close_test()
    assert list((module_machine.home / "tmp").glob("*/*")) == []


class Builder:
    """A context, and the command on it."""

    def __init__(self, place: Machine, directory: Path) -> None:
        self.place, self.directory = place, directory

    def run(self, text: str, *flags: str | Path, files: Files | None = None, isolation: str = "") -> subprocess.CompletedProcess[str]:
        """Build and return the finished command."""
        contexts.fill(self.directory, {"Containerfile": text, **(files or {})})
        level = ("--isolation", isolation) if isolation else ()
        network = "host" if isolation == "chroot" else "none"
        return self.place.command("build", f"--network={network}", *level, *flags, self.directory)

    def good(self, text: str, *flags: str | Path, files: Files | None = None, isolation: str = "") -> str:
        """Build what must succeed; returns what it said of its steps, the id of the image is in ``image``."""
        done = self.run(text, *flags, files=files, isolation=isolation)
        assert done.returncode == 0, done.stderr
        self.image = done.stdout.strip()
        return done.stderr

    def bad(self, text: str, *flags: str | Path, files: Files | None = None) -> str:
        """Build what must fail, leaving no image; returns its error."""
        before = self.place.command("images", "-aq").stdout
        done = self.run(text, *flags, files=files)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert self.place.command("images", "-aq").stdout == before
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]


def kept(said: str) -> list[str]:
    """The steps that came from the cache."""
    names = dict(re.findall(r"^#(\d+) \[\S+ \S+\] (.*)$", said, re.M))
    return [names[number] for number in re.findall(r"^#(\d+) CACHED$", said, re.M)]


# Mounts


@ISOLATIONS
def test_mounts_show_what_they_say(builder: Builder, isolation: str) -> None:
    said = builder.good(
        """FROM busybox AS stage
RUN mkdir /out && echo from-stage > /out/f
FROM busybox
RUN --mount=target=/c cat /c/f /c/d/g && ! touch /c/new
RUN --mount=target=/c,rw touch /c/new && test -e /c/new
RUN --mount=target=/c ! test -e /c/new
RUN --mount=from=stage,source=out,target=/c cat /c/f
RUN --mount=from=busybox,source=/etc/passwd,target=/p grep -c root /p
RUN --mount=type=tmpfs,target=/t,size=1m ! dd if=/dev/zero of=/t/f bs=1M count=2 2>/dev/null
RUN --mount=type=cache,target=/k,uid=33,gid=7,mode=0711,id=ISO stat -c "%u:%g %a" /k && echo kept > /k/f
RUN --mount=type=cache,target=/other,id=ISO,ro cat /other/f && ! touch /other/g
RUN --mount=type=cache,target=/l,from=stage,source=/out,id=filled-ISO cat /l/f
RUN --mount=type=cache,target=/a,id=ISO,sharing=locked --mount=type=cache,target=/b,id=ISO,sharing=locked cat /a/f /b/f
""".replace("ISO", isolation),
        isolation=isolation,
        files={"f": "context-file\n", "d/g": "below\n"},
    )
    for text in ("context-file", "below", "from-stage", "33:7 711", "kept"):
        assert f" {text}\n" in said
    assert builder.place.command("run", "--rm", builder.image, "ls", "/").stdout.split() == sorted(
        {*builder.place.command("run", "--rm", "busybox", "ls", "/").stdout.split(), "c", "t", "k", "other", "l", "a", "b", "p"}
        - {"c", "t", "k", "other", "l", "a", "b", "p"}
    ), "what mounts stood on is in no layer"


@ISOLATIONS
def test_secrets_are_seen_by_their_step_and_nowhere_else(builder: Builder, isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(SECRET)
    builder.place.environment["BUILD_TOKEN"] = SECRET[::-1]
    try:
        said = builder.good(
            f"""FROM busybox
RUN --mount=type=secret,id=one wc -c < /run/secrets/one; stat -c "%u %a" /run/secrets/one; # {isolation}
RUN --mount=type=secret,id=one,target=/x/y,uid=33,mode=0440 stat -c "%u %a" /x/y
RUN --mount=type=secret,id=two,env=TOKEN test ${{#TOKEN}} -eq {len(SECRET)} && echo has-variable
RUN test -z "$TOKEN" && ! test -e /run/secrets/one && ! test -e /x/y
RUN --mount=type=secret,id=absent ! test -e /run/secrets/absent
""",
            *("--secret", f"id=one,src={tmp_path}/secret", "--secret", "id=two,env=BUILD_TOKEN", "--no-cache", "-t", f"secrets-{isolation}"),
            isolation=isolation,
        )
    finally:
        del builder.place.environment["BUILD_TOKEN"]
    assert {f" {len(SECRET)}\n" in said, " 0 400\n" in said, " 33 440\n" in said, " has-variable\n" in said} == {True}
    values = (SECRET.encode(), SECRET[::-1].encode())
    assert not any(value.decode() in said for value in values)
    looked = 0
    for path in builder.place.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            looked += 1
            assert not any(value in content for value in values), path
    assert looked > 5
    assert "required" in builder.bad("FROM busybox\nRUN --mount=type=secret,id=nix,required true")


@pytest.mark.programs("ssh-agent", "ssh-add", "ssh-keygen")
@ISOLATIONS
def test_the_agent_is_reachable_for_its_step(builder: Builder, isolation: str, tmp_path: Path) -> None:
    listening = tmp_path / "agent"
    agent = subprocess.Popen([str(tiers.program("ssh-agent")), "-D", "-a", str(listening)], stdout=subprocess.DEVNULL)
    try:
        wait_for(listening.exists, "the agent listens")
        key, environment = tmp_path / "key", {**os.environ, "SSH_AUTH_SOCK": str(listening)}
        subprocess.run([str(tiers.program("ssh-keygen")), "-q", "-t", "ed25519", "-N", "", "-C", "the-key", "-f", str(key)], check=True)
        subprocess.run([str(tiers.program("ssh-add")), "-q", str(key)], env=environment, check=True)
        program = str(tiers.program("ssh-add"))
        libraries = re.findall(r"(/\S+)", subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout)
        said = builder.good(
            f"""FROM busybox
COPY root /
RUN --mount=type=ssh ssh-add -l && ssh-add -l # {isolation}
RUN test -z "$SSH_AUTH_SOCK"
""",
            "--ssh",
            f"default={listening}",
            files={f"root{library}": Mode(0o755, Path(library).read_bytes()) for library in libraries}
            | {"root/bin/ssh-add": Mode(0o755, Path(program).read_bytes())},
            isolation=isolation,
        )
        assert said.count(" the-key (ED25519)") == 2
    finally:
        agent.terminate()
        agent.wait()


def test_nothing_leads_out_of_the_context(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("the host's")
    files: Files = {
        "absolute": Link("/etc/hostname"),
        "up": Link("../outside"),
        "root": Link("/"),
        "dir/etc": Link("/etc"),
        "etc/hostname": "the context's",
        "out.tar": contexts.archive({"l": Link("/"), "l2": Link("../../..")}),
        "dots.tar": contexts.archive({"../../escaped": "x"}),
        "through.tar": contexts.archive({"l": Link("/"), "l/escaped": "x"}),
    }
    hostname = Path("/etc/hostname").read_text()
    builder.good(
        """FROM busybox
COPY absolute dir/etc/hostname /copied/
COPY root/etc/hostname /through-root
RUN --mount=source=root,target=/m test "$(cat /m/etc/hostname)" = "the context's"
RUN --mount=source=dir,target=/m test "$(readlink /m/etc)" = /etc
ADD out.tar /out/
RUN test "$(cat /copied/* /through-root)" = "the context'sthe context'sthe context's" && test "$(readlink /out/l)" = /
""".replace("COPY absolute dir/etc/hostname /copied/", "COPY absolute /copied/a\nCOPY dir/etc/hostname /copied/b"),
        files=files,
    )
    for line in ("COPY up /x", "COPY ../outside /x", "RUN --mount=source=up,target=/m cat /m", "ADD dots.tar /x"):
        assert "Containerfile:2: " in builder.bad(f"FROM busybox\n{line}\n")
    builder.run("FROM busybox\nADD through.tar /x/\n")  # refused or kept inside
    assert not Path("/escaped").exists()
    assert not (tmp_path / "escaped").exists()
    assert Path("/etc/hostname").read_text() == hostname


def test_mount_targets_stay_inside(builder: Builder, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    builder.good(
        f"""FROM busybox
RUN mkdir -p {tmp_path.parent} && ln -s / /rootlink && ln -s ../../../../../.. /up
RUN --mount=type=cache,target=/rootlink{marker} --mount=type=tmpfs,target=/up{marker}2 touch {marker}/f
""",
    )
    assert not marker.exists()
    assert not Path(f"{marker}2").exists()


# The cache


TWO = "FROM busybox\nCOPY a /a\nRUN cat /a > /b\nCOPY c /c\nRUN cat /c > /d\n"


def test_cache_is_about_content(builder: Builder) -> None:
    files: dict[str, str] = {"a": "a-content", "c": "c"}
    builder.good(TWO, files=files)
    first = builder.image
    assert len(kept(builder.good(TWO, files=files))) == 4
    os.utime(builder.directory / "a", (1, 1))
    assert len(kept(builder.good(TWO))) == 4
    assert builder.image == first
    said = builder.good(TWO, "--explain", files={"c": "changed"})
    assert kept(said) == ["COPY a /a", "RUN cat /a > /b"]
    assert "not cached: file c changed" in said
    assert "not cached: what it stands on changed" in said
    (builder.directory / "a").chmod(0o600)
    assert kept(builder.good(TWO)) == []
    assert kept(builder.good(TWO, "--no-cache")) == []


def test_cache_outlives_the_image(builder: Builder) -> None:
    builder.good(TWO, "-t", "shortlived", files={"a": "rmi", "c": "rmi"})
    assert builder.place.command("rmi", "-f", builder.image).returncode == 0
    assert len(kept(builder.good(TWO))) == 4


def test_cache_goes_on_after_a_step_that_comes_to_the_same(builder: Builder) -> None:
    text = "FROM busybox\nRUN : the step %s\nRUN echo after > /after\n"
    builder.good(text % "before")
    said = builder.good(text % "now", "--explain")
    assert kept(said) == ["RUN echo after > /after"]
    assert "not cached: the instruction changed: it was RUN" in said


def test_arguments_count_for_what_can_see_them(builder: Builder) -> None:
    text = "FROM busybox\nRUN echo before-arg\nARG N\nRUN echo after-arg\n"
    builder.good(text, "--build-arg", "N=1")
    said = builder.good(text, "--build-arg", "N=2", "--explain")
    assert kept(said) == ["RUN echo before-arg"]
    assert "not cached: argument N changed" in said


def test_no_cache_for_one_stage(builder: Builder) -> None:
    text = "FROM busybox AS One\nRUN echo one-f > /f\nFROM busybox AS two\nRUN echo two-f > /g\nCOPY --from=one /f /f\n"
    builder.good(text)
    assert "RUN echo two-f > /g" in kept(builder.good(text, "--no-cache-filter", "One"))
    assert "RUN echo one-f > /f" in kept(builder.good(text, "--no-cache-filter", "other,two"))


def test_link_with_a_name_of_the_base(builder: Builder) -> None:
    text = "FROM busybox\nRUN sed -i s/:33:33:/:ID:ID:/ /etc/passwd\nCOPY --link --chown=www-data a /a\nRUN stat -c uid=%u /a\n"
    for number in ("33", "44"):
        assert f" uid={number}\n" in builder.good(text.replace("ID", number), files={"a": "link"})


def test_order_of_sources_counts(builder: Builder) -> None:
    text = "FROM busybox\nARG A\nARG B\nCOPY $A $B /d/\nRUN cat /d/f; echo\n"
    files = {"x/f": "is-x", "y/f": "is-y"}
    assert " is-y\n" in builder.good(text, "--build-arg=A=x", "--build-arg=B=y", files=files)
    assert " is-x\n" in builder.good(text, "--build-arg=A=y", "--build-arg=B=x", files=files)


def test_two_at_once_run_a_step_once(builder: Builder, tmp_path: Path) -> None:
    contexts.fill(builder.directory, {"Containerfile": f"FROM busybox\nRUN sleep 0.3; echo {tmp_path} | sha256sum > /f; date +%N >> /f\n"})
    both = [builder.place.start_command("build", "-q", builder.directory, stdout=subprocess.PIPE) for _ in range(2)]
    ids = {process.communicate(timeout=240)[0] for process in both}
    assert len(ids) == 1
    assert ids != {b""}


def test_stages_wait_only_for_what_they_take(builder: Builder) -> None:
    # Each needs the other to be running at the same time: one after the other would never end.
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor runs one step at a time")
    mount = "--mount=type=cache,target=/c,id=meeting"
    wait = "for i in $(seq 200); do test -e /c/{0} && exit 0; sleep 0.05; done; exit 1"
    said = builder.good(
        f"""FROM busybox AS one
RUN {mount} touch /c/one; {wait.format("two")}
FROM busybox AS two
RUN {mount} touch /c/two; {wait.format("one")}
FROM busybox
COPY --from=one /etc/passwd /1
COPY --from=two /etc/passwd /2
"""
    )
    assert "ERROR" not in said


def test_caches_locked_in_two_orders_end(builder: Builder) -> None:
    a, b = (f"--mount=type=cache,sharing=locked,target=/{name}" for name in "ab")
    work = "sleep 0.05; echo done"
    text = "".join(f"FROM busybox AS s{n}\nRUN {x} {y} {work} {n}\n" for n, (x, y) in enumerate([(a, b), (b, a), (a, b), (b, a)]))
    builder.good(text + "FROM busybox\n" + "".join(f"COPY --from=s{n} /etc/group /g{n}\n" for n in range(4)), "--no-cache")


def test_of_stages_with_one_name_the_nearest_before_counts(builder: Builder) -> None:
    text = "FROM busybox AS x\nRUN echo first-x > /f\nFROM busybox AS y\nCOPY --from=x /f /f\nFROM y AS x\nRUN cat /f\n"
    assert " first-x\n" in builder.good(text)


# The same bytes


def test_two_homes_come_to_the_same_bytes(builder: Builder, run_directory: Path, busybox_image: Path, tmp_path: Path) -> None:
    text = "FROM busybox\nWORKDIR /made/here\nCOPY . /all/\nRUN echo x > /all/x && mkdir /all/new\nLABEL a=b\n"
    builder.good(text, files={"f": "f", "d/g": "g"})  # without the epoch first: its layers must not be taken
    results = []
    with machine(run_directory, "build-second") as second:
        assert second.command("load", "-i", busybox_image).returncode == 0
        for number, place in enumerate((builder.place, second)):
            for path in builder.directory.rglob("*"):
                os.utime(path, (2_000_000_000 + number, 2_000_000_000 + number))
            target = tmp_path / f"{number}.oci"
            output = ("-o", f"type=oci,dest={target}", "-o", "type=image")
            environment = place.environment | {"SOURCE_DATE_EPOCH": "1700000000"}
            place.environment, before = environment, place.environment
            try:
                done = place.command("build", "-q", "--network=none", *output, builder.directory)
            finally:
                place.environment = before
            assert done.returncode == 0, done.stderr
            results.append((done.stdout, target.read_bytes()))
        second.close_test()
    assert results[0][0] == results[1][0]
    assert results[0][1] == results[1][1]


# Outputs, contexts, errors


def test_outputs_are_read_by_others(builder: Builder, tmp_path: Path) -> None:
    outputs = [f"type={kind},dest={tmp_path}/{kind}" for kind in ("oci", "docker", "tar", "local")]
    builder.good(
        "FROM busybox\nCOPY f /f\nRUN ln -s f /l && chmod 4711 /f\n",
        *(word for output in outputs for word in ("-o", output)),
        *("-t", "named:1", "--label", "who=me", "--annotation", "note=x", "--iidfile", str(tmp_path / "id")),
        files={"f": "hello"},
    )
    assert (tmp_path / "id").read_text() == builder.image
    assert (tmp_path / "local/l").read_text() == "hello"
    assert (tmp_path / "local/f").stat().st_mode & 0o7777 == 0o4711
    with tarfile.open(tmp_path / "tar") as tar:
        assert tar.getmember("f").mode == 0o4711
    with tarfile.open(tmp_path / "oci") as tar:
        index = json.load(tar.extractfile("index.json") or pytest.fail("no index"))
        digest = index["manifests"][0]["digest"].replace(":", "/")
        assert json.load(tar.extractfile(f"blobs/{digest}") or pytest.fail("no manifest"))["annotations"] == {"note": "x"}
    assert builder.place.command("images", "-q", "named").stdout == "", "what goes elsewhere is not in the store"
    assert "named:1" in builder.place.command("load", "-i", tmp_path / "docker").stdout
    inspected = json.loads(builder.place.command("inspect", "named:1").stdout)[0]
    assert (inspected["Id"], inspected["Config"]["Labels"]) == (builder.image, {"who": "me"})
    if skopeo := tiers.program("skopeo"):
        for kind in ("oci-archive", "docker-archive"):
            source = f"{kind}:{tmp_path}/{kind.partition('-')[0]}"
            subprocess.run([skopeo, "--insecure-policy", "inspect", source], check=True, capture_output=True)


def test_output_to_a_fifo_leaves_it(builder: Builder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "copy").open("wb") as copy, subprocess.Popen(["cat", str(tmp_path / "fifo")], stdout=copy) as reader:
        builder.good("FROM busybox\nCOPY f /fifo-f\n", "-o", f"type=tar,dest={tmp_path}/fifo", files={"f": "1"})
        assert reader.wait(20) == 0
    assert "fifo-f" in contexts.tree((tmp_path / "copy").read_bytes())
    assert (tmp_path / "fifo").is_fifo()


def test_standard_input(builder: Builder, tmp_path: Path) -> None:
    place = builder.place
    assert place.command("build", "-q", "-", input="FROM busybox\nRUN echo alone\n").returncode == 0
    contexts.fill(builder.directory, {"f": "f"})
    assert place.command("build", "-q", "-f", "-", builder.directory, input="FROM busybox\nCOPY f /f\n").returncode == 0
    packed = contexts.archive({"Containerfile": "FROM nothing-like-it\n", "sub/File": "FROM busybox\nCOPY sub/File /f\n"}, "gz")
    line = [*places.command_line(), "build", "-q", "-f", "sub/File", "-"]
    contexts.fill(tmp_path / "elsewhere", {"sub/File": "FROM the-wrong-one\n"})
    done = subprocess.run(line, env=place.environment, input=packed, capture_output=True, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine, and its directory."""
    directory = tmp_path / "served"
    directory.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", directory
        finally:
            server.shutdown()
            thread.join()


def test_files_by_http(builder: Builder, served: tuple[str, Path]) -> None:
    address, directory = served
    (directory / "file").write_text("by http")
    digest = subprocess.run(["sha256sum", str(directory / "file")], capture_output=True, text=True, check=True).stdout.split()[0]
    builder.good(f'FROM busybox\nADD --checksum=sha256:{digest} {address}/file /d/\nRUN test "$(cat /d/file)" = "by http"\n')
    assert "Containerfile:2: " in builder.bad(f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {address}/file /d/\n")
    assert "404" in builder.bad(f"FROM busybox\nADD {address}/nothing /d/\n")


@pytest.mark.programs("git")
def test_repository_and_its_directories(builder: Builder, served: tuple[str, Path], tmp_path: Path) -> None:
    _address, directory = served
    work = contexts.fill(
        tmp_path / "work",
        {"sub/Containerfile": "FROM busybox\nCOPY . /src/\nRUN test -e /src/here && ! test -e /src/.git\n", "sub/here": "", "out": Link("/etc")},
    )
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["clone", "-q", "--bare", ".", str(directory / "repo.git")]):
        subprocess.run([*git, *words], cwd=work, check=True, capture_output=True)
    with ServingGit(directory) as port:
        done = builder.place.command("build", "-q", f"git://127.0.0.1:{port}/repo.git#main:sub")
        assert done.returncode == 0, done.stderr
        for outside in ("out", "../..", "sub/../../../etc"):
            done = builder.place.command("build", "-q", f"git://127.0.0.1:{port}/repo.git#main:{outside}")
            assert done.returncode == 1
            assert "Traceback" not in done.stderr


class ServingGit:
    """``git daemon`` on a port of its own."""

    def __init__(self, directory: Path) -> None:
        self._port = peers.free_port()
        words = ["--reuseaddr", "--listen=127.0.0.1", f"--port={self._port}", f"--base-path={directory}", "--export-all", str(directory)]
        # The program itself, not git, which would outlive a signal to its parent.
        place = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
        self._process = subprocess.Popen([f"{place}/git-daemon", *words], stderr=subprocess.DEVNULL)

    def __enter__(self) -> int:
        def answers() -> bool:
            with socket.socket() as connection:
                return connection.connect_ex(("127.0.0.1", self._port)) == 0

        wait_for(answers, "git daemon listens")
        return self._port

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def test_contexts_by_name(builder: Builder, tmp_path: Path) -> None:
    contexts.fill(tmp_path / "other", {"f": "other", "no": "", ".dockerignore": "no\n"})
    text = "FROM base\nCOPY --from=more . /more/\nRUN cat /more/f && ! test -e /more/no\n"
    builder.good(text, "--build-context", f"more={tmp_path}/other", "--build-context", "base=docker-image://busybox")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("FROM busybox\n\nRUN echo said && exit 3\n", 3, "exit code 3"),
        ("FROM busybox\nCOPY absent /x\n", 2, "absent"),
        ("FROM busybox\nCOPY *.absent /x/\n", 2, "absent"),
        ("FROM busybox\nNOSUCH x\n", 2, "NOSUCH"),
        ("FROM busybox\nCOPY --chown=nosuch f /x\n", 2, "nosuch"),
        ("FROM busybox\nCOPY f /etc/passwd/below\n", 2, "passwd"),
        ("FROM busybox\nWORKDIR /etc/passwd\n", 2, "passwd"),
        ("FROM busybox\nCOPY f /new\nRUN [\"/nothing\"]\n", 3, "/nothing"),
        ("FROM busybox\nCOPY --from=busybox /etc/passwd/x /y\n", 2, "passwd"),
        ("FROM busybox\nADD broken.tar.gz /x/\n", 2, "broken"),
        ("FROM busybox\nEXPOSE nothing\n", 2, "nothing"),
        ("FROM busybox AS a\nONBUILD COPY --from=0 /x /y\nFROM busybox AS b\nFROM a\n", 0, ""),
    ],
)  # fmt: skip
def test_errors_say_where(builder: Builder, text: str, line: int, word: str) -> None:
    broken = contexts.archive({"f": "f" * 100_000, "g": os.urandom(50_000)}, "gz")[:20_000]
    error = builder.bad(text, files={"f": "f", "broken.tar.gz": broken})
    assert word in error
    if line:
        assert error.startswith(f"bulle: Containerfile:{line}: "), error


@ISOLATIONS
def test_interrupt_ends_the_step(builder: Builder, isolation: str) -> None:
    contexts.fill(builder.directory, {"Containerfile": "FROM busybox\nRUN sleep 98765 & sleep 98765\n"})
    process = builder.place.start_command("build", "--isolation", isolation, builder.directory, stderr=subprocess.PIPE)
    wait_for(lambda: len(sleepers()) == 2, "both run")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode != 0
    assert time.monotonic() - began < 60
    wait_for(lambda: not sleepers(), "both have ended")
    wait_for(lambda: builder.place.command("ps", "-aq").stdout == "", "the step's container is gone")


def sleepers() -> list[str]:
    """The processes of the test above."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\x0098765\0":
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_the_same_layer_twice(builder: Builder) -> None:
    builder.good("FROM busybox\nRUN true\nRUN echo\nRUN : ; ls /\n", "-t", "thrice")
    assert builder.place.command("run", "--rm", "thrice", "echo", "runs").stdout == "runs\n"
    assert builder.place.command("run", "--rm", "--isolation=chroot", "thrice", "echo", "runs").stdout == "runs\n"


# Progress


def test_progress_on_a_pipe_and_on_a_terminal(builder: Builder) -> None:
    text = "FROM busybox\nRUN echo some output; sleep 0.4\n"
    done = builder.run(text, "--no-cache")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.stdout)
    assert re.search(r"^#2 \[stage-0 2/2\] RUN echo some output; sleep 0.4\n#2 [\d.]+ some output\n#2 DONE", done.stderr, re.M)
    assert "\x1b" not in done.stderr
    quiet = builder.run(text, "-q")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")
    terminal = Terminal(builder.place, "build", "--no-cache", str(builder.directory))
    try:
        terminal.expect("[stage-0 2/2] RUN echo some output")
        terminal.expect("some output")
        terminal.expect("sha256:")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_an_argument_that_nothing_declares_is_named(builder: Builder) -> None:
    assert "NOBODY" in builder.good("FROM busybox\nCOPY f /\n", "--build-arg", "NOBODY=1", files={"f": "x"})


@pytest.mark.programs("setpriv")
def test_an_ordinary_user_builds(run_directory: Path, busybox_image: Path) -> None:
    directory = run_directory / "ordinary"
    context = contexts.fill(
        directory,
        {
            "context/Containerfile": """FROM busybox
COPY f /f
RUN --mount=type=secret,id=s --mount=type=cache,target=/c --mount=target=/m,rw cat /run/secrets/s /m/f > /c/f && touch /m/new && cp /c/f /g
RUN rm /f && mkdir /f && test "$(cat /g)" = "textf-content" && id -u
""",
            "context/f": "f-content",
            "secret": "text",
        },
    )
    home = directory / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 23456, 23456)
    busybox_image.chmod(0o644)
    words = ["setpriv", "--reuid=23456", "--regid=23456", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--", *places.command_line()]
    environment = {**places.environment(home), "HOME": str(home)}
    run = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, cwd=directory, timeout=240)
    try:
        loaded = run([*words, "load", "-i", str(busybox_image)])
        if loaded.returncode:
            tiers.give_up("user_namespaces", f"another user cannot run this installation: {loaded.stderr}")
        built = run([*words, "build", "--secret", "id=s,src=secret", str(context / "context")])
        assert built.returncode == 0, built.stderr
        assert re.search(r"^#4 [\d.]+ 0$", built.stderr, re.M)
        assert (run([*words, "ps", "-aq"]).stdout, list((home / "tmp").glob("*/*"))) == ("", [])
    finally:
        assert places.close_home(home) == []
