"""Control groups without a kernel: what is read of /proc, what Docker's limits become, and both layouts on ordinary directories."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from bulle.errors import BulleError, InvalidInput, Unavailable
from bulle.isolation import control_group_scope
from bulle.isolation.control_group import ControlGroup, LayoutV1, LayoutV2, check
from bulle.isolation.control_group_settings import DEVICE_RULES, parse_cpuset, settings_v1, settings_v2, weight
from bulle.linux.control_group import Hierarchy, parse_hierarchies
from bulle.linux.device_filter import DeviceRule, assemble
from bulle.model.run_plan import Resources

MIB = 1 << 20
EVERYTHING = Resources(memory_bytes=64 * MIB, nano_cpus=500_000_000, cpu_shares=512, cpuset_cpus="0", pids_limit=50)

HYBRID = """\
24 1 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
35 24 0:28 / /mnt/with\\040space/memory rw,relatime - cgroup cgroup rw,memory
"""
HYBRID_SELF = "4:memory:/docker/abc/inner\n3:cpu,cpuacct:/user.slice\n1:name=systemd:/user.slice\n0::/user.slice\n"


def written(group: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in group.iterdir() if path.is_file() and path.read_text()}


def make_files(directory: Path, **contents: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name.replace("__", ".")).write_text(content)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A tree of version 2 with the group ``bulle/c1`` made in advance, since directories here grow no files by themselves."""
    make_files(tmp_path, cgroup__controllers="cpuset cpu io memory pids", cgroup__subtree_control="cpu")
    make_files(tmp_path / "bulle", cgroup__controllers="cpu", cgroup__subtree_control="", cgroup__procs="")
    names = "cgroup.controllers cgroup.procs memory.max memory.swap.max cpu.max cpu.weight cpuset.cpus pids.max cgroup.freeze cgroup.events"
    make_files(tmp_path / "bulle/c1", **{name.replace(".", "__"): "" for name in names.split()})
    return tmp_path


def layout_v2(root: Path, **more: object) -> LayoutV2:
    return LayoutV2(Hierarchy(2, frozenset(("cpuset", "cpu", "io", "memory", "pids")), str(root), False, ""), **more)  # type: ignore[arg-type]


def test_hierarchies_of_a_hybrid_machine() -> None:
    found = {h.mount_path: h for h in parse_hierarchies(HYBRID, HYBRID_SELF)}
    assert set(found) == {"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"}
    assert found["/sys/fs/cgroup/cpu,cpuacct"].controllers == {"cpu", "cpuacct"}
    assert found["/sys/fs/cgroup/cpu,cpuacct"].own_path == "/user.slice"
    assert found["/sys/fs/cgroup/memory"] == Hierarchy(1, frozenset(["memory"]), "/sys/fs/cgroup/memory", True, "/inner")
    assert found["/sys/fs/cgroup/unified"].version == 2


def test_a_mount_elsewhere_serves_when_there_is_no_other() -> None:
    (only,) = parse_hierarchies(HYBRID.splitlines()[-1], "4:memory:/\n")
    assert (only.mount_path, only.own_path) == ("/mnt/with space/memory", "")


def test_limits_in_version_1() -> None:
    values = [(s.file, s.value) for s in settings_v1(EVERYTHING)]
    assert values == [
        ("memory.limit_in_bytes", "67108864"),
        ("memory.memsw.limit_in_bytes", "134217728"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.shares", "512"),
        ("cpuset.cpus", "0"),
        ("pids.max", "50"),
    ]
    assert settings_v1(Resources()) == settings_v2(Resources()) == []
    assert settings_v1(Resources(pids_limit=-1)) == []


def test_limits_in_version_2() -> None:
    values = [(s.file, s.value) for s in settings_v2(EVERYTHING)]
    assert values == [
        ("memory.max", "67108864"),
        ("memory.swap.max", "67108864"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "59"),
        ("cpuset.cpus", "0"),
        ("pids.max", "50"),
    ]


@pytest.mark.parametrize(
    ("total", "version_1", "version_2"),
    [(0, str(128 * MIB), str(64 * MIB)), (-1, None, "max"), (64 * MIB, str(64 * MIB), "0"), (100 * MIB, str(100 * MIB), str(36 * MIB))],
)
def test_memory_swap_is_the_sum_as_in_docker(total: int, version_1: str | None, version_2: str) -> None:
    resources = Resources(memory_bytes=64 * MIB, memory_swap_bytes=total)
    one = {s.file: s.value for s in settings_v1(resources)}
    assert one.get("memory.memsw.limit_in_bytes") == version_1
    assert {s.file: s.value for s in settings_v2(resources)}["memory.swap.max"] == version_2


def test_shares_as_weight_keep_both_ends_and_the_defaults() -> None:
    assert [weight(shares) for shares in (1, 2, 1024, 262144, 999_999)] == [1, 1, 100, 10000, 10000]
    weights = [weight(shares) for shares in range(2, 262145, 997)]
    assert weights == sorted(weights)


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory_bytes=1024),
        Resources(memory_bytes=-1),
        Resources(memory_swap_bytes=64 * MIB),
        Resources(memory_bytes=64 * MIB, memory_swap_bytes=32 * MIB),
        Resources(memory_bytes=64 * MIB, memory_swap_bytes=-2),
        Resources(nano_cpus=9_999_999),
        Resources(nano_cpus=-1),
        Resources(nano_cpus=10_000 * 10**9),
        Resources(cpu_shares=-5),
        Resources(cpuset_cpus="zero"),
        Resources(cpuset_cpus="3-1"),
        Resources(cpuset_cpus="0,"),
        Resources(cpuset_cpus="0-99999999999"),
        Resources(cpuset_cpus="9000"),
        Resources(cpuset_cpus="\u0661"),
    ],
)
def test_limits_that_cannot_be_are_refused_before_anything_is_made(resources: Resources, v2: Path) -> None:
    with pytest.raises(InvalidInput):
        ControlGroup.create("c2", resources, machine=layout_v2(v2))
    assert not (v2 / "bulle/c2").exists()


def test_lists_of_processors() -> None:
    assert parse_cpuset("0-2, 5,7-7") == {0, 1, 2, 5, 7}
    check(Resources(memory_bytes=6 * MIB, memory_swap_bytes=-1, nano_cpus=10_000_000, cpuset_cpus="0"))


def test_version_2_writes_limits_and_hands_controllers_down(v2: Path) -> None:
    group = ControlGroup.create("c1", EVERYTHING, machine=layout_v2(v2))
    try:
        made = written(v2 / "bulle/c1")
        assert made == {
            "memory.max": "67108864",
            "memory.swap.max": "67108864",
            "cpu.max": "50000 100000",
            "cpu.weight": "59",
            "cpuset.cpus": "0",
            "pids.max": "50",
        }
        assert (v2 / "cgroup.subtree_control").read_text() == "+cpuset +memory +pids"
        assert (v2 / "bulle/cgroup.subtree_control").read_text() == "+cpu +cpuset +memory +pids"
        assert os.path.samestat(os.fstat(group.clone_into_fd), (v2 / "bulle/c1").stat())
        assert group.descriptors() == []
        group.attach_self()
    finally:
        group.close()
    assert group.clone_into_fd == -1


def test_version_2_without_limits_touches_no_controller(v2: Path) -> None:
    ControlGroup.create("c2", Resources(), machine=layout_v2(v2)).close()
    assert (v2 / "bulle/c2").is_dir()
    assert (v2 / "cgroup.subtree_control").read_text() == "cpu"
    found = ControlGroup.open("c2", layout_v2(v2))
    found.close()
    assert found.remove()
    assert not (v2 / "bulle/c2").exists()
    assert found.remove()


def test_version_2_reads_what_happened(v2: Path) -> None:
    make_files(v2 / "bulle/c1", memory__events="low 0\noom 3\noom_kill 2\n", memory__current="4096\n", memory__max="max\n", pids__current="3\n")
    make_files(v2 / "bulle/c1", cpu__stat="usage_usec 1500\nuser_usec 1000\n", cgroup__procs="12\n0\n7\n", cgroup__events="populated 1\nfrozen 1\n")
    make_files(v2 / "bulle/c1/inner", cgroup__procs="99\n")
    group = ControlGroup.open("c1", layout_v2(v2))
    try:
        assert group.oom_count() == 2
        usage = group.stats()
        assert (usage.memory_bytes, usage.memory_limit_bytes, usage.cpu_ns, usage.pids) == (4096, None, 1_500_000, 3)
        assert group.processes() == [7, 12, 99]
        assert group.freeze(0) and not group.thaw(0)
        assert (v2 / "bulle/c1/cgroup.freeze").read_text() == "0"
    finally:
        group.close()


def test_swap_that_the_kernel_does_not_count_is_a_note(v2: Path) -> None:
    (v2 / "bulle/c1/memory.swap.max").unlink()
    group = ControlGroup.create("c1", Resources(memory_bytes=64 * MIB), machine=layout_v2(v2))
    group.close()
    assert "swap" in group.notes[0]


def test_a_limit_whose_controller_is_missing_raises_and_leaves_nothing(v2: Path) -> None:
    with pytest.raises(Unavailable, match=r"--memory cannot be applied.*memory\.max"):
        ControlGroup.create("c2", Resources(memory_bytes=64 * MIB), machine=layout_v2(v2))
    assert not (v2 / "bulle/c2").exists()


def test_no_groups_at_all_is_nothing_to_say_unless_a_limit_was_asked_for(tmp_path: Path) -> None:
    machine = layout_v2(tmp_path / "nowhere")
    group = ControlGroup.create("c1", Resources(), machine=machine)
    assert group.notes == []
    assert (group.processes(), group.kill(), group.remove(), group.freeze(), group.oom_count()) == ([], True, True, False, 0)
    group.attach_self()
    group.close()
    with pytest.raises(Unavailable, match="--pids-limit cannot be applied"):
        ControlGroup.create("c1", Resources(pids_limit=5), machine=machine)
    assert machine.available().controllers == frozenset()


def test_a_container_whose_processes_stand_in_the_root_cannot_limit(v2: Path) -> None:
    assert layout_v2(v2).available().controllers == {"memory", "cpu", "cpuset", "pids", "io", "freezer"}
    make_files(v2, cgroup__type="domain", cgroup__procs="1\n")
    assert "processes stand in" in layout_v2(v2).available().reason
    make_files(v2, cgroup__subtree_control="cpuset cpu io memory pids")
    assert layout_v2(v2).available().reason == ""


def test_read_only_hierarchies_are_a_reason_not_an_error() -> None:
    ro = LayoutV1((Hierarchy(1, frozenset(["memory"]), "/sys/fs/cgroup/memory", True, ""),)).available()
    assert (ro.controllers, ro.reason) == (frozenset(), "/sys/fs/cgroup/memory: read-only")
    ro2 = LayoutV2(Hierarchy(2, frozenset(["memory"]), "/sys/fs/cgroup", True, "")).available()
    assert (ro2.controllers, ro2.reason) == (frozenset(), "/sys/fs/cgroup is read-only")


@pytest.fixture
def v1(tmp_path: Path) -> LayoutV1:
    hierarchies = []
    for controllers in (("cpu", "cpuacct"), ("memory",), ("cpuset",), ("pids",), ("freezer",)):
        mount = tmp_path / ",".join(controllers)
        make_files(mount / "bulle/c1", tasks="", cgroup__procs="")
        hierarchies.append(Hierarchy(1, frozenset(controllers), str(mount), False, ""))
    make_files(tmp_path / "cpuset", cpuset__cpus="1", cpuset__mems="0")
    make_files(tmp_path / "cpuset/bulle", cpuset__cpus="", cpuset__mems="")
    for name in ("memory/bulle/c1/memory.limit_in_bytes", "memory/bulle/c1/memory.memsw.limit_in_bytes", "cpu,cpuacct/bulle/c1/cpu.cfs_quota_us"):
        (tmp_path / name).touch()
    for name in ("cpu,cpuacct/bulle/c1/cpu.shares", "cpuset/bulle/c1/cpuset.cpus", "cpuset/bulle/c1/cpuset.mems", "pids/bulle/c1/pids.max"):
        (tmp_path / name).touch()
    return LayoutV1(tuple(hierarchies))


def test_version_1_with_two_controllers_in_one_hierarchy(v1: LayoutV1, tmp_path: Path) -> None:
    group = ControlGroup.create("c1", EVERYTHING, machine=v1)
    try:
        assert written(tmp_path / "memory/bulle/c1") == {"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "134217728"}
        assert written(tmp_path / "cpu,cpuacct/bulle/c1") == {"cpu.cfs_quota_us": "50000", "cpu.shares": "512"}
        assert written(tmp_path / "cpuset/bulle/c1") == {"cpuset.cpus": "0", "cpuset.mems": "0"}
        assert written(tmp_path / "cpuset/bulle") == {"cpuset.cpus": "1", "cpuset.mems": "0"}
        assert group.clone_into_fd == -1
        group.attach_self()
        entered = [name for name in ("cpu,cpuacct", "memory", "cpuset", "pids", "freezer") if (tmp_path / name / "bulle/c1/tasks").read_text() == "0"]
        assert len(entered) == len(group.descriptors()) == 5
    finally:
        group.close()


class FakeSystemd:
    """Answers busctl's calls on a directory as systemd would on the real tree."""

    def __init__(self, scope: Path, status: int = 0) -> None:
        self.scope, self.status, self.calls, self.gone_ahead = scope, status, list[list[str]](), ""

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str]:
        self.calls.append(list(arguments))
        if self.status:
            return self.status, "Access denied"
        make_files(self.scope, cgroup__controllers="cpu memory pids", cgroup__procs="")
        if "AttachProcessesToUnit" in arguments:
            assert (self.scope / "supervisor").is_dir()
            make_files(self.scope / "supervisor", cgroup__procs=arguments[-1])
            return 0, ""
        make_files(self.scope / "supervisor", cgroup__procs="")
        self.job = threading.Timer(0.05, self.move, [arguments[-2]])
        self.job.start()
        return 0, ""

    def move(self, pid: str) -> None:
        """What the job that was asked for does a moment after the directory is there."""
        self.gone_ahead = (self.scope / "supervisor/cgroup.procs").read_text()
        (self.scope / "cgroup.procs").write_text(f"{pid}\n")


def test_systemd_is_asked_for_a_delegated_scope_once(tmp_path: Path) -> None:
    scope = Path(control_group_scope.base(str(tmp_path), 0))
    assert scope == tmp_path / "bulle.slice/bulle.scope"
    systemd = FakeSystemd(scope)
    assert control_group_scope.prepare(str(tmp_path), str(scope), run=systemd, pid=4242) == ""
    (call,) = systemd.calls
    assert call[call.index("StartTransientUnit") + 2] == "bulle.scope"
    assert call[-6:] == ["true", "PIDs", "au", "1", "4242", "0"]
    assert (scope / "supervisor/cgroup.procs").read_text() == "4242"
    systemd.job.join()
    assert systemd.gone_ahead == "", "systemd would have moved it back"
    assert control_group_scope.prepare(str(tmp_path), str(scope), run=systemd, pid=4242) == ""
    assert len(systemd.calls) == 1


def test_a_scope_that_lives_is_joined(tmp_path: Path) -> None:
    scope = tmp_path / "bulle.slice/bulle.scope"
    make_files(scope / "supervisor", cgroup__procs="")
    systemd = FakeSystemd(scope)
    assert control_group_scope.prepare(str(tmp_path), str(scope), run=systemd, pid=77) == ""
    assert systemd.calls[0][-6:] == ["AttachProcessesToUnit", "ssau", "bulle.scope", "/supervisor", "1", "77"]


def test_a_user_has_a_scope_below_the_managers_own(tmp_path: Path) -> None:
    scope = control_group_scope.base(str(tmp_path), 1000)
    assert scope == f"{tmp_path}/user.slice/user-1000.slice/user@1000.service/bulle.slice/bulle.scope"
    assert "linger" in control_group_scope.offered(str(tmp_path), scope)[1]
    make_files(tmp_path / "user.slice/user-1000.slice/user@1000.service", cgroup__controllers="memory pids")
    assert control_group_scope.offered(str(tmp_path), scope) == ({"memory", "pids"}, "")
    assert "--user" in control_group_scope.request(1000, 5, False)
    assert "--system" in control_group_scope.request(0, 5, False)


def test_containers_stand_beside_the_supervisor_in_the_scope(tmp_path: Path) -> None:
    scope = tmp_path / "bulle.slice/bulle.scope"
    make_files(tmp_path, cgroup__controllers="cpu memory pids", cgroup__subtree_control="cpu memory pids")
    systemd = FakeSystemd(scope)
    machine = layout_v2(tmp_path, base=str(scope), prepare=lambda root, base: control_group_scope.prepare(root, base, run=systemd))
    assert machine.available().controllers == {"cpu", "memory", "pids", "freezer"}
    ControlGroup.create("c1", Resources(), machine=machine).close()
    assert (scope / "c1").is_dir()
    make_files(scope, cgroup__subtree_control="")
    make_files(scope / "c2", pids__max="", cgroup__controllers="", cgroup__procs="")
    ControlGroup.create("c2", Resources(pids_limit=9), machine=machine).close()
    assert (scope / "cgroup.subtree_control").read_text() == "+pids"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "cpu memory pids"


def test_a_controller_that_was_not_handed_over_is_named(tmp_path: Path) -> None:
    """As systemd keeps cpuset from ordinary users: the kernel says that there is no such file."""
    make_files(tmp_path, cgroup__controllers="cpu memory pids", cgroup__subtree_control="cpu memory pids")
    scope = tmp_path / "bulle.slice/bulle.scope"
    make_files(scope, cgroup__controllers="cpu memory pids")
    machine = layout_v2(tmp_path, base=str(scope), prepare=lambda root, base: "")
    with pytest.raises(Unavailable, match=r"--cpuset-cpus cannot be applied: .* does not offer cpuset"):
        ControlGroup.create("c1", Resources(memory_bytes=64 * MIB, cpuset_cpus="0"), machine=machine)


def test_systemd_that_refuses_is_a_reason(tmp_path: Path) -> None:
    scope = tmp_path / "bulle.slice/bulle.scope"
    make_files(tmp_path, cgroup__controllers="cpu memory pids")
    systemd = FakeSystemd(scope, status=1)
    machine = layout_v2(tmp_path, base=str(scope), prepare=lambda root, base: control_group_scope.prepare(root, base, run=systemd))
    ControlGroup.create("c1", Resources(), machine=machine).close()
    with pytest.raises(BulleError, match="Access denied"):
        ControlGroup.create("c1", Resources(pids_limit=9), machine=machine)


def test_device_rules_in_the_words_of_version_1() -> None:
    lines = [rule.line() for rule in DEVICE_RULES]
    assert lines[:3] == ["c *:* m", "b *:* m", "c 1:3 rwm"]
    assert "c 136:* rwm" in lines
    assert len(assemble([DeviceRule("c", 1, 3, "rwm")])) == 8 * (6 + 3 + 2 + 2)
