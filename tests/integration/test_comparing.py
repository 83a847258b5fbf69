"""``bulle compare`` through the command line: what it measures at every level that runs here, its forms, and that nothing of it is left."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from bulle.engine.drivers import LEVELS, driver_for
from bulle.isolation.driver import Feature
from bulle.model.comparison import Comparison, Level
from bulle_testing import foreign, places
from bulle_testing.running import PATIENCE_S, Machine, Terminal, wait_for

COMPARE_S = 550
pytestmark = pytest.mark.slow
SVG = "{http://www.w3.org/2000/svg}svg"
LOCAL_WORK = {"processor", "system_call", "disk_write", "disk_read", "small_files", "sync"}
OF_NETWORK = {"network_receive", "network_send", "network_round_trip"}


def compared(place: Machine, *arguments: str | Path) -> Comparison:
    """The result of one command line, read as strictly as its type says."""
    done = place.command("compare", "--json", "--runs", "1", *arguments, timeout_s=COMPARE_S)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return msgspec.json.decode(done.stdout, type=Comparison)


def level_of(found: Comparison, name: str) -> Level:
    level = found.level(name)
    assert level is not None, [one.name for one in found.levels]
    return level


def usable(place: Machine) -> dict[str, frozenset[Feature]]:
    probes = {name: driver_for(name, place.home).probe() for name in LEVELS}
    return {name: probe.features for name, probe in probes.items() if probe.usable}


def lightest(place: Machine) -> str:
    """The level that starts fastest, for tests of what is the same at each."""
    return list(usable(place))[-1]


@pytest.fixture(scope="module")
def page(run_directory: Path) -> Path:
    return run_directory / "comparison.html"


@pytest.fixture(scope="module")
def everything(module_machine: Machine, page: Path) -> Iterator[Comparison]:
    """All levels, measured once for all tests of this module that only read the result; on a network of their own where they can have one."""
    bridged = any(Feature.NETWORKS in features for features in usable(module_machine).values())
    usual = module_machine.environment["BULLE_NETWORK"]
    module_machine.environment["BULLE_NETWORK"] = "bridge" if bridged else usual
    try:
        yield compared(module_machine, "--html", page, "busybox")
    finally:
        module_machine.environment["BULLE_NETWORK"] = usual
        page.unlink(missing_ok=True)


def test_every_level_stands_in_the_result(box: Machine, everything: Comparison) -> None:
    names = LEVELS[::-1]
    assert [level.name for level in everything.levels] == ["bare host", *names]
    assert everything.level("bare host") == everything.levels[0]
    for level in everything.levels[1:]:
        probe = driver_for(level.name, box.home).probe()
        assert level.usable == probe.usable, level.reason
        assert bool(level.reason) != level.usable
        assert level.hypervisor == probe.hypervisor
    assert everything.runs == 1
    assert everything.image_id == box.engine.images.get("busybox").id


def test_all_is_measured_where_a_level_runs(box: Machine, everything: Comparison) -> None:
    for level in everything.levels:
        if not level.usable:
            continue
        assert level.start is not None, level.name
        assert level.memory is not None, level.name
        assert level.storage is not None, level.name
        assert level.system_calls is not None, level.name
        assert 0 < level.start.warm_ms.p50 <= level.start.whole_ms.p50
        assert level.start.warm_ms.samples == 1
        assert level.memory.fitting_copies == level.memory.available_bytes // level.memory.copy_bytes
        assert level.memory.copy_bytes == level.memory.workload_bytes + level.memory.monitor_bytes + level.memory.kernel_bytes
        assert level.memory.workload_bytes > 0
        assert level.costs.keys() | level.cost_reasons.keys() == LOCAL_WORK | OF_NETWORK
        assert level.costs.keys() >= LOCAL_WORK
        for cost in level.costs.values():
            assert 0 < cost.ms.least <= cost.ms.p50 <= cost.ms.most
            assert cost.ms.samples == everything.rounds
            assert cost.times_host is not None
            assert (cost.times_host == 1) == level.bare or cost.times_host > 0


def test_what_is_shared_is_what_the_level_says(box: Machine, everything: Comparison) -> None:
    host = everything.levels[0]
    assert host.seen is not None
    assert host.seen.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert host.seen.namespaces["net"] == os.readlink("/proc/self/ns/net").partition(":")[2].strip("[]")
    assert host.seen.processes > 1
    for name, features in usable(box).items():
        level = level_of(everything, name)
        assert level.seen is not None
        assert (level.shared["kernel"] == "own") == (level.seen.boot_id != host.seen.boot_id), name
        assert level.shared["files"] == "own", name
        for what, feature in (("processes", Feature.OWN_PROCESSES), ("network", Feature.OWN_NETWORK), ("host name", Feature.OWN_HOSTNAME)):
            assert (level.shared[what] == "own") == (feature in features), (name, what)
        if level.shared["processes"] == "own" and level.shared["kernel"] == "shared":
            assert level.seen.processes < 5
        assert level.seen.host_devices < host.seen.host_devices or host.seen.host_devices < 10


def test_refused_system_calls_are_those_of_the_filter(box: Machine, everything: Comparison) -> None:
    host = everything.levels[0]
    assert host.system_calls is not None
    assert host.system_calls.refused == ()
    for name in usable(box):
        level = level_of(everything, name)
        assert level.system_calls is not None
        if level.shared["kernel"] == "own":
            continue
        assert level.system_calls.reachable == host.system_calls.reachable - len(level.system_calls.refused)
        # What every program needs, and what the default profile keeps from a container without a capability for it.
        assert not {"read", "openat", "execve", "clone", "futex", "mmap", "exit_group"} & set(level.system_calls.refused)
        if os.geteuid() == 0:
            assert {"bpf", "keyctl", "mount", "perf_event_open", "reboot", "swapon", "userfaultfd"} <= set(level.system_calls.refused)


def test_uses_follow_from_what_was_measured(box: Machine, everything: Comparison) -> None:
    uses = {use.name: use for use in everything.uses}
    assert len(uses) == len(everything.uses) > 5
    assert all(use.reason for use in everything.uses)
    assert {use.level for use in everything.uses} <= {"", *usable(box)}
    own_kernels = [level.name for level in everything.levels if level.shared.get("kernel") == "own"]
    assert (uses["another kernel or operating system"].level in own_kernels) == bool(own_kernels)
    assert not own_kernels or uses["code that is not trusted"].level in own_kernels


def test_the_page_is_whole_and_shows_each_level(box: Machine, everything: Comparison, page: Path) -> None:
    text = page.read_text()
    tree = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))
    said = " ".join(tree.itertext())
    for level in everything.levels:
        assert level.name in said
        assert level.usable or level.reason in said
    assert "<script" not in text
    assert not [word for word in ("http://", "https://", "url(", "@import", "src=") if word in text], "it needs nothing from elsewhere"
    plots = list(tree.iter(SVG))
    assert len(plots) == 4
    for plot in plots:
        names = " ".join(plot.itertext())
        assert all(level.name in names for level in everything.levels if level.usable and not level.bare), plot.get("aria-label")
        assert "nan" not in ElementTree.tostring(plot, encoding="unicode")
    document = msgspec.json.decode(next(tree.iter("pre")).text or "", type=Comparison)
    assert document == everything


def test_nothing_is_left_after_it(box: Machine, everything: Comparison) -> None:
    assert box.engine.containers.list(all=True) == []
    assert layers(box) == {one.encoded for one in box.engine.images.get("busybox").layers}
    assert workspaces_with_files(box) == []


def layers(place: Machine) -> set[str]:
    return set(os.listdir(place.home / "layers/sha256"))


def workspaces_with_files(place: Machine) -> list[str]:
    """Processes that live keep an empty one."""
    return [str(path) for path in (place.home / "tmp").glob("*/*")]


def test_a_table_for_people_and_nothing_else_on_a_pipe(box: Machine) -> None:
    name = lightest(box)
    done = box.command("compare", "--runs=1", "--levels", name, "busybox", "--", "sh", "-c", "exit 3", timeout_s=COMPARE_S)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    head = next(line for line in lines if "bare host" in line).split()
    assert head == ["bare", "host", name]
    assert next(line for line in lines if line.strip().startswith("exit code")).split() == ["exit", "code", "-", "3"]
    assert "the command is not run without isolation unless --on-host says so" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    assert {level for level in LEVELS if f" {level} " in done.stdout.split("What suits")[0].replace("\n", " ")} == {name}


def test_the_command_on_the_bare_host_too(box: Machine, tmp_path: Path) -> None:
    name = lightest(box)
    made = tmp_path / "made"
    found = compared(box, "--levels", name, "--on-host", "busybox", "--", "sh", "-c", f"echo here > {made} && exit 5; exit 6")
    host, level = found.levels
    assert host.work is not None
    assert level.work is not None
    assert host.work.exit_codes == (5,)
    assert level.work.exit_codes == (6,), "it has no such directory"
    assert made.read_text() == "here\n"


def test_a_command_that_is_not_there(box: Machine) -> None:
    name = lightest(box)
    level = level_of(compared(box, "--levels", name, "busybox", "no-such-command"), name)
    assert level.usable
    assert level.work is None
    assert "no-such-command" in level.work_reason


def test_an_image_without_a_shell(box: Machine, tmp_path: Path) -> None:
    """Whatever it holds, and whoever its user is: what measures comes with Bulle."""
    archive = tmp_path / "empty.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(member := tarfile.TarInfo("data"), io.BytesIO(b"x" * member.size))
    box.command("import", "--change", "USER 1234", "--change", 'ENTRYPOINT ["/nowhere"]', archive, "nothing").check_returncode()
    try:
        names = list(reversed(usable(box)))[:2]
        found = compared(box, "--levels", ",".join(names), "nothing")
        assert [level.name for level in found.levels if level.usable and level.start] == ["bare host", *names]
    finally:
        box.command("rmi", "nothing").check_returncode()


def test_levels_and_images_that_are_not(box: Machine, tmp_path: Path) -> None:
    for arguments, sentence in (
        (["--levels", "bubble", "busybox"], "bulle: there is no isolation level 'bubble'; use one of "),
        (["--pull=never", "no-such-image"], "bulle: no such image: no-such-image"),
        (["--runs", "0", "busybox"], "bulle: invalid argument"),
        ([], "bulle: 'bulle compare' requires at least 1 argument"),
    ):
        done = box.command("compare", *arguments)
        assert done.returncode in (1, 125)
        assert done.stdout == ""
        assert done.stderr.startswith(sentence), done.stderr


@pytest.mark.root
@pytest.mark.programs("setpriv")
def test_a_level_that_cannot_run_stands_in_the_table_with_the_reason(box: Machine) -> None:
    line = ["setpriv", "--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot", *places.command_line()]
    done = subprocess.run(
        [*line, "compare", "--levels=chroot", "--runs=1", "--json", "busybox"],
        env=box.environment, capture_output=True, text=True, timeout=COMPARE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Comparison)
    level = level_of(found, "chroot")
    assert (level.usable, level.start, level.costs) == (False, None, {})
    assert level.reason == "chroot needs the capability CAP_SYS_CHROOT"
    assert level.mend == "run as root"
    assert found.levels[0].usable


def test_a_live_line_on_a_terminal(box: Machine) -> None:
    name = lightest(box)
    terminal = Terminal(box, "compare", "--runs=1", "--levels", name, "busybox")
    try:
        terminal.expect("bare host: first start")
        terminal.expect(f"{name}: start 1 of 1")
        terminal.expect("\r\x1b[Kbusybox: A first start", COMPARE_S)
    finally:
        assert terminal.wait() == 0


def test_without_a_spawner(box: Machine) -> None:
    box.environment["BULLE_NO_SPAWNER"] = "1"
    try:
        name = lightest(box)
        assert level_of(compared(box, "--levels", name, "busybox"), name).usable
    finally:
        del box.environment["BULLE_NO_SPAWNER"]


def test_a_page_that_cannot_be_written_is_known_at_once(box: Machine, tmp_path: Path) -> None:
    begin = time.monotonic()
    done = box.command("compare", "--html", tmp_path / "nowhere/page.html", "busybox")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bulle: "), done.stderr
    assert "nowhere" in done.stderr
    assert time.monotonic() - begin < PATIENCE_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_comparison_leaves_nothing(box: Machine, number: signal.Signals) -> None:
    before = layers(box)
    running = box.start_command("compare", "--runs=10000", "busybox", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: len(os.listdir(box.home / "containers")) > 0, "a container of the comparison")
        time.sleep(0.3)
        running.send_signal(number)
        out, said = running.communicate(timeout=PATIENCE_S)
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        running.wait()
    assert running.returncode in (128 + number, -number), said
    assert (out, said) == (b"", b"")
    wait_for(lambda: box.engine.containers.list(all=True) == [], "no container is left")
    wait_for(lambda: layers(box) == before, "the layer is gone")
    wait_for(lambda: workspaces_with_files(box) == [], "no file is left")


def test_what_a_killed_comparison_leaves_is_collected(box: Machine) -> None:
    before = layers(box)
    running = box.start_command("compare", "--runs=10000", "busybox", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(os.listdir(box.home / "containers")) > 0, "a container of the comparison")
    running.kill()
    running.wait()

    def collected() -> bool:
        box.command("image", "prune", "--force").check_returncode()
        return box.engine.containers.list(all=True) == [] and layers(box) == before

    wait_for(collected, "what it left is collected")


@pytest.mark.root
def test_the_network_is_measured_against_the_host(box: Machine, everything: Comparison) -> None:
    names = [name for name, features in usable(box).items() if Feature.NETWORKS in features]
    for name in names:
        level = level_of(everything, name)
        assert (level.network, level.cost_reasons) == ("bridge", {}), level
        assert level.costs.keys() >= OF_NETWORK


@pytest.mark.root
@pytest.mark.programs("qemu-aarch64-static")
def test_an_image_for_another_processor(box: Machine, tmp_path: Path) -> None:
    """The program that measures is there for its processor too, and says what it sees."""
    box.engine.images.load(foreign.archive(tmp_path, "arm64", "arm64:latest"))
    found = compared(box, "--levels", "container", "--platform", "linux/arm64", "arm64:latest")
    level = level_of(found, "container")
    assert level.usable and level.seen is not None and level.seen.machine == "aarch64", level
    cost = level.costs["processor"]
    assert cost.times_host is not None and cost.times_host > 1.2, "nothing was emulated"
    assert found.environment.accelerator.partition(":")[0] in ("kvm", "tcg")
