"""``host``: the image that every machine already has. Its /usr is this machine's own, bound read-only; its layer holds the little else that is
needed.

Nothing is downloaded. The generated layer has the usr-merge links as the host has them, empty directories, and a minimal /etc: accounts of the system
(no people, no passwords), the alternatives and certificates that programs in /usr look up, the linker's cache. Never taken: shadow, ssh, machine-id,
private keys, host names, anything that not everybody may read. :func:`self_contained` turns such an image into an ordinary one, with /usr in a layer,
for ``save`` and whoever copies it. The layer is the same as long as the host's files are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bulle.errors import Unavailable
from bulle.model.image import ExecutionConfig
from bulle.model.platform import this_platform
from bulle.model.reference import Reference
from bulle.registry import tar_format
from bulle.registry.generated import DEFAULT_PATH, image_of_layer
from bulle.registry.transport import RemoteImage, Source, SourceRequest

_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_DIRECTORIES = (
    "boot", "dev", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var", "var/cache", "var/lib",
    "var/local", "var/log", "var/mail", "var/opt", "var/spool", "var/tmp",
)  # fmt: skip
_MODES = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700}

# Files and directories of /etc that programs in /usr need and that are nobody's secret.
_COPIED = (
    "alternatives", "ca-certificates.conf", "crypto-policies", "debian_version", "gai.conf", "host.conf", "inputrc", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "locale.alias", "localtime", "lsb-release", "magic", "mime.types", "os-release", "pki/ca-trust/extracted", "pki/tls/certs",
    "protocols", "redhat-release", "rpc", "services", "shells", "ssl/certs", "ssl/openssl.cnf", "system-release", "terminfo", "timezone",
)  # fmt: skip
_COPIED_PATTERNS = ("java-*-openjdk", "python3*")
_FILE_LIMIT_BYTES = 8 << 20
_FIRST_PERSON_ID, _NOBODY = 1000, 65534

_GENERATED = {
    "bash.bashrc": "# System-wide .bashrc of the host image.\n[ -z \"$PS1\" ] && return\nshopt -s checkwinsize\nPS1='\\u@\\h:\\w\\$ '\n",
    "hostname": "",
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\nrpc: files\n",
    "profile": "# System-wide .profile of the host image.\nexport PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    "[ -n \"$BASH\" ] && [ -f /etc/bash.bashrc ] && . /etc/bash.bashrc\n",
    "resolv.conf": "",
}  # fmt: skip


class HostImage(Source):
    """The built-in image; ``root`` is where the host's files are looked for (tests have another)."""

    def __init__(self, request: SourceRequest, root: Path = Path("/")) -> None:
        self._request = request
        self._root = root

    def images(self) -> Iterator[RemoteImage]:
        ours, wanted = this_platform(), self._request.platform
        if (wanted.os, wanted.architecture) != (ours.os, ours.architecture):
            raise Unavailable(f"the host image does not exist for {wanted}", f"this machine is {ours}")
        layer = layer_of_host(self._root)
        shell = "bash" if (self._root / "usr/bin/bash").exists() else "sh"
        yield image_of_layer(
            lambda: iter((layer,)),
            what="the host image",
            platform=ours,
            execution=ExecutionConfig(env=(DEFAULT_PATH,), cmd=(shell,), working_dir="/"),
            created=_moment(self._root),
            created_by="host",
            reference=Reference.parse("host"),
            progress=self._request.configuration.progress,
            host_binds=host_binds(self._root),
        )


def host_binds(root: Path = Path("/")) -> tuple[str, ...]:
    """The directories that the host image takes from the host: /usr, and what is not merged into it."""
    separate = tuple(f"/{name}" for name in _MERGED if (root / name).is_dir() and not (root / name).is_symlink())
    return ("/usr", *separate)


def layer_of_host(root: Path) -> bytes:
    """The tar of everything but /usr; small enough to be held in memory."""
    parts: dict[str, bytes] = {}
    for name in _DIRECTORIES:
        parts[name] = tar_format.directory(name, mode=_MODES.get(name, 0o755))
    for name in _MERGED:
        path = root / name
        if path.is_symlink():
            parts[name] = tar_format.symbolic_link(name, os.readlink(path))
        elif path.is_dir():
            parts[name] = tar_format.directory(name)
    parts["var/run"] = tar_format.symbolic_link("var/run", "/run")
    parts["var/lock"] = tar_format.symbolic_link("var/lock", "/run/lock")
    etc = dict(_configuration(root))
    for name in list(etc):
        parent = os.path.dirname(name)
        while parent not in etc:
            etc[parent] = tar_format.directory(parent)
            if not parent or parent == "etc":
                break
            parent = os.path.dirname(parent)
    parts |= etc
    return b"".join(parts[name] for name in sorted(parts, key=os.fsencode)) + tar_format.END


def _configuration(root: Path) -> Iterator[tuple[str, bytes]]:
    """The members of /etc by their names."""
    for name, text in _GENERATED.items():
        yield f"etc/{name}", tar_format.file(f"etc/{name}", text.encode())
    yield "etc/mtab", tar_format.symbolic_link("etc/mtab", "../proc/self/mounts")
    yield "etc/passwd", tar_format.file("etc/passwd", _accounts(root, "passwd", fields=7))
    yield "etc/group", tar_format.file("etc/group", _accounts(root, "group", fields=4))
    names = {*_COPIED, *(path.name for pattern in _COPIED_PATTERNS for path in (root / "etc").glob(pattern))}
    for name in sorted(names):
        yield from _copied(root, f"etc/{name}", deep=name != "alternatives")


def _copied(root: Path, name: str, *, deep: bool) -> Iterator[tuple[str, bytes]]:
    """A file, link or directory as it is; nothing for what is missing, private, too large or of another kind."""
    path = root / name
    try:
        status = path.lstat()
        mtime_ns = status.st_mtime_ns // 1_000_000_000 * 1_000_000_000
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            if _leads_somewhere(root, name, target):
                yield name, tar_format.symbolic_link(name, target, mtime_ns=mtime_ns)
        elif stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_IROTH:
            yield name, tar_format.directory(name)
            for entry in sorted(os.listdir(path)):
                if deep or (path / entry).is_symlink():
                    yield from _copied(root, f"{name}/{entry}", deep=deep)
        elif stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_size <= _FILE_LIMIT_BYTES:
            data = path.read_bytes()
            if b"PRIVATE KEY-----" not in data:
                yield name, tar_format.file(name, data, mode=status.st_mode & 0o755, mtime_ns=mtime_ns)
    except OSError:
        # Gone meanwhile, or not for this user's eyes: then it is not for the image either.
        return


def _leads_somewhere(root: Path, name: str, target: str) -> bool:
    """Whether a link stays useful inside the image: manuals of alternatives are many and unread, broken ones help nobody."""
    if name.startswith("etc/alternatives/"):
        return target.startswith(("/usr/", "/bin/", "/sbin/", "/lib")) and "/man/" not in target and os.path.lexists(root / target[1:])
    if name.startswith("etc/ssl/certs/") and target.startswith("/"):
        return target.startswith(("/usr/share/", "/etc/ssl/certs/"))
    return not target.startswith("/") or target.startswith(("/usr/", "/etc/ssl/", "/etc/pki/", "/etc/alternatives/"))


def _accounts(root: Path, name: str, *, fields: int) -> bytes:
    """passwd or group with the system's accounts only, no passwords, and no members who are people."""
    kept: list[list[str]] = []
    try:
        lines = (root / "etc" / name).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        columns = line.split(":")
        if len(columns) == fields and columns[0] and columns[2].isdigit() and (int(columns[2]) < _FIRST_PERSON_ID or int(columns[2]) == _NOBODY):
            columns[1] = "x"
            if fields == 4:
                columns[3] = ""
            kept.append(columns)
    if not any(columns[2] == "0" for columns in kept):
        kept.insert(0, ["root", "x", "0", "0", "root", "/root", "/bin/sh"] if fields == 7 else ["root", "x", "0", ""])
    return "".join(":".join(columns) + "\n" for columns in kept).encode()


def _moment(root: Path) -> int:
    """When the host's system was made, as far as a file can tell: stable from one call to the next."""
    for name in ("usr/lib/os-release", "etc/os-release", "usr"):
        try:
            return int((root / name).stat().st_mtime)
        except OSError:
            continue
    return 0
