"""QEMU's argument vector of a machine: what must be in each, what follows from what is asked for, and what the machine's QEMU says to all of it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bulle.errors import InvalidInput, Unavailable
from bulle.isolation.microvm import accelerator, emulator, qemu
from bulle.isolation.microvm.machine import Disk, Forward, Machine, SharedDirectory, TapNetwork, UserNetwork


def machine(**given: object) -> Machine:
    """A small one with descriptors that nobody opens."""
    usual = {"architecture": "x86_64", "accelerator": "tcg", "kernel": 10, "initial_ramdisk": 11, "memory_bytes": 1 << 28, "agent": 12}
    return Machine(**usual | given)  # type: ignore[arg-type]


def words(**given: object) -> str:
    """Its vector in one line."""
    return " ".join(qemu.arguments(machine(**given), "qemu"))


def test_nothing_is_left_to_defaults() -> None:
    said = words()
    for wanted in (
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "spawn=deny",
        "elevateprivileges=deny",
        "panic=-1",
        "-machine microvm",
        "-cpu qemu64",
    ):
        assert wanted in said
    assert "/proc/self/fd/10" in said
    assert "name=bulle.agent" in said
    assert "tsc=reliable" not in said


def test_what_is_known_of_the_counter_is_told_to_an_emulated_machine_alone() -> None:
    assert "tsc_early_khz=2500000 tsc=reliable" in words(host_tsc_khz=2500000)
    assert "tsc_early_khz" not in words(host_tsc_khz=2500000, accelerator="kvm")
    assert "tsc_early_khz" not in words(host_tsc_khz=2500000, architecture="aarch64")


def test_boards() -> None:
    assert machine().board == "microvm"
    assert machine(pluggable=True).board == machine(small=False).board == "q35"
    assert machine(architecture="aarch64").board == machine(architecture="riscv64").board == "virt"
    assert "virtio-serial-pci" in words(architecture="riscv64")


@pytest.mark.parametrize(
    ("count", "pluggable", "scsi"), [(0, False, False), (6, False, False), (7, False, True), (26, True, False), (27, True, True)]
)
def test_many_disks_are_units_of_one_controller(count: int, pluggable: bool, scsi: bool) -> None:
    disks = tuple(Disk(f"disk-{number}", 20 + number) for number in range(count))
    asked = machine(disks=disks, pluggable=pluggable)
    said = qemu.arguments(asked, "qemu")
    assert asked.disks_on_scsi is scsi
    assert sum("serial=disk-" in word for word in said) == count
    assert len({word for word in said if word.startswith("fd=")}) == count
    assert ("virtio_scsi" in asked.modules) is scsi
    assert set(asked.descriptors) == {10, 11, 12, *(disk.descriptor for disk in disks)}


def test_networks_and_shares() -> None:
    forward = Forward("tcp", "::1", 8080, 80)
    asked = machine(
        networks=(TapNetwork(30, "02:00:00:00:00:01"), UserNetwork("02:00:00:00:00:02", (forward,), True)),
        shares=(SharedDirectory("data", 31),),
        control=32,
    )
    said = " ".join(qemu.arguments(asked, "qemu"))
    assert "tap,id=network0,fd=30" in said
    assert "restrict=on,hostfwd=tcp:[::1]:8080-:80" in said
    assert "memory-backend-memfd,id=memory,size=268435456,share=on" in said
    assert "vhost-user-fs-device" in said
    assert set(asked.descriptors) == {10, 11, 12, 30, 31, 32}
    assert {"virtio_net", "virtiofs"} <= set(asked.modules)


class TestEmulator:
    """QEMU is asked what it can do."""

    @pytest.mark.programs("qemu-system-x86_64", "qemu-system-aarch64", "qemu-system-riscv64")
    def test_what_debian_builds(self, tmp_path: Path) -> None:
        found = {name: emulator.find(name, tmp_path) for name in ("x86_64", "aarch64", "riscv64")}
        assert [found[name].microvm for name in found] == [True, False, False]
        assert all(one.user_network and "QEMU" in one.version for one in found.values())
        assert emulator.find("x86_64", tmp_path) == found["x86_64"]
        assert len(list(tmp_path.iterdir())) == 3

    def test_what_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable, match=r"qemu-system-riscv64 is not installed; install QEMU \(Debian's package qemu-system-misc"):
            emulator.find("riscv64")

    def test_one_that_does_not_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "qemu-system-riscv64").write_text("#!/bin/sh\necho broken library >&2\nexit 127\n")
        (tmp_path / "qemu-system-riscv64").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable, match="does not run: broken library"):
            emulator.find("riscv64", tmp_path / "cache")


    @pytest.mark.parametrize(
        ("lacking", "what"), [("-netdev help", "the virtual machine can have no network"), ("-sandbox on", "there can be no virtual machine")]
    )
    def test_one_that_was_built_without(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str, what: str) -> None:
        script = f'#!/bin/sh\ncase "$*" in *"{lacking}"*) exit 1;; esac\necho user\n'
        (tmp_path / "qemu-system-riscv64").write_text(script)
        (tmp_path / "qemu-system-riscv64").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable, match=f"{what}: .*qemu-system-riscv64 was built without"):
            emulator.find("riscv64", tmp_path / "cache", user_network=True)


class TestAccelerator:
    """KVM only where it is real."""

    def test_what_was_found_is_kept_until_the_next_boot(self, tmp_path: Path) -> None:
        first = accelerator.choose(platform.machine(), "", tmp_path)
        assert (first.name, first.hypervisor) in {("kvm", "hosted"), ("tcg", "emulating")}
        assert (first.reason == "") == (first.name == "kvm")
        assert accelerator.choose(platform.machine(), "", tmp_path) == first

    def test_other_processors_are_emulated(self) -> None:
        other = "riscv64" if platform.machine() != "riscv64" else "aarch64"
        assert accelerator.choose(other).name == "tcg"
        with pytest.raises(Unavailable, match=f"KVM cannot be used: the processor is .*, the guest's {other}"):
            accelerator.choose(other, "kvm")

    def test_one_that_is_unknown(self) -> None:
        with pytest.raises(InvalidInput, match="no accelerator 'xen'"):
            accelerator.choose("x86_64", "xen")

    def test_a_hypervisor_that_hangs_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accelerator.kvm, "DEVICE", "/dev/null")
        monkeypatch.setattr(accelerator.kvm, "iteration_ns", lambda: __import__("time").sleep(30))
        assert "was not done after 0.1 s" in accelerator.probe_kvm(platform.machine()).reason
