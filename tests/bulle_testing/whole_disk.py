"""Disks with systems of their own for tests: a small Debian that boots by BIOS and by UEFI, and a CD-ROM with Debian's installer.

The Debian is its kernel, its ramdisk and its minimal root, started by syslinux. busybox is its init, and a dozen lines of shell are in
cloud-init's place: systemd and Python take an emulated processor minutes. Made once, and kept in the cache.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from bulle_testing import peers, places, tiers

_VERSION = 1
_SECTOR = 512
_BOOT_AT, _BOOT_SECTORS, _SECTORS = 2048, 131072, 1024000
_ROOT_AT = _BOOT_AT + _BOOT_SECTORS
_SYSLINUX = Path("/usr/lib/syslinux/modules")
_INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64")
_WORDS = "console=ttyS0 quiet cryptomgr.notests no_timer_check"
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


def debian() -> Path:
    """The raw disk (500 MiB, mostly holes), whose root may log in with the password ``secret``."""
    target = places.cache_directory() / f"whole-debian-{_VERSION}.raw"
    with peers.one_at_a_time():
        if not target.exists():
            work = target.with_suffix(f".{os.getpid()}")
            work.mkdir()
            try:
                _make(work)
                (work / "disk").rename(target)
            finally:
                shutil.rmtree(work)
    return target


def _make(work: Path) -> None:
    for name in ("mmdebstrap", "syslinux", "mcopy", "mkfs.vfat", "mkfs.ext4"):
        tiers.need(name)
    if cause := tiers.debian_mirror_missing():
        tiers.give_up("debian_mirror", cause)
    root, boot = work / "root", work / "boot"
    packages = "linux-image-cloud-amd64,initramfs-tools,busybox,kmod,iproute2"
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", *excluded, f"--customize-hook={_RAMDISK}", "bookworm", f"{root}.tar"])
    root.mkdir()
    run(["tar", "-xf", f"{root}.tar", "-C", str(root)])
    for path, text in (("sbin/begin", _BEGIN), ("sbin/leased", _LEASED), ("etc/inittab", _INITTAB)):
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
    for beginning, name in (("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")):
        next((root / "boot").glob(f"{beginning}*")).rename(boot / name)
    shutil.copy("/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi", removable / "BOOTX64.EFI")
    shutil.copy(_SYSLINUX / "efi64/ldlinux.e64", removable)
    entry = f"LINUX /vmlinuz\n INITRD /initrd\n APPEND root=/dev/vda2 rootfstype=ext4 ro {_WORDS}\n"
    for place in (boot, removable):
        (place / "syslinux.cfg").write_text(f"SERIAL 0 115200\nDEFAULT linux\nPROMPT 0\nLABEL linux\n {entry}")
    _write_disk(work, root, boot)


def _write_disk(work: Path, root: Path, boot: Path) -> None:
    first, second, disk = work / "first", work / "second", work / "disk"
    for path, sectors in ((first, _BOOT_SECTORS), (second, _SECTORS - _ROOT_AT), (disk, _SECTORS)):
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
        file.write(entry(0x80, 0xEF, _BOOT_AT, _BOOT_SECTORS) + entry(0, 0x83, _ROOT_AT, _SECTORS - _ROOT_AT))
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
    words = f"APPEND initrd=/initrd.gz vga=off {_WORDS} --- quiet"
    (tree / "isolinux.cfg").write_text(f"SERIAL 0 115200\nDEFAULT install\nPROMPT 0\nLABEL install\n LINUX /linux\n {words}\n")
    boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    run(["xorriso", "-as", "mkisofs", "-quiet", "-o", str(target), *boot, str(tree)])
    shutil.rmtree(tree)
    return target


def run(command: list[str]) -> None:
    """A program that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": tiers.SEARCH_PATH, "MTOOLS_SKIP_CHECK": "1"})
    assert done.returncode == 0, (command, done.stderr)
