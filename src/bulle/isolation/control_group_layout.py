"""Where a machine's control groups are, how they are made and frozen, in version 1 (and hybrid) and in version 2: one interface, two layouts.

:mod:`bulle.isolation.control_group` is the only caller. A container's group is ``bulle/ID`` below the mount of each controller, or below the scope
that systemd delegates; bases are made when the first container needs them and stay, as Docker's do. A layout writes nothing outside of ``bulle``, but
for the controllers that version 2's root hands down. Tests give layouts that stand on ordinary directories.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from bulle.isolation import control_group_scope
from bulle.isolation.control_group_io import Setting
from bulle.isolation.control_group_settings import DEVICE_RULES, settings_v1, settings_v2
from bulle.linux import control_group as kernel
from bulle.linux import device_filter
from bulle.linux.control_group import Hierarchy
from bulle.model.run_plan import Resources

_BASE = "bulle"
_ENABLED_V2 = ("memory", "cpu", "cpuset", "pids")
_IF_OFFERED_V2 = ("io",)  # systemd hands it down to no ordinary user: nothing to complain of
# Java asks after its limits only where it finds these four hierarchies together, and takes the machine's memory for its own otherwise.
_SEEN_TOGETHER = frozenset(("cpu", "cpuacct", "cpuset", "memory"))


class Availability(NamedTuple):
    """The controllers with which limits can be set (``devices`` and ``freezer`` too), and why others are missing (empty when none is)."""

    controllers: frozenset[str]
    reason: str


class Layout(ABC):
    """Where this machine's groups are, and what the files of one version are called."""

    @abstractmethod
    def available(self) -> Availability:
        """Which limits can be set; found out by trying."""

    @abstractmethod
    def directories(self, container_id: str) -> dict[str, str]:
        """Every directory (host path) that the container's group can have, by controller; one entry on version 2."""

    @abstractmethod
    def settings(self, resources: Resources) -> list[Setting]:
        """What to write for these limits, in order."""

    @abstractmethod
    def make(self, container_id: str, controllers: set[str], restrict_devices: bool) -> dict[str, str]:
        """Make what is needed for these controllers; returns the directories made. OSError when the kernel refuses."""

    @abstractmethod
    def extend(self, container_id: str, controllers: set[str], directories: dict[str, str]) -> dict[str, str]:
        """Make what a living group with these ``directories`` lacks for more controllers; returns the directories made. OSError."""

    @abstractmethod
    def is_frozen(self, directories: dict[str, str]) -> bool:
        """Whether the group was told to stop."""

    @abstractmethod
    def freeze(self, directories: dict[str, str], frozen: bool, timeout_s: float) -> bool:
        """Stop or continue all processes of the group; False when it is not (yet) so."""


class LayoutV1(Layout):
    """A hierarchy for each controller. Every container gets a group in ``freezer`` (to find, stop and kill it), others where they are needed."""

    def __init__(self, hierarchies: tuple[Hierarchy, ...]) -> None:
        self._mounts = {controller: h for h in hierarchies if h.version == 1 for controller in h.controllers}
        self._always = next((name for name in ("freezer", "pids", "devices", "memory") if name in self._mounts), "")

    def available(self) -> Availability:
        """By making the base group of each hierarchy."""
        usable, reasons = set(), {}
        for controller, hierarchy in self._mounts.items():
            if hierarchy.read_only:
                reasons[hierarchy.mount_path] = "read-only"
                continue
            try:
                self._base(controller)
                usable.add(controller)
            except OSError as error:
                reasons[hierarchy.mount_path] = str(error.strerror)
        texts = [f"{', '.join(path for path in reasons if reasons[path] == why)}: {why}" for why in dict.fromkeys(reasons.values())]
        return Availability(frozenset(usable), "; ".join(texts))

    def _base(self, controller: str) -> str:
        """The group below which the containers' are, made when missing. A cpuset is useless until it is told its processors and memory."""
        mount = self._mounts[controller].mount_path
        base = f"{mount}/{_BASE}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(base, 0o755)
        if not os.access(base, os.W_OK):
            raise PermissionError(13, "Permission denied", base)
        if controller == "cpuset" and not kernel.read(base, "cpuset.mems"):
            for name in ("cpuset.cpus", "cpuset.mems"):
                kernel.write(base, name, kernel.read(mount, name))
        return base

    def _fill_cpuset(self, directory: str) -> None:
        """What the base has: nobody can enter an empty cpuset."""
        base = directory.rpartition("/")[0]
        if not kernel.read(base, "cpuset.mems"):
            self._base("cpuset")
        for name in ("cpuset.cpus", "cpuset.mems"):
            kernel.write(directory, name, kernel.read(base, name))

    def directories(self, container_id: str) -> dict[str, str]:
        """One for each controller that is mounted."""
        return {name: f"{hierarchy.mount_path}/{_BASE}/{container_id}" for name, hierarchy in self._mounts.items()}

    def settings(self, resources: Resources) -> list[Setting]:
        """In the words of version 1."""
        return settings_v1(resources)

    def make(self, container_id: str, controllers: set[str], restrict_devices: bool) -> dict[str, str]:
        """One mkdir for each, and the base when it is the first. Groups that a program only looks at may be missing."""
        wanted = {name for name in controllers | {self._always} if name in self._mounts}
        if restrict_devices and "devices" in self._mounts:
            wanted.add("devices")
        seen = _SEEN_TOGETHER.intersection(self._mounts) if controllers & _SEEN_TOGETHER else frozenset()
        made: dict[str, str] = {}
        try:
            self._make_groups(container_id, wanted, seen, made)
            if restrict_devices and "devices" in made:
                kernel.write(made["devices"], "devices.deny", "a")
                for rule in DEVICE_RULES:
                    kernel.write(made["devices"], "devices.allow", rule.line())
        except OSError:
            for directory in made.values():
                kernel.remove(directory, 0)
            raise
        return made

    def _make_groups(self, container_id: str, wanted: set[str], seen: AbstractSet[str], made: dict[str, str]) -> None:
        for controller in sorted(wanted | seen):
            directory = f"{self._mounts[controller].mount_path}/{_BASE}/{container_id}"
            if controller not in wanted and directory in made.values():
                continue
            try:
                _make_directory(directory, functools.partial(self._base, controller))
                made[controller] = directory
                if controller == "cpuset":
                    self._fill_cpuset(directory)  # a limit may be on processors, on memory or on both
            except OSError:
                if controller in wanted:
                    raise
                if made.pop(controller, ""):
                    kernel.remove(directory, 0)

    def extend(self, container_id: str, controllers: set[str], directories: dict[str, str]) -> dict[str, str]:
        """The groups that are missing, those that belong to the same hierarchy included."""
        made: dict[str, str] = {}
        missing = {name for name in controllers if name not in directories and name in self._mounts}
        try:
            self._make_groups(container_id, missing, frozenset(), made)
        except OSError:
            for directory in made.values():
                kernel.remove(directory, 0)
            raise
        return made

    def is_frozen(self, directories: dict[str, str]) -> bool:
        """One that is about to be counts."""
        return kernel.read(directories.get("freezer", ""), "freezer.state") in ("FROZEN", "FREEZING")

    def freeze(self, directories: dict[str, str], frozen: bool, timeout_s: float) -> bool:
        """By the freezer's state."""
        directory = directories.get("freezer", "")
        state = "FROZEN" if frozen else "THAWED"
        deadline = time.monotonic() + timeout_s
        while directory:
            try:
                kernel.write(directory, "freezer.state", state)
            except OSError:
                return False
            if kernel.read(directory, "freezer.state") == state:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return False


class LayoutV2(Layout):
    """One hierarchy. ``base`` (host path) holds the containers' groups; it is made, and its controllers switched on, when the first needs it."""

    def __init__(self, hierarchy: Hierarchy, base: str = "", prepare: control_group_scope.Prepare | None = None) -> None:
        """``prepare`` makes ``base`` where somebody else owns the tree (systemd); it returns why it could not."""
        self._hierarchy = hierarchy
        self._root = hierarchy.mount_path
        self._base = base or f"{self._root}/{_BASE}"
        self._prepare = prepare

    def available(self) -> Availability:
        """What the base has switched on, or what its parent could hand down."""
        if self._hierarchy.read_only:
            return Availability(frozenset(), f"{self._root} is read-only")
        if self._prepare is not None:
            offered, reason = control_group_scope.offered(self._root, self._base)
        else:
            offered, reason = set(kernel.read_words(f"{self._root}/cgroup.controllers")), ""
            if not os.access(self._root, os.W_OK):
                reason = f"{self._root} belongs to another user, who delegated nothing"
            handed_down = kernel.read_words(f"{self._root}/cgroup.subtree_control")
            if not offered.issubset(handed_down) and self._is_crowded():
                reason = f"processes stand in {self._root} itself, which may then hand no controllers down (move them to a group below)"
        if reason:
            return Availability(frozenset(), reason)
        usable = offered.intersection((*_ENABLED_V2, *_IF_OFFERED_V2))
        missing = sorted(set(_ENABLED_V2) - usable)
        return Availability(frozenset(usable | {"freezer"}), f"{self._root} does not offer {', '.join(missing)}" if missing else "")

    def _is_crowded(self) -> bool:
        """Whether the mount's root is no true root (we are in somebody's container: only the true one lacks this file) and holds processes."""
        return os.path.exists(f"{self._root}/cgroup.type") and bool(kernel.read(self._root, "cgroup.procs"))

    def directories(self, container_id: str) -> dict[str, str]:
        """The one directory."""
        return {"": f"{self._base}/{container_id}"}

    def settings(self, resources: Resources) -> list[Setting]:
        """In the words of version 2."""
        return settings_v2(resources)

    def make(self, container_id: str, controllers: set[str], restrict_devices: bool) -> dict[str, str]:
        """One mkdir; controllers are switched on above it when the first container needs them."""
        directory = f"{self._base}/{container_id}"
        _make_directory(directory, self._make_base)
        try:
            needed = {name for name in controllers if name in (*_ENABLED_V2, *_IF_OFFERED_V2)}
            if not needed.issubset(kernel.read_words(f"{directory}/cgroup.controllers")):
                self._enable(needed)
            if restrict_devices:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    device_filter.attach(descriptor, DEVICE_RULES)
                finally:
                    os.close(descriptor)
        except OSError:
            kernel.remove(directory, 0)
            raise
        return {"": directory}

    def _make_base(self) -> None:
        if self._prepare is not None:
            reason = self._prepare(self._root, self._base)
            if reason:
                raise PermissionError(13, reason, self._base)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._base, 0o755)

    def _enable(self, controllers: set[str]) -> None:
        """Hand controllers down, from the mount (or from the delegated base) to the containers; those that are there stay."""
        for group in [self._base] if self._prepare is not None else [self._root, self._base]:
            missing = controllers.difference(kernel.read_words(f"{group}/cgroup.subtree_control"))
            if missing:
                kernel.write(group, "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))

    def extend(self, container_id: str, controllers: set[str], directories: dict[str, str]) -> dict[str, str]:
        """Nothing to make: controllers are switched on above it."""
        if not directories:
            raise FileNotFoundError(errno.ENOENT, "the container has no control group", f"{self._base}/{container_id}")
        needed = {name for name in controllers if name in (*_ENABLED_V2, *_IF_OFFERED_V2)}
        if not needed.issubset(kernel.read_words(f"{directories['']}/cgroup.controllers")):
            self._enable(needed)
        return {}

    def is_frozen(self, directories: dict[str, str]) -> bool:
        """What was asked for."""
        return kernel.read(directories[""], "cgroup.freeze") == "1"

    def freeze(self, directories: dict[str, str], frozen: bool, timeout_s: float) -> bool:
        """By cgroup.freeze; cgroup.events tells when all have stopped."""
        directory = directories.get("", "")
        try:
            kernel.write(directory, "cgroup.freeze", str(int(frozen)))
        except OSError:
            return False
        deadline = time.monotonic() + timeout_s
        while kernel.read_values(directory, "cgroup.events").get("frozen") != int(frozen):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


def _make_directory(directory: str, make_parent: Callable[[], object]) -> None:
    """mkdir, its parent when missing; one that is there (left by a crash) is taken over, once nothing runs in it."""
    for _ in range(3):
        try:
            os.mkdir(directory, 0o755)
            return
        except FileNotFoundError:
            make_parent()
        except FileExistsError:
            if not kernel.remove(directory, 0):
                return
    os.makedirs(directory, exist_ok=True)


@functools.cache
def layout() -> Layout | None:
    """How this machine lays its groups out; None when it mounts none. Looked up once, forked children share the answer."""
    hierarchies = kernel.hierarchies()
    if any(h.version == 1 and h.controllers & {"memory", "cpu", "pids", "freezer"} for h in hierarchies):
        return LayoutV1(hierarchies)
    for hierarchy in hierarchies:
        if hierarchy.version == 2:
            if control_group_scope.systemd_runs():
                return LayoutV2(hierarchy, control_group_scope.base(hierarchy.mount_path), control_group_scope.prepare)
            return LayoutV2(hierarchy)
    return None
