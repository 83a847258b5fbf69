"""Which kernel a guest runs: one that is given, else the host's own, else Debian's for virtual machines, fetched once.

Called by the driver before a machine is composed. What QEMU boots is a copy in a directory of ours, unpacked, and named by the digest of the file it
came from: so it stays the same while a package is upgraded, and can be read by the QEMU of nobody's. Modules are used where they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bulle.errors import BulleError, InvalidInput, NotFound, StorageFull, Unavailable
from bulle.isolation.microvm import debian_kernel
from bulle.isolation.microvm.kernel_image import LARGEST_BYTES, read_image
from bulle.isolation.microvm.modules import ModuleTree

REQUIRED_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_console", "erofs", "overlay")
_NAMES = ("vmlinuz", "vmlinux", "Image", "bzImage")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}")
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")


@dataclass(frozen=True)
class GuestKernel:
    """A kernel that a guest can boot.

    ``architecture`` and ``release`` as uname(1) says them; ``image`` (host path) is what QEMU gets, readable by anyone who gets a descriptor of it;
    ``modules`` (host path) is a directory such as /lib/modules/RELEASE, None where everything is built in. ``origin`` names it in messages.
    ``plain`` is False where the image could not be unpacked, so that it needs a machine with firmware.
    """

    architecture: str
    release: str
    image: Path
    modules: Path | None
    origin: str
    plain: bool = True


class _Known(msgspec.Struct, frozen=True):
    """What was found in a kernel's file."""

    architecture: str
    release: str
    digest: str
    plain: bool


class GuestKernels:
    """The kernels of one ``BULLE_HOME``; ``directory`` (host path, made when needed) keeps what was fetched and unpacked."""

    def __init__(self, directory: Path, mirror: str = "") -> None:
        """``mirror`` is a mirror of Debian, by default the one that is everywhere."""
        self._directory = directory
        self._mirror = mirror

    def find(self, architecture: str, wanted: str = "", modules: str = "") -> GuestKernel:
        """The kernel for a guest of that architecture.

        ``wanted`` is empty (whatever there is), ``host``, ``debian`` or ``debian:SUITE``, or a host path: a kernel's file, whose modules are in
        ``modules`` (none: all built in), or a directory with both, such as an unpacked package.

        Raises InvalidInput, NotFound, Unavailable, StorageFull.
        """
        if architecture not in ARCHITECTURES:
            raise Unavailable(f"there are no virtual machines of {architecture}", "", f"these can be had: {', '.join(ARCHITECTURES)}")
        try:
            if wanted == "host":
                return self._host(architecture)
            if wanted == "debian" or wanted.startswith("debian:"):
                return self._debian(architecture, wanted.partition(":")[2] or debian_kernel.DEFAULT_SUITE)
            if wanted:
                return self._given(architecture, Path(wanted), Path(modules) if modules else None)
            return self._whatever_there_is(architecture)
        except OSError as error:
            failed = StorageFull if error.errno == 28 else Unavailable
            raise failed(f"the kernel for {architecture} cannot be kept in {self._directory}", os.strerror(error.errno or 0)) from error

    def to_fetch(self, architecture: str, wanted: str = "") -> str:
        """What :meth:`find` would first fetch, in words; empty where it is here, or given."""
        name, _, suite = wanted.partition(":")
        if name not in ("", "debian"):
            return ""
        suite = suite or debian_kernel.DEFAULT_SUITE
        if self._debian_directory(architecture, suite).exists():
            return ""
        if not name:
            with suppress(BulleError, OSError):
                self._host(architecture)
                return ""
        return f"the kernel of virtual machines (about 30 MB, from Debian {suite})"

    def _debian_directory(self, architecture: str, suite: str) -> Path:
        return self._directory / f"debian-{suite}-{architecture}"

    def _whatever_there_is(self, architecture: str) -> GuestKernel:
        try:
            return self._host(architecture)
        except BulleError:
            # Most hosts' kernels are for their hardware, or for their administrator only.
            return self._debian(architecture, debian_kernel.DEFAULT_SUITE)

    def _host(self, architecture: str) -> GuestKernel:
        release = platform.release()
        what = "the host's kernel cannot be a guest's"
        mend = "use Debian's (debian), or give one of your own"
        if architecture != platform.machine():
            raise Unavailable(what, f"it is for {platform.machine()}, not {architecture}", mend)
        modules = Path("/lib/modules") / release
        for image in (Path(f"/boot/vmlinuz-{release}"), modules / "vmlinuz"):
            if os.access(image, os.R_OK) and (modules / "modules.builtin").exists():
                if lacking := ModuleTree(modules).lacks(_required(architecture)):
                    raise Unavailable(what, f"it has no module {', '.join(lacking)}", mend)
                return self._load(architecture, image, modules, "the host's kernel")
        raise Unavailable(what, f"/boot/vmlinuz-{release} and {modules} are not both here and readable", mend)

    def _given(self, architecture: str, path: Path, modules: Path | None) -> GuestKernel:
        path = Path(os.path.abspath(path))
        if not path.exists():
            raise NotFound(f"there is no kernel {path}", "", "give the path of a kernel's file, or of a directory with it and its modules")
        if modules is not None and not modules.is_dir():
            raise NotFound(f"there is no directory {modules} of modules")
        image = _image_in(path) if path.is_dir() else path
        if modules is None and path.is_dir():
            modules = _modules_in(path)
        if modules is not None and (lacking := ModuleTree(modules).lacks(_required(architecture))):
            raise Unavailable(f"the kernel {image} cannot be a guest's", f"it has no module {', '.join(lacking)}", "give another one")
        return self._load(architecture, image, modules and Path(os.path.abspath(modules)), str(path))

    def _debian(self, architecture: str, suite: str) -> GuestKernel:
        debian_kernel.check_suite(suite)
        directory = self._debian_directory(architecture, suite)
        if not directory.exists():
            with self._locked():
                if not directory.exists():
                    debian_kernel.fetch(architecture, suite, directory, self._mirror)
        return self._load(architecture, _image_in(directory), _modules_in(directory), f"Debian {suite}")

    def _load(self, architecture: str, path: Path, modules: Path | None, origin: str) -> GuestKernel:
        known = self._read_known(path)
        if known.architecture != architecture:
            raise InvalidInput(f"the kernel {path} is for {known.architecture}", "", f"give one for {architecture}")
        release = known.release or (modules.name if modules else "")
        return GuestKernel(architecture, release, self._image(known.digest), modules, origin, known.plain)

    def _read_known(self, path: Path) -> _Known:
        """What is in a file; remembered by the file's inode, times and size, so that 30 MB are not read at every start."""
        status = path.stat()
        identity = f"{path} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        record = self._directory / "known" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        try:
            known = msgspec.json.decode(record.read_bytes(), type=_Known)
            if self._image(known.digest).exists():
                return known
        except (OSError, msgspec.DecodeError):
            pass
        with self._locked():
            return self._learn(path, record)

    def _learn(self, path: Path, record: Path) -> _Known:
        if not 0 < path.stat().st_size <= LARGEST_BYTES:
            raise InvalidInput(f"the kernel {path} cannot be used", "no kernel has this size", "give another one")
        raw = path.read_bytes()
        try:
            found = read_image(raw)
        except ValueError as error:
            raise InvalidInput(f"the kernel {path} cannot be used", str(error), "give another one") from error
        release = found.release if _RELEASE.fullmatch(found.release) else ""
        known = _Known(found.architecture, release, hashlib.sha256(raw).hexdigest(), found.plain)
        for target, content in ((self._image(known.digest), found.content), (record, msgspec.json.encode(known))):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.new")
            temporary.write_bytes(content)
            temporary.chmod(0o644)
            temporary.rename(target)
        return known

    def _image(self, digest: str) -> Path:
        return self._directory / "images" / f"sha256-{digest}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time fetches and unpacks; the others then find it done."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _required(architecture: str) -> tuple[str, ...]:
    return (*REQUIRED_MODULES, "virtio_mmio") if architecture == "x86_64" else REQUIRED_MODULES


def _image_in(directory: Path) -> Path:
    """The kernel in a directory: by one of the usual names there, or the only ``vmlinuz-RELEASE`` there or in its ``boot``."""
    for name in _NAMES:
        if (directory / name).is_file():
            return directory / name
    found = [path for place in (directory, directory / "boot") for name in _NAMES[:2] for path in sorted(place.glob(f"{name}-*"))]
    if len(found) != 1:
        reason = f"there are several: {', '.join(path.name for path in found)}" if found else "it has no vmlinuz, vmlinuz-RELEASE, vmlinux or Image"
        raise InvalidInput(f"the directory {directory} names no kernel", reason, "give the kernel's file")
    return found[0]


def _modules_in(directory: Path) -> Path | None:
    """The modules in a directory: those below ``lib/modules`` or ``usr/lib/modules``, or ``modules``; None where there are none."""
    for place in (directory / "lib/modules", directory / "usr/lib/modules"):
        found = [path for path in sorted(place.glob("*")) if path.is_dir()]
        if len(found) > 1:
            raise InvalidInput(f"the directory {directory} has modules of several kernels", ", ".join(path.name for path in found), "leave one")
        if found:
            return found[0]
    return directory / "modules" if (directory / "modules").is_dir() else None
