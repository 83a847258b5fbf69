"""``RUN --mount``: what stands in a step's container besides its root, for the time of the step.

``bind`` shows files of the context, a stage or an image: they are brought into a layer of their own first, so that nothing can change or lead
elsewhere while the step runs, and mounted as every layer is. ``cache`` is a directory of the home that outlives builds, by the digest of its name.
``secret`` is a private file for one step, ``ssh`` the caller's agent. Dockerfile reference, "RUN --mount".
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bulle.build.agent import AgentRelay
from bulle.build.cache import Inputs
from bulle.build.copying import Group, Placement, Target
from bulle.build.instructions import Run, RunMount
from bulle.build.options import BuildOptions, Secret
from bulle.build.sources import Source
from bulle.errors import InvalidInput, NotFound
from bulle.linux import user_namespace
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.model.digest import Digest
from bulle.model.run_plan import LayerMount, Mount
from bulle.store import Store
from bulle.store.build_mounts import LOCK
from bulle.store.merged_view import MergedView
from bulle.store.workspace import remove_tree

_MOST_SECRET_BYTES = 512 * 1024
_MOST_PRIVATE = 1000
_AGENT_VARIABLE = "SSH_AUTH_SOCK"

OpenSource = Callable[[str], Source]
"""The source that a ``from`` names, "" for the context; it stays open as long as the step."""


class StepMounts:
    """The mounts of one RUN: first what they depend on (:meth:`describe`), then what stands where (:meth:`prepare`). A context manager."""

    def __init__(self, run: Run, working_directory: str, store: Store, options: BuildOptions, open_source: OpenSource) -> None:
        self._run = run
        self._working_directory = working_directory
        self._store = store
        self._options = options
        self._open_source = open_source
        self._layers: dict[RunMount, tuple[Digest, bytes]] = {}
        self._contents: dict[RunMount, Path] = {}
        self._held: dict[str, Path] = {}
        self._cleanup = ExitStack()
        self.mounts: list[Mount] = []
        self.volume_layers: list[LayerMount] = []
        self.variables: list[str] = []
        """Of the step's environment, not to be written down."""

    def __enter__(self) -> StepMounts:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def describe(self, inputs: Inputs) -> None:
        """Add what counts for the cache: the files of binds; not what caches, secrets and agents hold."""
        for mount in self._run.mounts:
            inputs.add(f"mount {mount.type} {mount.target}", repr(mount))
            if mount.type == "bind" or (mount.type == "cache" and mount.from_):
                # Now, while no lock is held and no place among the running commands: it may wait for another stage.
                diff_id, name = self._bring(mount)
                inputs.add(f"files of {mount.from_ or 'the context'} at {mount.target}", f"{diff_id} {name!r}")

    def prepare(self) -> None:
        """Make everything ready. Raises NotFound for a secret or agent that is required and not given."""
        # Everyone takes the locks of caches in one order, so that no two steps wait for each other.
        for mount in sorted((mount for mount in self._run.mounts if mount.type == "cache"), key=lambda mount: (mount.id, mount.sharing)):
            self._contents[mount] = self._cache_content(mount)
        for mount in self._run.mounts:
            {"bind": self._bind, "cache": self._cache, "tmpfs": self._tmpfs, "secret": self._secret, "ssh": self._ssh}[mount.type](mount)
        script = self._run.script
        if script is not None:
            self._file(f"/dev/pipes/{script.name}", script.content.encode(), 0o755, 0, 0)

    def _target(self, mount: RunMount) -> str:
        return os.path.normpath(os.path.join(self._working_directory, mount.target))

    def _bring(self, mount: RunMount) -> tuple[Digest, bytes]:
        """The layer with what a bind shows, and the name of the file in it ("" for a directory)."""
        if mount not in self._layers:
            source = self._open_source(mount.from_)
            tops = source.find(mount.source or "/")
            if not tops:
                raise NotFound(f"{self._run.location}: {mount.source!r} is not in {source.what}", "", "check the mount's source")
            placement = Placement(MergedView([]), Target("/", into=True, owner=None, link=True), 0)
            placement.add([Group(source, tops[:1])])
            name = b"" if tops[0].entry.is_directory else tops[0].name.rpartition(b"/")[2]
            self._layers[mount] = (self._store.layers.add(placement.stream(None)).diff_id, name)
        return self._layers[mount]

    def _bind(self, mount: RunMount) -> None:
        diff_id, name = self._bring(mount)
        if mount.read_only is False:
            copy = self._temporary() / "copy"
            copy.mkdir()
            self._store.layers.extract(diff_id, copy)
            place = str(copy)
        else:
            [layer] = self._store.layers.plan([diff_id])
            self.volume_layers.append(layer)
            place = layer.host_path
        host_path = os.path.join(place, os.fsdecode(name)) if name else place
        self.mounts.append(Mount("bind", self._target(mount), host_path, mount.read_only is not False))

    def _cache(self, mount: RunMount) -> None:
        self.mounts.append(Mount("bind", self._target(mount), str(self._contents[mount]), bool(mount.read_only)))

    def _cache_content(self, mount: RunMount) -> Path:
        name = (mount.id or self._target(mount)) + (f" {self._bring(mount)[0]}" if mount.from_ else "")
        held = self._held.get(name)
        if held is not None:
            return held  # one step may see a cache at two places; it would wait for itself
        directory = self._store.build_mounts.held(name, self._cleanup)
        content = self._locked(directory, mount.sharing)
        filling = os.open(directory / "filling", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(filling, fcntl.LOCK_EX)
            if not content.exists():
                self._fill(content, mount)
        finally:
            os.close(filling)
        self._held[name] = content
        return content

    def _fill(self, content: Path, mount: RunMount) -> None:
        """Make the directory of a cache, with the owner and the first content that were asked for."""
        made = self._temporary() / "cache"
        made.mkdir()
        if mount.from_:
            diff_id, _name = self._bring(mount)
            self._store.layers.extract(diff_id, made)
        _give(made, 0o755 if mount.mode is None else mount.mode, mount.uid, mount.gid)
        made.rename(content)

    def _locked(self, directory: Path, sharing: str) -> Path:
        """The directory of a cache, held against others as was asked for until the step has ended, and against being pruned."""
        for number in range(_MOST_PRIVATE):
            suffix = f"-{number}" if number else ""
            lock = os.open(directory / f"{LOCK}{suffix}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._cleanup.callback(os.close, lock)
            if sharing == "private":
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
            else:
                fcntl.flock(lock, fcntl.LOCK_EX if sharing == "locked" else fcntl.LOCK_SH)
            return directory / f"content{suffix}"
        raise InvalidInput(f"{self._run.location}: too many steps use this private cache at once")

    def _tmpfs(self, mount: RunMount) -> None:
        options = (f"size={mount.size_bytes}",) if mount.size_bytes else ()
        self.mounts.append(Mount("tmpfs", self._target(mount), options=options))

    def _secret(self, mount: RunMount) -> None:
        secret = next((one for one in self._options.secrets if one.id == mount.id), None)
        if secret is None:
            if mount.required:
                raise NotFound(
                    f"{self._run.location}: the secret {mount.id!r} is required", "it was not given", f"add --secret id={mount.id},src=FILE"
                )
            return
        value = secret_value(secret, self._options)
        if mount.env:
            self.variables.append(f"{mount.env}={value.decode('utf-8', 'surrogateescape')}")
        if not mount.env or mount.target:
            mode = 0o400 if mount.mode is None else mount.mode
            self._file(self._target(mount), value, mode, mount.uid, mount.gid)

    def _ssh(self, mount: RunMount) -> None:
        given = {identity or "default": path for identity, _, path in (item.partition("=") for item in self._options.ssh)}
        name = mount.id or "default"
        if name not in given:
            if mount.required:
                raise NotFound(f"{self._run.location}: the ssh agent {name!r} is required", "it was not given", f"add --ssh {name}")
            return
        path = given[name] or self._options.environment.get(_AGENT_VARIABLE, "")
        if not path or not Path(path).is_socket():
            raise NotFound(
                f"the ssh agent {name!r} cannot be reached", f"{path or _AGENT_VARIABLE} is no socket", "start ssh-agent, or name its socket"
            )
        target = self._target(mount) if mount.target else "/run/buildkit/ssh_agent.0"
        directory = self._temporary()
        self._cleanup.enter_context(AgentRelay(directory, "agent", path))
        _give(directory / "agent", 0o600 if mount.mode is None else mount.mode, mount.uid, mount.gid)
        self.mounts.append(Mount("bind", target, str(directory / "agent")))
        self.variables.append(f"{_AGENT_VARIABLE}={target}")

    def _file(self, container_path: str, content: bytes, mode: int, uid: int, gid: int) -> None:
        """A file of its own for this step."""
        path = self._temporary() / "file"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        _give(path, mode, uid, gid)
        self.mounts.append(Mount("bind", container_path, str(path), True))

    def _temporary(self) -> Path:
        """A directory that goes with the step; only its owner may enter it."""
        path = self._store.temporary_directory()
        self._cleanup.callback(remove_tree, path)
        return path


def _give(path: Path, mode: int, uid: int, gid: int) -> None:
    """Mode and owner, as the container's users have them."""

    def give() -> None:
        os.chown(path, uid, gid)
        os.chmod(path, mode)

    if os.geteuid() == 0:
        give()
    elif uid or gid:
        user_namespace.call(*rootless_mappings(), give)
    else:
        os.chmod(path, mode)


def secret_value(secret: Secret, options: BuildOptions) -> bytes:
    """What a secret holds. Raises NotFound, InvalidInput; its value is in no message."""
    if secret.variable:
        value = options.environment.get(secret.variable)
        if value is None:
            raise NotFound(f"the secret {secret.id!r} cannot be had", f"there is no variable {secret.variable}", "set it, or name a file with src=")
        return value.encode("utf-8", "surrogateescape")
    try:
        with Path(secret.source).open("rb") as file:
            content = file.read(_MOST_SECRET_BYTES + 1)
    except OSError as error:
        raise NotFound(f"the secret {secret.id!r} cannot be read", f"{secret.source}: {error.strerror}", "check src=") from None
    if len(content) > _MOST_SECRET_BYTES:
        raise InvalidInput(f"the secret {secret.id!r} is too large", f"a secret has at most {_MOST_SECRET_BYTES} bytes")
    return content
