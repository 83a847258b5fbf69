"""Capabilities: Docker's rules of adding and dropping, and what is left of a process that gave them up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from bulle.errors import InvalidInput
from bulle.linux import capabilities
from bulle.linux.capabilities import CAPABILITIES, DOCKER_DEFAULT, apply, drop_bounding, known, mask, names_of, of_process, parse_caps, set_current


def in_child(body: Callable[[], object]) -> object:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, json.dumps(body()).encode())
        except BaseException as error:  # noqa: BLE001 -- reported to the parent
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def test_the_default_is_dockers_fourteen() -> None:
    assert parse_caps() == DOCKER_DEFAULT
    assert mask(DOCKER_DEFAULT) == 0xA80425FB


def test_names_with_and_without_prefix_in_any_case() -> None:
    assert parse_caps(add=["net_admin"]) == parse_caps(add=["CAP_NET_ADMIN"]) == parse_caps(add=["Net_Admin"])
    assert "CAP_NET_ADMIN" in parse_caps(add=["NET_ADMIN"])
    assert "CAP_CHOWN" not in parse_caps(drop=["chown"])


def test_all_as_docker_means_it() -> None:
    assert parse_caps(drop=["ALL"]) == ()
    assert parse_caps(add=["NET_RAW", "CHOWN"], drop=["all"]) == ("CAP_CHOWN", "CAP_NET_RAW")
    assert parse_caps(add=["ALL"]) == known()
    assert set(known()) - set(parse_caps(add=["CAP_ALL"], drop=["SYS_ADMIN"])) == {"CAP_SYS_ADMIN"}
    assert parse_caps(add=["ALL"], drop=["ALL"]) == known()
    assert parse_caps(add=["KILL"], drop=["KILL"]) == DOCKER_DEFAULT
    assert parse_caps(drop=["ALL"], privileged=True) == known()


@pytest.mark.parametrize("arguments", [{"add": ["CAP_FLY"]}, {"drop": ["NET_RAW,CHOWN"]}, {"add": [""]}, {"add": ["CAP_FLY"], "privileged": True}])
def test_a_name_that_no_kernel_has(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="capability"):
        parse_caps(**arguments)  # type: ignore[arg-type]


def test_a_name_that_this_kernel_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "known", lambda: CAPABILITIES[:38])
    with pytest.raises(InvalidInput, match="this kernel"):
        parse_caps(add=["BPF"])
    assert len(parse_caps(add=["ALL"])) == 38


def test_masks_and_names_are_each_others_inverse() -> None:
    assert names_of(mask(CAPABILITIES)) == CAPABILITIES
    assert names_of(1 << 63) == ()
    assert mask(["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]) == 1 | 1 << 40


def test_the_table_is_that_of_the_kernel() -> None:
    from pathlib import Path

    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    defined = [line.split() for line in header.read_text().splitlines() if line.startswith("#define CAP_")]
    numbers = {words[1]: int(words[2]) for words in defined if len(words) == 3 and words[2].isdigit()}
    assert {name: number for name, number in numbers.items() if CAPABILITIES[number] != name} == {}


@pytest.mark.root
def test_a_container_keeps_what_is_asked_and_nothing_else() -> None:
    def body() -> object:
        left_out = apply(DOCKER_DEFAULT, DOCKER_DEFAULT, DOCKER_DEFAULT)
        return [left_out, of_process()]

    sets = dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), 0xA80425FB) | {"CapInh": 0, "CapAmb": 0}
    assert in_child(body) == [[], sets]


@pytest.mark.root
def test_everything_can_be_dropped() -> None:
    def body() -> object:
        apply((), (), ())
        return of_process()

    assert in_child(body) == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)


@pytest.mark.root
def test_another_user_has_nothing_but_the_bounding_set() -> None:
    """The order of a driver: bounding set, user, current sets. As in Docker since 2022 nothing is inheritable or ambient."""

    def body() -> object:
        drop_bounding(DOCKER_DEFAULT)
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        set_current((), ())
        return of_process()

    assert in_child(body) == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0xA80425FB, "CapAmb": 0}


@pytest.mark.root
def test_what_is_not_there_to_have_is_named() -> None:
    """Root in somebody else's container lacks some: the rest is set all the same."""

    def body() -> object:
        few = ("CAP_CHOWN", "CAP_SETPCAP")
        apply(few, few, few)
        return [set_current(DOCKER_DEFAULT, DOCKER_DEFAULT), of_process()["CapEff"]]

    assert in_child(body) == [[name for name in DOCKER_DEFAULT if name not in ("CAP_CHOWN", "CAP_SETPCAP")], mask(["CAP_CHOWN", "CAP_SETPCAP"])]


@pytest.mark.root
def test_inheritable_and_ambient_sets_of_the_caller_are_lost() -> None:
    def body() -> object:
        set_current(DOCKER_DEFAULT, DOCKER_DEFAULT, DOCKER_DEFAULT)
        before = capabilities.libc.prctl(47, 2, capabilities.NUMBER["CAP_KILL"], 0, 0)  # PR_CAP_AMBIENT_RAISE
        raised = of_process()["CapAmb"]
        set_current(DOCKER_DEFAULT, DOCKER_DEFAULT)
        return [before, raised, of_process()["CapAmb"], of_process()["CapInh"]]

    assert in_child(body) == [0, mask(["CAP_KILL"]), 0, 0]


def test_dropping_without_the_right_to_says_so() -> None:
    def body() -> object:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            drop_bounding(())
        except OSError as error:
            return str(error)
        return "dropped"

    assert "PR_CAPBSET_DROP" in str(in_child(body))
