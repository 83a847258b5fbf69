"""Where a hypervisor runs: a root of its own with the host's programs and nothing else, in the machine's own namespaces, without privileges.

Whoever breaks out of a guest stands here: as a user that is nobody on the host, in an empty network or one with the machine's own cables alone, with
no file of the host but /usr (read-only), what the user gave as volumes, and the disks' descriptors. namespaces(7), capabilities(7)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from bulle.errors import Unavailable
from bulle.isolation.host_mounts import is_directory
from bulle.isolation.inside import DEVICES, LOCKED_DOWN, new_mount
from bulle.linux import capabilities, mount, process
from bulle.linux.fork import fork

VOLUMES = "/volumes"
"""In the sandbox: ``N/shown`` is what the plan's N-th mount shows, a directory or a file."""

RUN = "/run"
"""In the sandbox: a directory that can be written to."""

_STAGES = ("/tmp", "/mnt", "/srv", "/var")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_UNPRIVILEGED_ID = 1
_CLONE = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC
_RECURSIVE_CLONE = _CLONE | mount.AT_RECURSIVE
_FILE_SERVER = frozenset({
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD", "CAP_SETFCAP",
    "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_NET_ADMIN",
})  # fmt: skip
_SIGKILL = 9


def enter(volumes: Sequence[tuple[int, int]], devices: Sequence[str], nodes: Sequence[int]) -> None:
    """Make it this process's root, in a mount namespace of its own.

    ``volumes`` are numbers and detached mounts, ``devices`` names below /dev, shown by ``nodes`` (see :func:`device_node`) or, for an ordinary user,
    as they are.
    """
    root = new_mount("tmpfs", {"mode": "755", "size": "4m"}, mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV)
    mount.attach_mount(root, next(path for path in _STAGES if os.path.isdir(path)))
    _show_programs(root)
    _make_devices(root, devices, nodes)
    for name in ("proc", "run", "volumes", "tmp"):
        os.mkdir(name, 0o755, dir_fd=root)
    os.chmod("run", 0o1777, dir_fd=root)
    mount.attach_mount(new_mount("proc", {}, LOCKED_DOWN), "proc", root)
    for number, shown in volumes:
        _show_volume(root, number, shown)
    mount.mount_setattr(root, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_NOEXEC)
    os.fchdir(root)
    mount.pivot_root(".", ".")
    mount.umount(".", mount.MNT_DETACH)
    os.chdir("/")
    os.close(root)


def start_hypervisor(path: str, arguments: Sequence[str], descriptors: Sequence[int], output: int) -> int:
    """A child that executes QEMU with these descriptors and nothing else; ends when this process does. Returns its pid."""
    return _start(path, arguments, descriptors, output, frozenset(), leave_root=True)


def start_file_server(path: str, arguments: Sequence[str], descriptors: Sequence[int], output: int) -> int:
    """A child that executes virtiofsd, with what it takes to give files their owners, inside this user namespace."""
    return _start(path, arguments, descriptors, output, _FILE_SERVER, leave_root=False)


def give_up_privileges() -> None:
    """Keep nothing that the loop between guest and host does not need. The process cannot be traced by those that it watches."""
    _drop(frozenset(), leave_root=True)
    process.prctl(process.PR_SET_DUMPABLE, 0)


def program(names: Sequence[str], mend: str) -> str:
    """The host path of the first of these programs that is there, below /usr. Raises Unavailable."""
    for name in names:
        for directory in ("/usr/bin", "/usr/libexec", "/usr/lib/qemu", "/usr/sbin", "/usr/local/bin"):
            path = f"{directory}/{name}"
            if os.access(path, os.X_OK):
                return path
    raise Unavailable(f"{names[0]} is not installed", "virtual machines need it", mend)


def _start(path: str, arguments: Sequence[str], descriptors: Sequence[int], output: int, keep: frozenset[str], *, leave_root: bool) -> int:
    parent = os.getpid()
    pid = fork()
    if pid:
        return pid
    try:
        process.prctl(process.PR_SET_PDEATHSIG, _SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number, descriptor in enumerate((null, output, output)):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        _reset_signals()
        _drop(keep, leave_root=leave_root)
        # Leaving uid 0 took this from the process; without it a shepherd that is killed would leave the hypervisor.
        process.prctl(process.PR_SET_PDEATHSIG, _SIGKILL)
        os.execve(path, [os.path.basename(path), *arguments], {"PATH": "/usr/bin", "LC_ALL": "C", "TMPDIR": RUN})
    except BaseException as error:  # noqa: BLE001 -- its output is all it has
        with suppress(OSError):
            os.write(2, f"{path}: {error}\n".encode())
    finally:
        os._exit(127)


def _reset_signals() -> None:
    import signal

    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _drop(keep: frozenset[str], *, leave_root: bool) -> None:
    capabilities.drop_bounding(keep)
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    if leave_root:
        with suppress(OSError):  # an ordinary user's namespace may have a single id, which is hers
            os.setresgid(_UNPRIVILEGED_ID, _UNPRIVILEGED_ID, _UNPRIVILEGED_ID)
            os.setresuid(_UNPRIVILEGED_ID, _UNPRIVILEGED_ID, _UNPRIVILEGED_ID)
    capabilities.set_current(keep, frozenset())


def _show_programs(root: int) -> None:
    read_only = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
    os.mkdir("usr", 0o755, dir_fd=root)
    _bind("/usr", "usr", root, read_only)
    for name in _LINKS:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), name, dir_fd=root)
        elif os.path.isdir(f"/{name}"):
            os.mkdir(name, 0o755, dir_fd=root)
            _bind(f"/{name}", name, root, read_only)
    os.mkdir("etc", 0o755, dir_fd=root)
    if os.path.exists("/etc/ld.so.cache"):
        os.mknod("etc/ld.so.cache", stat.S_IFREG | 0o644, dir_fd=root)
        _bind("/etc/ld.so.cache", "etc/ld.so.cache", root, read_only)


def _bind(host_path: str, name: str, root: int, attributes: int) -> None:
    source = mount.open_tree(mount.AT_FDCWD, host_path, _RECURSIVE_CLONE)
    mount.mount_setattr(source, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE, attributes)
    mount.attach_mount(source, name, root)
    os.close(source)


def device_node(name: str) -> int:
    """A detached file system with a node of a device of the host that everybody may open who gets to see it; only the host's root can make one.

    The host's own node belongs to groups that a hypervisor without privileges is in no longer. It is shown as a whole: kernels before 6.15 bind
    nothing out of what is detached.
    """
    memory = new_mount("tmpfs", {"mode": "755", "size": "16k"}, mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC)
    try:
        os.mknod(name, stat.S_IFCHR | 0o666, os.stat(f"/dev/{name}").st_rdev, dir_fd=memory)
        os.chmod(name, 0o666, dir_fd=memory)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _make_devices(root: int, devices: Sequence[str], nodes: Sequence[int]) -> None:
    os.mkdir("dev", 0o755, dir_fd=root)
    given = dict(zip(devices, nodes, strict=False))
    for name in (*(name for name in DEVICES if name != "tty"), *devices):
        with suppress(FileNotFoundError):
            if name in given:
                source, place = given[name], f"dev/.{name}"
                os.mkdir(place, 0o755, dir_fd=root)
                os.symlink(f".{name}/{name}", f"dev/{name}", dir_fd=root)
            else:
                source, place = mount.open_tree(mount.AT_FDCWD, f"/dev/{name}", _CLONE), f"dev/{name}"
                os.mknod(place, stat.S_IFREG | 0o666, dir_fd=root)
            mount.attach_mount(source, place, root)
            os.close(source)


def _show_volume(root: int, number: int, shown: int) -> None:
    os.mkdir(f"volumes/{number}", 0o755, dir_fd=root)
    target = f"volumes/{number}/shown"
    if is_directory(shown):
        os.mkdir(target, 0o755, dir_fd=root)
    else:
        os.mknod(target, stat.S_IFREG | 0o644, dir_fd=root)
    mount.attach_mount(shown, target, root)


