"""Kernels, modules and initial ramdisks of guests: read and written without any machine."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from bulle.errors import InvalidInput, NotFound, Unavailable
from bulle.isolation.microvm.initial_ramdisk import archive, initial_ramdisk
from bulle.isolation.microvm.kernel import GuestKernel, GuestKernels
from bulle.isolation.microvm.kernel_image import decompressed, read_image, trimmed
from bulle.isolation.microvm.modules import ModuleTree, without_signature


def arm_image(text: bytes = b"Linux version 6.12.1-test (x@y) #1") -> bytes:
    """What an Image for arm64 begins with, and the banner that is somewhere in each."""
    return b"MZ".ljust(0x38, b"\0") + b"ARM\x64" + bytes(1000) + text + b"\0"


def elf(sections: dict[bytes, bytes], machine: int = 62) -> bytes:
    """A 64-bit ELF file with those sections."""
    names = b"\0" + b"".join(name + b"\0" for name in (*sections, b".shstrtab"))
    body, headers = bytearray(bytes(64)), [bytes(64)]
    for name, content in (*sections.items(), (b".shstrtab", names)):
        headers.append(struct.pack("<IIQQQQIIQQ", names.index(name + b"\0"), 1, 0, 0, len(body), len(content), 0, 0, 1, 0))
        body += content
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, len(body), 0, 64, 56, 0, 64, len(headers), len(headers) - 1)
    return bytes(head + body[64:] + b"".join(headers))


def vmlinux() -> bytes:
    """An ELF kernel with a PVH note."""
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return head + program + note + b"Linux version 6.1.0-test (x@y) #1\0" + b"abc" * 100_000


def bz_image(payload: bytes) -> bytes:
    """An x86 boot image around a payload."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    struct.pack_into("<H", head, 0x236, 1)
    struct.pack_into("<II", head, 0x248, 512, len(payload))
    head[0x300:0x310] = b"6.1.0-inside (x)"
    return bytes(head) + bytes(512) + payload


PACKERS = {
    "lz4": ["lz4", "-l", "-c"],
    "zstd": ["zstd", "-c"],
    "xz": ["xz", "-c", "--check=crc32"],
    "gzip": ["gzip", "-c"],
    "bzip2": ["bzip2", "-c"],
    "lzma": ["xz", "-c", "--format=lzma"],
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_boot_image_is_unpacked(packer: str) -> None:
    plain = vmlinux()
    try:
        packed = subprocess.run(PACKERS[packer], input=plain, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip(f"the program {PACKERS[packer][0]} is not installed")
    found = read_image(bz_image(packed + struct.pack("<I", len(plain))))
    assert (found.architecture, found.release, found.plain) == ("x86_64", "6.1.0-inside", True)
    assert found.content == trimmed(plain)


def test_an_elf_kernel_is_loaded_as_before_from_less() -> None:
    """What a loader sees of it: bytes at addresses, with zeros behind them where memory is larger than the file."""
    segments = [(0x1000, b"a" * 5000 + bytes(9000)), (0x9000, bytes(4096)), (0xB000, b"z" * 100)]
    table, content = b"", b""
    for address, data in segments:
        content += bytes(-len(content) % 65536)
        table += struct.pack("<IIQQQQQQ", 1, 7, 65536 + len(content), address, address, len(data), len(data) + 500, 65536)
        content += data
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x1000, 64, 12345, 0, 64, 56, len(segments), 64, 7, 8)
    whole = (head + table).ljust(65536, b"\0") + content + b"sections" * 9999

    def loaded(elf: bytes) -> dict[int, bytes]:
        offset, size, count = struct.unpack_from("<Q14xHH", elf, 32)
        found = {}
        for number in range(count):
            _kind, _flags, start, _virtual, physical, length, memory = struct.unpack_from("<IIQQQQQ", elf, offset + number * size)
            found[physical] = elf[start : start + length].ljust(memory, b"\0")
        return found

    small = trimmed(whole)
    assert loaded(small) == loaded(whole) and len(small) < 20_000
    assert trimmed(whole[:70_000]) == whole[:70_000], "one that was cut off is left to QEMU to refuse"


def test_a_boot_image_that_cannot_be_unpacked_is_booted_as_it_is() -> None:
    image = bz_image(b"\x89LZO" + bytes(100))
    found = read_image(image)
    assert (found.content, found.plain, found.architecture) == (image, False, "x86_64")


@pytest.mark.parametrize("packed", [lambda raw: raw, gzip.compress])
def test_an_image_for_arm_is_read(packed) -> None:
    found = read_image(packed(arm_image()))
    assert (found.architecture, found.release, found.content) == ("aarch64", "6.12.1-test", arm_image())


@pytest.mark.parametrize("wrong", [b"", b"#!/bin/sh\n" * 100, elf({b".text": b"x"}), elf({}, machine=8), b"\x7fELF"], ids=range(5))
def test_what_is_no_kernel_is_refused(wrong: bytes, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(wrong)
    with pytest.raises(InvalidInput, match="cannot be used"):
        GuestKernels(tmp_path / "kernels").find("x86_64", str(tmp_path / "vmlinuz"))
    assert not list((tmp_path / "kernels").glob("images/*"))


@pytest.mark.parametrize(
    "damage", [b"\xff" * 64, struct.pack("<I", 5) + b"\x10a\x09\x00\x00", struct.pack("<I", 1 << 30), struct.pack("<I", 3) + b"\xf0\xff\xff"]
)
def test_damaged_lz4_is_an_error_and_never_more(damage: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decompressed(b"\x02\x21\x4c\x18" + damage)


@pytest.mark.parametrize("packed", [gzip.compress(vmlinux())[:-900], lzma.compress(vmlinux())[:-60]], ids=["gzip", "xz"])
def test_a_payload_that_is_cut_off_is_not_booted(packed: bytes) -> None:
    assert not read_image(bz_image(packed)).plain


class TestGiven:
    """A kernel of the user's own."""

    def test_a_directory_with_its_modules(self, tmp_path: Path) -> None:
        modules(tmp_path / "given/lib/modules/6.12.1-test")
        (tmp_path / "given/boot").mkdir()
        (tmp_path / "given/boot/vmlinuz-6.12.1-test").write_bytes(gzip.compress(arm_image()))
        found = GuestKernels(tmp_path / "kernels").find("aarch64", str(tmp_path / "given"))
        assert found.image.read_bytes() == arm_image()
        assert (found.release, found.modules) == ("6.12.1-test", tmp_path / "given/lib/modules/6.12.1-test")
        assert stat.S_IMODE(found.image.stat().st_mode) == 0o644

    def test_a_file_is_read_once_and_again_when_it_changes(self, tmp_path: Path) -> None:
        kernels, path = GuestKernels(tmp_path / "kernels"), tmp_path / "Image"
        path.write_bytes(arm_image())
        first = kernels.find("aarch64", str(path))
        assert kernels.find("aarch64", str(path)) == first
        path.write_bytes(arm_image(b"Linux version 7.0 (x@y) #1"))
        assert kernels.find("aarch64", str(path)).release == "7.0"
        first.image.unlink()
        path.write_bytes(arm_image())
        assert kernels.find("aarch64", str(path)).image.exists()

    def test_errors(self, tmp_path: Path) -> None:
        kernels = GuestKernels(tmp_path / "kernels")
        (tmp_path / "Image").write_bytes(arm_image())
        with pytest.raises(InvalidInput, match="is for aarch64"):
            kernels.find("x86_64", str(tmp_path / "Image"))
        with pytest.raises(NotFound, match="no kernel"):
            kernels.find("x86_64", str(tmp_path / "absent"))
        with pytest.raises(Unavailable, match="no virtual machines of mips"):
            kernels.find("mips")
        with pytest.raises(InvalidInput, match="name of a Debian suite"):
            kernels.find("x86_64", "debian:../../etc")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidInput, match="names no kernel"):
            kernels.find("x86_64", str(tmp_path / "empty"))
        (tmp_path / "few").mkdir()
        (tmp_path / "few/modules.builtin").write_text("kernel/virtio_pci.ko\n")
        with pytest.raises(Unavailable, match=r"no module virtio_blk.*erofs"):
            kernels.find("aarch64", str(tmp_path / "Image"), str(tmp_path / "few"))


def modules(directory: Path) -> Path:
    """A kernel's modules: one built in, the others in every form that they come in, with what they need."""
    content = {
        "fs/erofs/erofs.ko.xz": lzma.compress(elf({b".modinfo": b"license=GPL\0depends=lib-crc,builtin\0"})),
        "lib/lib-crc.ko": elf({b".modinfo": b"depends=\0"}) + b"SIGNATURE" + struct.pack(">8xI", 9) + b"~Module signature appended~\n",
        "broken.ko": elf({b".modinfo": b"depends=absent\0"}),
        "circle.ko": elf({b".modinfo": b"depends=circle\0"}),
    }
    wanted = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_console", "overlay")
    content |= {f"drivers/{name.replace('_', '-')}.ko": elf({b".modinfo": b"depends=\0"}) for name in wanted}
    for name, raw in content.items():
        (directory / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / "kernel" / name).write_bytes(raw)
    (directory / "modules.builtin").write_text("kernel/lib/builtin.ko\n")
    return directory


class TestModules:
    """Which files are loaded, and when."""

    def test_what_a_module_needs_comes_first(self, tmp_path: Path) -> None:
        order = ModuleTree(modules(tmp_path)).load_order(["erofs", "builtin", "lib_crc"])
        assert [module.name for module in order] == ["lib_crc", "erofs"]
        assert all(module.content == elf_of for module, elf_of in zip(order, [elf({b".modinfo": b"depends=\0"}), order[1].content], strict=True))

    def test_a_signature_is_left_out(self) -> None:
        assert without_signature(b"module") == b"module"
        assert without_signature(b"module" + b"S" * 5 + struct.pack(">8xI", 5) + b"~Module signature appended~\n") == b"module"

    def test_a_list_by_depmod_names_the_files(self, tmp_path: Path) -> None:
        (modules(tmp_path) / "modules.dep").write_text("kernel/lib/lib-crc.ko:\n")
        assert ModuleTree(tmp_path).lacks(["lib_crc", "erofs", "builtin"]) == ["erofs"]

    @pytest.mark.parametrize(
        ("name", "why"), [("absent", "no module absent"), ("broken", "absent, which broken needs"), ("circle", "no module circle")]
    )
    def test_what_is_missing_is_named(self, tmp_path: Path, name: str, why: str) -> None:
        with pytest.raises(Unavailable, match=why):
            ModuleTree(modules(tmp_path)).load_order([name])


class TestInitialRamdisk:
    """The archive that the kernel unpacks."""

    def test_another_program_reads_the_archive(self, tmp_path: Path) -> None:
        content = archive([("directory", stat.S_IFDIR | 0o755, b""), ("directory/file", stat.S_IFREG | 0o640, b"12345")])
        busybox = ["busybox", "cpio", "-i", "-d"]
        subprocess.run(busybox, input=content, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "directory/file").read_bytes() == b"12345"
        assert stat.S_IMODE((tmp_path / "directory/file").stat().st_mode) == 0o640

    def test_it_is_kept_by_what_is_in_it(self, tmp_path: Path) -> None:
        kernel = GuestKernel("aarch64", "6.12", tmp_path / "Image", modules(tmp_path / "modules"), "a test")
        first = initial_ramdisk(kernel, b"agent", ["erofs"], tmp_path / "cache")
        written = os.stat(first).st_mtime_ns
        assert initial_ramdisk(kernel, b"agent", ["erofs"], tmp_path / "cache") == first
        assert os.stat(first).st_mtime_ns == written
        others = [initial_ramdisk(kernel, agent, names, tmp_path / "cache") for agent, names in ((b"new", ["erofs"]), (b"agent", ["overlay"]))]
        assert len({first, *others}) == 3
        assert b"/lib/modules/lib_crc.ko\n/lib/modules/erofs.ko\n" in first.read_bytes()
        assert len(list((tmp_path / "cache").iterdir())) == 3
