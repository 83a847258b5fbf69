"""What is concluded from a comparison and how it is shown, for levels that this machine may not have: made up figures of the real type."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace

from bulle.cli.comparison_page import page_of
from bulle.cli.comparison_plots import LEFT, RIGHT, Scale
from bulle.cli.comparison_table import COSTS, ms, size, text_of
from bulle.engine.comparing_results import spread
from bulle.engine.comparing_sharing import seen, shared, system_calls
from bulle.engine.suitability import uses
from bulle.linux.syscall_numbers import numbers
from bulle.model.comparison import Comparison, Cost, Environment, Level, Memory, Seen, Spread, Start, Storage, SystemCalls

WORDS = ("kernel", "files", "processes", "network", "users", "host name")
MIB = 1 << 20


def level(name: str, start_ms: float, memory_bytes: int, own: str, *, slower: float = 1.0, machine: str = "x86_64", **more: object) -> Level:
    """A level with its own of the words in ``own``."""
    about = Spread(start_ms, start_ms * 2, start_ms / 2, start_ms * 3, 5)
    made = Level(
        name=name,
        usable=True,
        start=Start(start_ms * 2, about, about),
        memory=Memory(memory_bytes, memory_bytes, 0, 0, memory_bytes, 1000 * MIB, 1000 * MIB // memory_bytes, 3, 3),
        storage=Storage(4096, 0),
        costs={name: Cost("work", about, slower) for name in COSTS},
        system_calls=SystemCalls(300),
        seen=Seen(release="6.1", machine=machine, processes=7),
        shared={word: "own" if word in own.split(",") else "shared" for word in WORDS},
    )
    return replace(made, **more)


HOST = replace(level("bare host", 0.5, 50 << 10, ""), bare=True, shared={})
CHROOT = level("private root", 10, MIB, "files")
CONTAINER = level("container", 15, MIB, "files,processes,network,users,host name")
MACHINE = level("machine", 900, 100 * MIB, ",".join(WORDS), slower=2.0, hypervisor="in-kernel")
EMULATED = level("emulated", 9000, 200 * MIB, ",".join(WORDS), slower=20.0, machine="aarch64", hypervisor="emulating")
BROKEN = Level("broken", usable=False, reason="it lacks <something>", mend="apt-get install it")


def comparison(*levels: Level, image: str = "busybox") -> Comparison:
    machine = ("PC", False, "Debian", "6.1", "x86_64", "a processor", 2, 8 << 30, 4 << 30, "kvm", "ext4", "erofs", True)
    here = Environment(*machine, {"bulle": "1"}, "2026", 1.0, (0.0, 0.1), False)
    return Comparison(image, "sha256:1", ("true",), 5, 3, here, levels, uses(levels))


def chosen(*levels: Level) -> dict[str, str]:
    return {use.name: use.level for use in uses((HOST, *levels))}


def test_what_suits_follows_from_what_is_shared_and_what_it_costs() -> None:
    found = chosen(CHROOT, CONTAINER, MACHINE, EMULATED)
    assert found == {
        "trusted services of one's own": "container",
        "many small services on one machine": "container",
        "short work: builds, tests, functions": "container",
        "code that is not trusted": "machine",
        "another kernel or operating system": "machine",
        "programs for another processor": "emulated",
        "teaching, and rescue of a root file system": "private root",
    }


def test_names_of_levels_mean_nothing() -> None:
    before = chosen(CHROOT, CONTAINER, MACHINE)
    renamed = {"private root": "vm", "container": "chroot", "machine": "container", "": ""}
    after = chosen(*(replace(one, name=renamed[one.name]) for one in (CHROOT, CONTAINER, MACHINE)))
    assert after == {use: renamed[name] for use, name in before.items()}


def test_a_cheaper_machine_is_chosen_for_what_a_container_was() -> None:
    cheap = replace(level("machine", 5, MIB // 2, ",".join(WORDS), slower=0.5), hypervisor="in-kernel")
    found = chosen(CONTAINER, cheap)
    assert {use for use, name in found.items() if name == "machine"} == set(found) - {
        "programs for another processor",
        "teaching, and rescue of a root file system",
    }


def test_where_nothing_suits_that_is_said() -> None:
    assert set(chosen(BROKEN).values()) == {""}
    untrusted = next(use for use in uses((HOST, CHROOT, CONTAINER)) if use.name == "code that is not trusted")
    assert untrusted.level == "container"
    assert "300 system calls still reach it" in untrusted.reason


@pytest.mark.parametrize("levels", [(HOST,), (HOST, BROKEN), (HOST, CHROOT, CONTAINER, MACHINE, EMULATED, BROKEN)], ids=len)
def test_page_and_table_show_whatever_there_is(levels: tuple[Level, ...]) -> None:
    found = comparison(*levels, image="<b>&image\x1b[2J")
    tree = ElementTree.fromstring(page_of(found).replace("\x1b", ""))
    said = " ".join(tree.itertext())
    table = text_of(found)
    assert "\x1b" not in table
    for one in levels:
        assert one.name in said
        assert one.name in table
        assert one.reason in said
        assert one.reason in " ".join(table.split())
    assert "<b>&image" in said
    for drawn in tree.iter("svg"):
        for text in drawn.iter("text"):
            # Roughly: a letter of this size is 7 to 8 wide, and nothing may leave the picture or its column.
            begin, width = float(text.get("x", "0")), 7.3 * len("".join(text.itertext()))
            assert begin + width <= (LEFT if begin == 0 else 880 + 30), "".join(text.itertext())


@given(some.lists(some.floats(1e-3, 1e6), min_size=1), some.booleans())
def test_nothing_is_drawn_outside_of_its_column(values: list[float], logarithmic: bool) -> None:
    scale = Scale(min(values), max(values), logarithmic=logarithmic)
    places = [scale.x(value) for value in (*values, *scale.ticks())]
    assert all(LEFT <= place <= RIGHT for place in places)
    assert sorted(values) == [value for _, value in sorted(zip(map(scale.x, values), values, strict=True))]
    assert len(scale.ticks()) <= 14


def test_figures_read_well() -> None:
    assert [ms(value) for value in (0.0123, 0.5, 9.876, 123.4, 1234.0)] == ["12.3 µs", "500 µs", "9.88 ms", "123 ms", "1.23 s"]
    assert [size(value) for value in (0, 4096, 1.5 * MIB)] == ["0 B", "4 KiB", "1.5 MiB"]
    assert spread([3, 1, 2]) == Spread(2, 3, 1, 3, 3)
    assert spread([float(number) for number in range(1, 101)]).p95 == 95


def facts(boot: str, **spaces: str) -> list[tuple[str, str]]:
    return [("release", "6.1"), ("version", "#1"), ("boot", boot), *(("namespace", f"{name}:[{number}]") for name, number in spaces.items())]


def test_namespaces_are_only_compared_within_one_kernel() -> None:
    host = seen(facts("a", pid="1", net="2"))
    assert shared(seen(facts("a", pid="1", net="3"), host), host)["processes"] == "shared"
    assert shared(seen(facts("a", pid="1", net="3"), host), host)["network"] == "own"
    # Every kernel gives its first namespaces the same numbers.
    other = shared(seen(facts("b", pid="1", net="2"), host), host)
    assert set(other.values()) == {"own"}
    assert shared(seen(facts("", pid="1"), host), host)["kernel"] == "unknown"
    assert shared(seen([("release", "5.0")], host), host)["kernel"] == "own"


def test_system_calls_are_counted_by_what_became_of_them() -> None:
    table = numbers("x86_64")
    host, inside = ["."] * 512, ["."] * 512
    for name, outcome in (("read", "r"), ("mount", "p"), ("bpf", "k"), ("keyctl", ".")):
        host[table[name]], inside[table[name]] = "r", outcome
    host[table["kexec_load"]] = "p"
    found = system_calls("".join(inside), "x86_64", "".join(host), "x86_64")
    assert (found.reachable, found.refused) == (1, ("bpf", "keyctl", "mount"))
    # Another processor numbers them differently, and lacks what it never had.
    inside = ["."] * 512
    inside[numbers("aarch64")["read"]] = "r"
    host[table["open"]] = "r"
    found = system_calls("".join(inside), "aarch64", "".join(host), "x86_64")
    assert (found.reachable, found.refused) == (1, ("bpf", "keyctl", "mount"))
