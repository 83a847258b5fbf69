"""Sandboxes in a program: what they hold back, what they keep within bounds, and what is left of them, which is nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle import aio
from bulle.isolation.driver import Feature
from bulle_testing import leaks, places
from bulle_testing.running import LEVELS, Machine, usable, wait_for

pytestmark = pytest.mark.user_namespaces


@pytest.fixture
def here(module_machine: Machine) -> Iterator[Machine]:
    """The module's machine, where limits can be set."""
    yield module_machine
    module_machine.close_test()


@pytest.fixture
def words(here: Machine) -> dict[str, Any]:
    """What every sandbox of this machine is made with: limits only where the user may set them."""
    features = usable(LEVELS[0], here.home)
    limits = {"memory": Feature.MEMORY_LIMIT, "cpus": Feature.CPU_LIMIT, "pids": Feature.PIDS_LIMIT}
    lacking = {name: None for name, feature in limits.items() if feature not in features}
    return {"home": here.home, "timeout": 20, **lacking}


@pytest.fixture
def box(here: Machine, words: dict[str, Any]) -> Iterator[bulle.Sandbox]:
    with bulle.sandbox("busybox", **words) as made:
        yield made


def shell(box: bulle.Sandbox, script: str, **options: Any) -> str:
    done = box.run(["sh", "-c", script], **options)
    assert done.exit_code == 0, done
    return done.stdout.decode()


def test_a_run_is_its_exit_code_and_its_two_streams(box: bulle.Sandbox) -> None:
    done = box.run(["sh", "-c", "cat; echo wrong >&2; exit 3"], input=b"said\n", environment={"WORD": "x"})
    assert (done.exit_code, done.stdout, done.stderr, done.timed_out, done.output_exceeded) == (3, b"said\n", b"wrong\n", False, False)
    assert shell(box, "echo $WORD; pwd", environment={"WORD": "given"}, working_directory="/tmp") == "given\n/tmp\n"


def test_files_and_what_runs_stay_from_run_to_run(box: bulle.Sandbox) -> None:
    shell(box, "echo kept > file; sleep 1000 &")
    assert shell(box, "cat file; pidof sleep | wc -w") == "kept\n1\n"


def test_large_input_and_output_at_once(box: bulle.Sandbox) -> None:
    content = os.urandom(1 << 20) * 8
    done = box.run(["cat"], input=content, max_output=1 << 30)
    assert done.stdout == content
    # And the same of bulle.run, whose command answers before all of its input was given.
    assert bulle.run("busybox", ["cat"], input=content, home=box._home).stdout == content


def test_what_runs_inside_has_no_privileges(box: bulle.Sandbox) -> None:
    status = dict(line.split(":\t", 1) for line in shell(box, "cat /proc/self/status").splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert shell(box, "ls /sys/class/net") == "lo\n"
    assert "4294967295" not in shell(box, "cat /proc/self/uid_map")
    assert box.run(["touch", "/bin/new"]).exit_code != 0
    assert box.run(["mount", "-t", "tmpfs", "none", "/tmp"]).exit_code != 0


def test_a_run_ends_with_its_time_and_takes_all_that_it_started_along(box: bulle.Sandbox) -> None:
    began = time.monotonic()
    done = box.run(["sh", "-c", "echo before; (setsid sleep 1001 &) ; setsid sh -c 'trap : TERM; sleep 1002' & sleep 1003"], timeout=0.5)
    assert (done.timed_out, done.exit_code, done.stdout) == (True, 137, b"before\n")
    assert time.monotonic() - began < 60
    assert box.run(["pidof", "sleep"]).stdout == b""


@pytest.mark.alone
def test_a_fork_bomb_ends_with_its_time(box: bulle.Sandbox, words: dict[str, Any]) -> None:
    if "pids" in words:
        pytest.skip("no limit on processes can be set here")
    done = box.run(["sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 100"], timeout=0.5)
    assert done.timed_out
    wait_for(lambda: box.run(["pidof", "sh", "sleep"]).stdout == b"", "all of them end")


def test_output_is_bounded(box: bulle.Sandbox) -> None:
    began = time.monotonic()
    done = box.run(["yes"], max_output=1000)
    assert (done.output_exceeded, done.timed_out, done.exit_code, len(done.stdout)) == (True, False, 137, 1000)
    assert time.monotonic() - began < 60
    assert shell(box, "echo on") == "on\n"


def test_memory_is_bounded_also_what_is_in_files(here: Machine, words: dict[str, Any]) -> None:
    if "memory" in words:
        pytest.skip("no limit on memory can be set here")
    with bulle.sandbox("busybox", **words | {"memory": "24m", "disk": "16m"}) as box:
        done = box.run(["tail", "/dev/zero"])
        assert (done.exit_code, done.out_of_memory) == (137, True)
        assert box.run(["dd", "if=/dev/zero", "of=/work/large", "bs=1M", "count=20"]).exit_code != 0
        assert int(shell(box, "wc -c < /work/large")) <= 16 << 20
        assert not box.run(["false"]).out_of_memory


def test_the_first_process_obeys_only_the_outside(box: bulle.Sandbox) -> None:
    shell(box, "sleep 1000 & kill -USR1 1; kill -TERM 1; kill -9 1; sleep 0.1")
    assert shell(box, "pidof sleep | wc -w") == "1\n"


def test_files_go_in_and_out(box: bulle.Sandbox) -> None:
    box.write("deep/down/program", "#!/bin/sh\necho run\n", mode=0o755)
    assert shell(box, "./deep/down/program; stat -c %u:%g:%a deep/down/program") == "run\n0:0:755\n"
    shell(box, "printf '\\0\\377' > answer; chmod 600 answer")
    assert box.read("answer") == b"\0\xff"
    box.write("answer", b"shorter"[:1])
    assert box.read("/work/answer") == b"s"


KERNELS_FILES = ("/proc/1/oom_score_adj", "/proc/self/fd/1", "/proc/sys/kernel/hostname", "/dev/null", "/dev/zero", "/sys/kernel/uevent_seqnum")


@pytest.mark.parametrize("target", KERNELS_FILES)
def test_links_in_the_sandbox_lead_to_no_file_of_the_kernel(box: bulle.Sandbox, target: str) -> None:
    shell(box, f"ln -sf {target} link")
    for act in (lambda: box.read("link"), lambda: box.write("link", b"1")):
        with pytest.raises(bulle.BulleError):
            act()


def test_links_in_the_sandbox_stay_in_it(box: bulle.Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    shell(box, f"ln -s {secret} file; ln -s / root; ln -s ../../../../../../../{tmp_path} directory; ln -s /proc/1/root magic")
    for path in ("file", "directory/secret", f"root{secret}", f"../../..{secret}", f"magic{secret}"):
        with suppress(bulle.BulleError):  # or it makes and reads a file of this name in the sandbox
            box.write(path, b"changed")
        with suppress(bulle.BulleError):
            assert box.read(path) == b"changed"
    assert secret.read_text() == "the host's"


def test_nothing_in_the_sandbox_makes_the_program_wait(box: bulle.Sandbox) -> None:
    shell(box, "mkfifo pipe")
    began = time.monotonic()
    for act in (lambda: box.read("pipe"), lambda: box.write("pipe", b"x")):
        with pytest.raises(bulle.BulleError, match="no regular file"):
            act()
    shell(box, "dd if=/dev/zero of=sparse bs=1 count=1 seek=1000000000000 2>/dev/null; true")
    with pytest.raises(bulle.BulleError):
        box.read("sparse", most_bytes=1000)
    assert time.monotonic() - began < 60


def test_a_path_that_changes_all_the_time(box: bulle.Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    shell(box, f"mkdir good; echo inside > good/secret; ln -s {tmp_path} bad; (while :; do ln -sfn good at; ln -sfn bad at; done) > /dev/null 2>&1 &")
    seen = set()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        with suppress(bulle.BulleError):
            seen.add(box.read("at/secret"))
        with suppress(bulle.BulleError):
            box.write("at/secret", b"inside\n")
    assert seen <= {b"inside\n", b""}
    assert secret.read_text() == "the host's"


def test_a_user_of_its_own(here: Machine, words: dict[str, Any]) -> None:
    with bulle.sandbox("busybox", user="1000:1000", **words) as box:
        box.write("mine", "x", mode=0o600)
        assert shell(box, "id -u; stat -c %u mine; umask 077; echo theirs > answer; sleep 1000 &") == "1000\n1000\n"
        assert box.read("answer") == b"theirs\n"
        assert box.run(["sh", "-c", "sleep 1001 & sleep 1001"], timeout=0.3).timed_out
        assert box.run(["pidof", "sleep"]).stdout == b""


def test_an_image_without_a_shell(here: Machine, words: dict[str, Any], tmp_path: Path) -> None:
    import io
    import tarfile

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    archive = tmp_path / "empty.tar"
    archive.write_bytes(content.getvalue())
    here.command("import", archive, "empty:latest")
    try:
        with bulle.sandbox("empty:latest", writable=True, **words) as box:
            with pytest.raises(bulle.BulleError, match="command not found"):
                box.run(["sh"])
            box.write("/etc/new", b"made")
            assert box.read("/etc/new") == b"made"
    finally:
        here.command("rmi", "empty:latest")


def test_words_that_cannot_be(here: Machine, words: dict[str, Any], box: bulle.Sandbox) -> None:
    for wrong in ({"memory": "much"}, {"timeout": 0}, {"disk": "-1"}, {"nonsense": 1}, {"isolation": "chroot", "network": "host"}):
        with pytest.raises(bulle.BulleError):
            bulle.sandbox("busybox", **words | wrong)
    for command in ("sh -c x", []):
        with pytest.raises(bulle.BulleError, match="list of words"):
            box.run(command)
    with pytest.raises(bulle.BulleError, match="no time"):
        box.run(["true"], timeout=-2)
    with pytest.raises(bulle.BulleError, match="command not found"):
        box.run(["nonsense"])


def test_an_ended_sandbox_says_so(here: Machine, words: dict[str, Any]) -> None:
    with bulle.sandbox("busybox", **words) as box:
        assert [container.id for container in here.engine.containers.list()] == [box.container.id]
        box.container.kill()
        wait_for(lambda: not box.alive, "the sandbox is killed")
        for act in (lambda: box.run(["true"]), lambda: box.read("x"), lambda: box.write("x", b"")):
            with pytest.raises(bulle.BulleError, match="has ended"):
                act()
    box.close()
    assert here.engine.containers.list(all=True) == []


def test_closing_ends_a_run_in_another_thread(here: Machine, words: dict[str, Any]) -> None:
    box = bulle.sandbox("busybox", **words)
    ended: list[object] = []

    def work() -> None:
        try:
            ended.append(box.run(["sleep", "1000"]).exit_code)
        except bulle.BulleError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    box.close()
    thread.join(10)
    assert ended == [137]


PROGRAM = """
import bulle, os, sys
box = bulle.sandbox("busybox", home=sys.argv[1], memory=None, cpus=None, pids=None)
print(box.container.id, flush=True)
{then}
"""


RUN = "bulle.run('busybox', ['sleep', '1000'], home=sys.argv[1])"


@pytest.mark.parametrize("then", ["box.run(['sleep', '1000'])", "import time; time.sleep(1000)", RUN])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_program(here: Machine, then: str, by: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(then=then), str(here.home)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    identifier = process.stdout.readline().decode().strip()
    wait_for(lambda: any(c.id == identifier for c in here.engine.containers.list()), "the sandbox runs")
    time.sleep(0.3)
    process.send_signal(by)
    process.wait(10)
    process.stdout.close()
    wait_for(lambda: not here.engine.containers.list(all=True), "its containers are gone")


def test_a_pool_gives_each_sandbox_once(here: Machine, words: dict[str, Any]) -> None:
    seen = set()
    with bulle.SandboxPool("busybox", size=2, **words) as pool:
        for _ in range(5):
            with pool.take() as box:
                assert box.run(["ls", "/work"]).stdout == b""
                box.write("left", b"behind")
                seen.add(box.container.id)
            assert not box.alive

        def waiting() -> list[bulle.Container]:
            return [one for one in here.engine.containers.list() if one.id not in seen]  # what was closed may still be on its way out

        wait_for(lambda: pool.ready == 2 == len(waiting()), "two wait")
        killed = waiting()[0]
        killed.kill()
        with pool.take() as one, pool.take() as other:
            assert killed.id not in {one.container.id, other.container.id}
            assert one.run(["true"]).exit_code == other.run(["true"]).exit_code == 0
    assert len(seen) == 5
    with pytest.raises(bulle.BulleError, match="closed"):
        pool.take()


def test_a_pool_tells_why_none_starts(here: Machine, words: dict[str, Any]) -> None:
    with bulle.SandboxPool("nonsense", size=1, pull="never", **words) as pool:
        for _ in range(2):
            with pytest.raises(bulle.BulleError, match="nonsense"):
                pool.take()


def test_hundreds_in_a_row_leave_nothing(here: Machine, words: dict[str, Any]) -> None:
    """Descriptors, control groups, mounts and processes are those of before; how many is what 20 seconds allow."""
    with bulle.SandboxPool("busybox", size=3, **words) as pool:
        with pool.take() as box:
            box.run(["true"])
        wait_for(lambda: pool.ready == 3 == len(os.listdir(here.home / "containers")), "three wait")
        before, groups = len(os.listdir("/proc/self/fd")), set(leaks._control_groups())
        spawner = places.spawner_pid(here.home)
        held = len(os.listdir(f"/proc/{spawner}/fd")) if spawner else 0
        count, deadline = 0, time.monotonic() + 20
        while count < 100 or (count < 500 and time.monotonic() < deadline):
            with pool.take() as box:
                box.write("in", str(count))
                assert box.run(["cat", "in"]).stdout == str(count).encode()
            count += 1
        wait_for(lambda: pool.ready == 3 == len(os.listdir(here.home / "containers")), "three wait again")
        # One more: the store makes its own directory when it first needs it.
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, "the program holds no more than before")

        def abandoned() -> list[str]:
            new = set(leaks._control_groups()) - groups
            waiting = os.listdir(here.home / "containers")
            return [group for group in new if Path(group).name not in waiting and leaks._abandoned(group, here.home.parent)]

        wait_for(lambda: not abandoned(), "the control groups are removed")
        assert places.spawner_pid(here.home) == spawner
        wait_for(lambda: not spawner or len(os.listdir(f"/proc/{spawner}/fd")) <= held + 4, "the spawner holds no more than before")
    wait_for(lambda: not os.listdir(here.home / "containers"), "nothing is left")


def test_asyncio_runs_side_by_side(here: Machine, words: dict[str, Any]) -> None:
    begun, ended = [], []

    async def one(number: int, together: asyncio.Barrier) -> bytes:
        async with aio.sandbox("busybox", **words) as box:
            await box.write("number", str(number))
            await together.wait()
            begun.append(time.monotonic())
            done = await box.run(["sh", "-c", "sleep 0.3; cat number"])
            ended.append(time.monotonic())
            return done.stdout + await box.read("number")

    async def all_of_them() -> list[bytes]:
        together = asyncio.Barrier(4)
        results = await asyncio.gather(*(one(number, together) for number in range(4)))
        assert max(begun) < min(ended), "none waits for another's end"
        return list(results)

    assert asyncio.run(all_of_them()) == [f"{number}{number}".encode() for number in range(4)]


def test_cancelling_kills_what_was_waited_for(here: Machine, words: dict[str, Any]) -> None:
    async def go() -> None:
        async with aio.sandbox("busybox", **words) as box:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(box.run(["sh", "-c", "setsid sleep 1000 & sleep 1000"]), 0.4)
            assert (await box.run(["pidof", "sleep"])).stdout == b""
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aio.run("busybox", ["sleep", "1000"], home=here.home), 0.4)
        starting = asyncio.ensure_future(aio.sandbox("busybox", **words).__aenter__())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(go())
    wait_for(lambda: not here.engine.containers.list(all=True), "all are gone")


def test_asyncio_pool_and_run(here: Machine, words: dict[str, Any]) -> None:
    async def go() -> bytes:
        async with aio.SandboxPool("busybox", size=2, **words) as pool, pool.take() as box:
            said = (await box.run(["echo", "pooled"])).stdout
        return said + (await aio.run("busybox", ["cat"], input=b"plain\n", home=here.home)).stdout

    assert asyncio.run(go()) == b"pooled\nplain\n"


def examples() -> list[tuple[str, str]]:
    """The programs of docs/sandbox.md, each with what its comments say that it prints."""
    text = (places.SOURCE / "docs" / "sandbox.md").read_text()
    found = []
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        said = [line.partition("  # ")[2] for line in program.splitlines() if "print(" in line and "  # " in line]
        found.append((program, "\n".join(said) + "\n"))
    return found


@pytest.mark.parametrize("number", range(len(examples())))
def test_documented_programs_print_what_the_page_says(home: Path, number: int) -> None:
    if LEVELS[0].probe(home).features.isdisjoint({Feature.MEMORY_LIMIT}):
        pytest.skip("no limit on memory can be set here")
    program, expected = examples()[number]
    done = subprocess.run([sys.executable, "-c", program], env=places.environment(home), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
