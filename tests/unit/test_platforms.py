"""Platforms as values: which image is meant by which words, and what a machine runs by itself."""

from __future__ import annotations

import pytest

from bulle.errors import Unavailable
from bulle.linux import elf, emulators
from bulle.linux.binary_formats import Entry
from bulle.model import platform
from bulle.model.image import Platform
from bulle.model.platform import is_native, parse_platform, same, satisfies


@pytest.fixture
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "this_platform", lambda: Platform("linux", "amd64"))


@pytest.mark.usefixtures("on_amd64")
@pytest.mark.parametrize(
    ("offered", "wanted", "fits"),
    [
        ("linux/arm64", "linux/arm64", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64", "linux/arm/v7", False),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm/v7", "linux/arm", True),
        ("linux/arm", "linux/arm/v7", True),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/amd64/v3", "linux/amd64/v2", False),
        ("windows/amd64", "linux/amd64", False),
    ],
)
def test_what_fits(offered: str, wanted: str, fits: bool) -> None:
    assert satisfies(parse_platform(offered), parse_platform(wanted)) is fits


@pytest.mark.usefixtures("on_amd64")
def test_what_an_image_does_not_say_is_taken_for_this_machines() -> None:
    assert satisfies(Platform(), Platform("linux", "amd64"))
    assert not satisfies(Platform(), Platform("linux", "arm64"))
    assert is_native(Platform())


@pytest.mark.usefixtures("on_amd64")
@pytest.mark.parametrize("text", ["amd64", "386", "amd64/v3"])
def test_what_runs_by_itself(text: str) -> None:
    assert is_native(parse_platform(f"linux/{text}"))


@pytest.mark.usefixtures("on_amd64")
@pytest.mark.parametrize("text", ["arm64", "arm/v7", "wasm"])
def test_what_does_not(text: str) -> None:
    assert not is_native(parse_platform(f"linux/{text}"))


def test_an_arm64_machine_runs_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "this_platform", lambda: Platform("linux", "arm64", "v8"))
    assert is_native(Platform("linux", "arm", "v7")) and not is_native(Platform("linux", "amd64"))


def test_variants_that_are_none() -> None:
    assert same(Platform("linux", "arm64", "v8"), Platform("", "arm64"))
    assert not same(Platform("linux", "arm", "v6"), Platform("linux", "arm", "v7"))


@pytest.mark.parametrize("text", ["linux/wasm", "windows/nothing", "linux"])
def test_no_emulator_is_known(text: str) -> None:
    with pytest.raises(Unavailable, match="no emulator of that processor is known"):
        emulators.find(text)


def test_heads_of_programs() -> None:
    arm64 = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00"
    s390x = b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x02\x00\x16"
    assert elf.architecture_of(arm64) == "arm64"
    assert elf.architecture_of(s390x) == "s390x"
    assert [elf.architecture_of(head) for head in (b"", b"#!/bin/sh\n" + bytes(40), arm64[:19], arm64[:18] + b"\xff\xff")] == [""] * 4


def test_an_entry_matches_where_its_mask_has_ones() -> None:
    entry = Entry("x", b"ab\x02", b"\xff\xff\xfe", "/bin/true", "F")
    assert entry.matches(b"ab\x03...") and not entry.matches(b"ab\x04") and not entry.matches(b"ab")
    assert Entry("x", b"ab", b"", "", "").matches(b"abc"), "without a mask every bit counts"
