"""``image mount``: an image's root filesystem, read-only, at a path of the host that outlives the command.

It is an overlay of the image's layers, mounted in the mount namespace of whoever asked, below ``mounts/`` in the home. Beside it a file says of which
boot it is: after a restart of the machine nothing is mounted, and the record is taken away by whoever looks next. A mounted image is not removed. An
ordinary user cannot: what she may mount is seen in a user namespace of hers alone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound, Unavailable, from_parts, to_parts
from bulle.isolation import root_access
from bulle.linux import mount, namespaces, process
from bulle.model.digest import Digest
from bulle.spawner import child
from bulle.store import Image, Store


class MountedImage(msgspec.Struct, frozen=True):
    """One image that is mounted: at which host path, since which boot."""

    image_id: str
    path: str
    boot_id: str


class ImageMounts:
    """The mounted images of one home."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._directory = store.home / "mounts"

    def mount(self, image: Image) -> str:
        """Mount an image; returns the host path, also where it was mounted already. Raises Unavailable for an ordinary user."""
        if image.host_binds:
            why = f"it has no files of its own in {', '.join(image.host_binds)}: those are the host's"
            raise InvalidInput(f"image {Digest(image.id).short} cannot be mounted", why, "look there")
        if os.geteuid() != 0:
            why = "what an ordinary user mounts is seen in a user namespace of hers alone"
            raise Unavailable("images can be mounted by root only", why, "make a container with `bulle create` and use `bulle cp` or `bulle export`")
        with self._locked():
            found = self._find(image.id)
            if found is not None:
                return found.path
            path = self._directory / Digest(image.id).encoded
            path.mkdir(mode=0o700, exist_ok=True)
            layers, caller = self._store.layers.plan(image.layers), _caller()

            def work() -> None:
                namespaces.unshare(namespaces.CLONE_NEWNS)
                mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
                self._store.layers.mount(layers)
                view = root_access.view_of([layer.host_path for layer in layers])
                _enter_namespace_of(caller)
                mount.attach_mount(view, path)

            self._record(path).write_bytes(msgspec.json.encode(MountedImage(image.id, str(path), process.boot_id())))
            try:
                _in_child(work, f"image {Digest(image.id).short} could not be mounted")
            except BaseException:
                self._forget(path)
                raise
            return str(path)

    def unmount(self, image: Image) -> None:
        """Undo :meth:`mount`. Raises NotFound where it is not mounted, Conflict where something uses it."""
        with self._locked():
            found = self._find(image.id)
            if found is None:
                raise NotFound(f"image {Digest(image.id).short} is not mounted", "", "`bulle image mount` lists what is")
            path, caller = Path(found.path), _caller()
            what = f"image {Digest(image.id).short} could not be unmounted"

            def work() -> None:
                _enter_namespace_of(caller)
                try:
                    mount.umount(path, mount.UMOUNT_NOFOLLOW)
                except OSError as error:
                    raise Conflict(what, os.strerror(error.errno or 0), f"see who uses {path}") from error

            _in_child(work, what)
            self._forget(path)

    def list(self) -> list[MountedImage]:
        """What is mounted now, in the caller's mount namespace."""
        if not self._directory.is_dir():
            return []
        with self._locked():
            found = (self._find(f"sha256:{record.stem}") for record in sorted(self._directory.glob("*.json")))
            return [one for one in found if one is not None]

    @contextmanager
    def keeping_away(self, image: Image) -> Iterator[str]:
        """While it lasts, nobody mounts an image; gives the path where it is mounted, or an empty string."""
        if not self._directory.is_dir():
            yield ""
            return
        with self._locked():
            found = self._find(image.id)
            yield found.path if found is not None else ""

    def _find(self, image_id: str) -> MountedImage | None:
        """The record of an image that is really mounted; one that is not true any more is taken away."""
        path = self._directory / Digest(image_id).encoded
        try:
            found = msgspec.json.decode(self._record(path).read_bytes(), type=MountedImage)
        except (OSError, msgspec.DecodeError):
            return None
        if found.boot_id == process.boot_id() and _is_mounted(path):
            return found
        self._forget(path)
        return None

    def _forget(self, path: Path) -> None:
        """Take away the record of an image that is not mounted where the caller is, and the copy of its mount that a spawner's namespace may have."""
        self._record(path).unlink(missing_ok=True)
        with suppress(OSError):
            mount.umount(path, mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
        with suppress(OSError):
            path.rmdir()

    def _record(self, path: Path) -> Path:
        return path.with_name(path.name + ".json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _caller() -> int:
    """The process for which this one works: itself, or whoever sent its command to the spawner."""
    if child.callers_line < 0:
        return os.getpid()
    with socket.socket(fileno=os.dup(child.callers_line)) as line:
        pid: int = struct.unpack("iII", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def _enter_namespace_of(pid: int) -> None:
    with open(f"/proc/{pid}/ns/mnt", "rb") as file:
        namespaces.setns(file.fileno(), namespaces.CLONE_NEWNS)


def _is_mounted(path: Path) -> bool:
    """Whether something stands on the path where the caller is."""
    root = f"/proc/{_caller()}/root"
    try:
        return os.stat(f"{root}{path}").st_dev != os.stat(f"{root}{path.parent}").st_dev
    except OSError:
        return False


def _in_child(work: Callable[[], None], what: str) -> None:
    """Do something in a process of its own, since it changes namespaces; its error is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 -- told to the parent
            kind = error if isinstance(error, BulleError) else BulleError(what, str(error), "see `bulle doctor`")
            os.write(writing, "\0".join(to_parts(kind)).encode()[:60000])
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if said:
        raise from_parts(said.decode(errors="replace").split("\0"))
    if status:
        raise BulleError(what, "the process that did it was killed")
