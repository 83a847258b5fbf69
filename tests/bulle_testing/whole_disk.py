"""Disks with systems of their own for tests: a small Debian that boots by BIOS and by UEFI, one under Xen, and a CD-ROM with Debian's installer.

The Debians are their kernel, their ramdisk and their minimal root, started by syslinux. busybox is their init, and a dozen lines of shell are in
cloud-init's place: systemd and Python take an emulated processor minutes. Made once, and kept in the cache.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bulle_testing import peers, places, tiers

_VERSION = 1
_SECTOR = 512
_BOOT_AT, _BOOT_SECTORS = 2048, 131072
_ROOT_AT = _BOOT_AT + _BOOT_SECTORS
_SYSLINUX = Path("/usr/lib/syslinux/modules")
_INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64")
_WORDS = "quiet cryptomgr.notests no_timer_check"
_ROOT = "root=/dev/vda2 rootfstype=ext4 ro"
_BEGIN = """#!/bin/sh
mount -t proc proc /proc; mount -t devtmpfs dev /dev 2>/dev/null; mount -o remount,rw /
for one in virtio_net af_packet button evdev isofs; do modprobe $one; done
ip link set lo up
for one in /sys/class/net/e*; do ip link set ${one##*/} up; busybox udhcpc -n -q -i ${one##*/} -s /sbin/leased; done
mkdir -p /run/seed
if mount -o ro -t iso9660 "$(blkid -L cidata)" /run/seed; then
    hostname "$(sed -n 's/^local-hostname: //p' /run/seed/meta-data)"
    sed -n 's/^- "\\(.*\\)"$/\\1/p' /run/seed/user-data | sh
fi
busybox acpid -d -c /etc/acpi -l /dev/console &
"""
_LEASED = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip link set $interface mtu ${mtu:-1500}
set -- $staticroutes
while [ $# -gt 1 ]; do
    if [ $2 = 0.0.0.0 ]; then ip route add $1 dev $interface; else ip route add $1 via $2; fi
    shift 2
done
echo nameserver $dns > /etc/resolv.conf
"""
_INITTAB = "::sysinit:/sbin/begin\nttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100\n::shutdown:/bin/sync\n::shutdown:/bin/umount -a -r\n"
_RAMDISK = """rm -f "$1"/usr/share/initramfs-tools/hooks/udev "$1"/usr/share/initramfs-tools/scripts/init-*/udev
printf 'virtio_pci\\nvirtio_blk\\next4\\n' >"$1"/etc/initramfs-tools/modules
sed -i s/^MODULES=.*/MODULES=list/ "$1"/etc/initramfs-tools/initramfs.conf
chroot "$1" update-initramfs -u && echo root:secret | chroot "$1" chpasswd"""
# What stands in two sectors, 512 KiB apart, is shown on the serial port, in hexadecimal; then for ever a larger number is written to one and the
# other (by the firmware, interrupt 0x13), and a line with a dot shown after 64 of these. Intel 64 and IA-32, 16-bit code; assembled once.
_COUNTER = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfb8816b57cb86400e86300b442cd13668b3e007e6657b84c04e85200b442cd13668b0e007e665f66516689f9fae849006659e844"
    "00b00ae85a00fb6689f9664166890e007eb86400e82300b44330c0cd13b84c04e81700b44330c0cd13f6c13f75dcb02ee82d00b00ae82800ebd0a3ad7c8a16b5"
    "7cbea57cc3b30866c1c10488c8240f3c0a720204270430e80600fecb75e9b020baf803eec310000100007e0000000000000000000000"
)


def counter(path: Path) -> Path:
    """A raw disk whose boot sector counts, in two sectors in turn; see above."""
    path.write_bytes(_COUNTER.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return path


@dataclass(frozen=True)
class _Recipe:
    """What is in such a disk; ``entry`` are lines for syslinux, ``programs`` what these load."""

    name: str
    packages: str
    entry: str
    console: str = "ttyS0"
    begin: str = _BEGIN
    sectors: int = 1024000
    without: Sequence[str] = ()
    programs: Sequence[str] = ()


_PLAIN = _Recipe(f"whole-debian-{_VERSION}", "linux-image-cloud-amd64", f"LINUX /vmlinuz\n INITRD /initrd\n APPEND {_ROOT} console=ttyS0 {_WORDS}")
_XEN = _Recipe(
    f"whole-xen-{_VERSION}",
    "linux-image-amd64,xen-hypervisor-4.17-amd64,xen-utils-4.17",
    f"COM32 mboot.c32\n APPEND /xen com1=115200,8n1 console=com1 dom0_mem=384M,max:384M --- /vmlinuz {_ROOT} console=hvc0 {_WORDS} --- /initrd",
    console="hvc0",
    begin=f"{_BEGIN}for one in xenfs xen-evtchn xen-gntdev xen-privcmd; do modprobe $one; done\nmount -t xenfs xenfs /proc/xen\n"
    "mkdir -p /run/xen /run/lock\n/usr/lib/xen-4.17/bin/xenstored\n",
    sectors=1638400,
    without=[f"/lib/modules/*/kernel/{name}/*" for name in ("sound", "drivers/gpu", "drivers/media", "drivers/net/wireless", "drivers/infiniband")],
    programs=("mboot.c32", "libcom32.c32"),
)


def debian() -> Path:
    """The raw disk (500 MiB, mostly holes), whose root may log in with the password ``secret``."""
    return _kept(_PLAIN)


def xen() -> Path:
    """One (800 MiB) that starts Xen by BIOS, and in its first domain the same Debian, with Xen's own commands."""
    return _kept(_XEN)


def _kept(recipe: _Recipe) -> Path:
    target = places.cache_directory() / f"{recipe.name}.raw"
    with peers.one_at_a_time():
        if not target.exists():
            work = target.with_suffix(f".{os.getpid()}")
            work.mkdir()
            try:
                _make(work, recipe)
                (work / "disk").rename(target)
            finally:
                shutil.rmtree(work)
    return target


def _make(work: Path, recipe: _Recipe) -> None:
    for name in ("mmdebstrap", "syslinux", "mcopy", "mkfs.vfat", "mkfs.ext4"):
        tiers.need(name)
    if cause := tiers.debian_mirror_missing():
        tiers.give_up("debian_mirror", cause)
    root, boot = work / "root", work / "boot"
    packages = f"--include={recipe.packages},initramfs-tools,busybox,kmod,iproute2"
    excluded = [f"--dpkgopt=path-exclude={name}" for name in (*(f"/usr/share/{name}/*" for name in ("doc", "man", "locale")), *recipe.without)]
    run(["mmdebstrap", "--quiet", "--variant=minbase", packages, *excluded, f"--customize-hook={_RAMDISK}", "bookworm", f"{root}.tar"])
    root.mkdir()
    run(["tar", "-xf", f"{root}.tar", "-C", str(root)])
    inittab = _INITTAB.replace("ttyS0", recipe.console)
    for path, text in (("sbin/begin", recipe.begin), ("sbin/leased", _LEASED), ("etc/inittab", inittab)):
        (root / path).write_text(text)
        (root / path).chmod(0o755)
    button = root / "etc/acpi/PWRF/00000080"
    button.parent.mkdir(parents=True)
    button.write_text("#!/bin/sh\nbusybox poweroff\n")
    button.chmod(0o755)
    (root / "sbin/init").unlink(missing_ok=True)
    (root / "sbin/init").symlink_to("/bin/busybox")
    removable = boot / "EFI/BOOT"
    removable.mkdir(parents=True)
    for beginning, name in (("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd"), ("xen-4.17-amd64.gz", "xen")):
        for found in (root / "boot").glob(f"{beginning}*"):
            found.rename(boot / name)
    for program in recipe.programs:
        shutil.copy(_SYSLINUX / "bios" / program, boot)
    shutil.copy("/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi", removable / "BOOTX64.EFI")
    shutil.copy(_SYSLINUX / "efi64/ldlinux.e64", removable)
    for place in (boot, removable):
        (place / "syslinux.cfg").write_text(f"SERIAL 0 115200\nDEFAULT linux\nPROMPT 0\nLABEL linux\n {recipe.entry}\n")
    _write_disk(work, root, boot, recipe.sectors)


def _write_disk(work: Path, root: Path, boot: Path, all_sectors: int) -> None:
    first, second, disk = work / "first", work / "second", work / "disk"
    for path, sectors in ((first, _BOOT_SECTORS), (second, all_sectors - _ROOT_AT), (disk, all_sectors)):
        path.touch()
        os.truncate(path, sectors * _SECTOR)
    run(["mkfs.vfat", "-F", "32", str(first)])
    run(["mcopy", "-s", "-i", str(first), *map(str, boot.iterdir()), "::/"])
    run(["syslinux", "--install", str(first)])
    run(["mkfs.ext4", "-q", "-d", str(root), str(second)])
    for path, at in ((first, _BOOT_AT), (second, _ROOT_AT)):
        run(["dd", f"if={path}", f"of={disk}", "bs=1M", "conv=notrunc,sparse", "oflag=seek_bytes", f"seek={at * _SECTOR}", "status=none"])

    def entry(flags: int, kind: int, begin: int, sectors: int) -> bytes:
        return struct.pack("<B3sB3sII", flags, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", begin, sectors)

    with disk.open("r+b") as file:
        file.write(Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440])
        file.seek(446)
        file.write(entry(0x80, 0xEF, _BOOT_AT, _BOOT_SECTORS) + entry(0, 0x83, _ROOT_AT, all_sectors - _ROOT_AT))
        file.seek(510)
        file.write(b"\x55\xaa")


def installer(directory: Path) -> Path:
    """A CD-ROM with Debian's installer, which speaks to the serial port."""
    if not _INSTALLER.exists():
        tiers.give_up("programs", "no debian-installer-12-netboot-amd64")
    tiers.need("xorriso")
    tree, target = directory / "cdrom", directory / "installer.iso"
    tree.mkdir()
    shutil.copy("/usr/lib/ISOLINUX/isolinux.bin", tree)
    shutil.copy(_SYSLINUX / "bios/ldlinux.c32", tree)
    for name in ("linux", "initrd.gz"):
        shutil.copy(_INSTALLER / name, tree)
    words = f"APPEND initrd=/initrd.gz vga=off console=ttyS0 {_WORDS} --- quiet"
    (tree / "isolinux.cfg").write_text(f"SERIAL 0 115200\nDEFAULT install\nPROMPT 0\nLABEL install\n LINUX /linux\n {words}\n")
    boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    run(["xorriso", "-as", "mkisofs", "-quiet", "-o", str(target), *boot, str(tree)])
    shutil.rmtree(tree)
    return target


def run(command: list[str]) -> None:
    """A program that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": tiers.SEARCH_PATH, "MTOOLS_SKIP_CHECK": "1"})
    assert done.returncode == 0, (command, done.stderr)
