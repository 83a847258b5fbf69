"""One container's control group: limits, and a handle on all of its processes, the same on version 1, hybrid and version 2.

A driver makes it before it forks (:meth:`ControlGroup.create`); the child enters by itself (``clone_into_fd`` for clone3, :meth:`attach_self`
elsewhere), because moving another process waits for an RCU grace period. Everything else works from the container's id alone, in any process, also
after a crash. Where a machine gives no groups (read-only, not delegated) a container without limits runs all the same, with a note; a limit that was
asked for raises. Where groups are is :mod:`bulle.isolation.control_group_layout`'s business, what Docker's limits are called in each version
:mod:`bulle.isolation.control_group_settings`'s. Specification: config-linux.md#control-groups of the OCI runtime.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable

from bulle.errors import BulleError, Unavailable
from bulle.isolation import delegated_group
from bulle.isolation.control_group_io import Setting
from bulle.isolation.control_group_layout import Availability, Layout, LayoutV1, LayoutV2, layout
from bulle.isolation.control_group_settings import check, settings_v2
from bulle.isolation.statistics import Statistics, of_group
from bulle.linux import control_group as kernel
from bulle.model.run_plan import Resources

__all__ = ["Availability", "ControlGroup", "Layout", "LayoutV1", "LayoutV2", "Statistics", "available", "check", "layout"]


def statistics(container_id: str) -> Statistics:
    """What the container's group counts, whatever of it there is."""
    machine = layout()
    return of_group(machine.directories(container_id)) if machine else Statistics()


def available() -> Availability:
    """Which limits this user can set on this machine, and why not the others: data, never an exception."""
    found = layout()
    return found.available() if found else Availability(frozenset(), "no control groups are mounted")


class ControlGroup:
    """The group of one container; see the module. ``notes`` say what is weaker than asked for in a way that the user must be told."""

    def __init__(self, container_id: str, machine: Layout | None, directories: dict[str, str]) -> None:
        self.container_id = container_id
        self.notes: list[str] = []
        self.clone_into_fd = -1
        """An open directory for CLONE_INTO_CGROUP (version 2), or -1."""
        self._layout = machine
        self._directories = directories
        self._entrances: list[int] = []
        self._delegated = delegated_group.directory(container_id, machine)
        """Version 1: the directory of version 2 that the container may have for itself."""

    @classmethod
    def create(
        cls,
        container_id: str,
        resources: Resources,
        *,
        restrict_devices: bool = False,
        accounting: bool = False,
        optional: bool = False,
        machine: Layout | None = None,
    ) -> ControlGroup:
        """Make the group with its limits, ready to be entered.

        ``restrict_devices`` allows only Docker's default devices (needed without a user namespace of its own, where mknod works); ``accounting``
        counts memory, processor time and processes also without limits. With ``optional`` there is no group where none of these asks for one and
        entering it is dear: in version 1 every entrance waits for the other processors. ``machine`` stands in for :func:`layout` in tests. Raises
        InvalidInput for limits that cannot be, Unavailable for a limit that this machine cannot set; then nothing is left behind.
        """
        check(resources)
        machine = machine or layout()
        settings = machine.settings(resources) if machine else settings_v2(resources)
        needed = {setting.controller for setting in settings}
        group = cls(container_id, machine, {})
        if optional and not (settings or restrict_devices or accounting) and isinstance(machine, LayoutV1):
            return group
        try:
            if machine is None:
                raise FileNotFoundError(2, "no control groups are mounted")
            wanted = needed | {"memory", "cpuacct", "cpu", "pids"} if accounting else needed
            group._directories = machine.make(container_id, wanted, restrict_devices)
            group._open_entrances()
        except OSError as error:
            group.close()
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
            offered = machine.available() if machine is not None else None
            lacking = [setting for setting in settings if offered and setting.controller not in offered.controllers]
            if offered and (lacking or not offered.controllers):
                reason = offered.reason or reason
            if settings or restrict_devices:
                what = (lacking or settings)[0].option if settings else "the list of allowed devices"
                raise Unavailable(f"{what} cannot be applied", reason, "see `bulle doctor`, or run without it") from error
            return group  # nothing was asked for that it would have done; doctor says that limits cannot be had
        try:
            for setting in settings:
                group._apply(setting)
        except BaseException:
            group.close()
            group.remove(0)
            raise
        return group

    @classmethod
    def open(cls, container_id: str, machine: Layout | None = None) -> ControlGroup:
        """The group that :meth:`create` made, in whatever process; no error when there is none (then every verb finds nothing to do)."""
        machine = machine or layout()
        existing = {} if machine is None else {k: d for k, d in machine.directories(container_id).items() if os.path.isdir(d)}
        group = cls(container_id, machine, existing)
        with contextlib.suppress(OSError):
            group._open_entrances()
        return group

    @property
    def controllers(self) -> tuple[str, ...]:
        """Version 1: the controllers with a directory of this group; version 2: one empty name."""
        return tuple(self._directories)

    def delegate(self, user_id: int, group_id: int) -> None:
        """Give the container a group of version 2 to manage by itself: to the host's ids of its root. Raises Unavailable."""
        try:
            entrance = delegated_group.make(self._delegated or self._directories.get("", ""), user_id, group_id)
        except OSError as error:
            raise Unavailable("the container can be given no control group", f"{error.filename}: {error.strerror}", "see `bulle doctor`") from error
        self._entrances += [entrance] if self._delegated else []
        if not self._delegated:
            os.close(entrance)

    def enter_delegated(self) -> None:
        """Have whoever enters do so where the container's own init leaves room."""
        if self._delegated:
            self._entrances.append(os.open(f"{self._delegated}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        elif self.clone_into_fd >= 0:
            os.close(self.clone_into_fd)
            self.clone_into_fd = delegated_group.open_leaf(self._directories[""])

    def _open_entrances(self) -> None:
        for name, directory in self._directories.items():
            if name:
                self._entrances.append(os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            else:
                self.clone_into_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _directory(self, setting: Setting) -> str:
        directory = self._directories.get(setting.controller) or self._directories.get("")
        if directory is None:
            raise Unavailable(f"{setting.option} cannot be applied", f"this machine has no {setting.controller} controller", "run without it")
        return directory

    def _apply(self, setting: Setting) -> None:
        directory = self._directory(setting)
        for name, value, _lifted in (*setting.instead, (setting.file, setting.value, "")):
            try:
                if name:
                    kernel.write(directory, name, value)
                    return
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _refused(setting, name, value, error) from error
        if not setting.optional:
            details = f"the {setting.controller} controller of this machine has no {setting.file}"
            raise Unavailable(f"{setting.option} cannot be applied", details, "see `bulle doctor`")
        self.notes.append(setting.optional)

    def change(self, before: Resources, after: Resources, find: Callable[[], list[int]]) -> None:
        """Replace the limits of the living group, all or none; ``find`` tells the workload's processes where the group has none yet.

        Raises what :meth:`create` raises.
        """
        check(after)
        machine = self._layout
        old, new = ({(one.controller, one.file): one for one in (machine.settings(one) if machine else settings_v2(one))} for one in (before, after))
        wanted = [one for key, one in new.items() if key not in old or old[key].value != one.value]
        lifted = [one for key, one in old.items() if key not in new]
        self.extend({one.controller for one in wanted}, find)
        done: list[tuple[str, str, str]] = []
        try:
            for setting, lift in [*((one, False) for one in self._in_order(wanted)), *((one, True) for one in reversed(lifted))]:
                self._change(setting, lift, done)
        except BaseException:
            for directory, name, value in reversed(done):
                with contextlib.suppress(OSError):
                    kernel.write(directory, name, value)
            raise

    def _change(self, setting: Setting, lift: bool, done: list[tuple[str, str, str]]) -> None:
        """One limit of a living group; ``done`` gets what is to be written to undo it."""
        directory = self._directory(setting)
        for name, value, lifted in (*setting.instead, (setting.file, setting.value, setting.lifted)):
            if not name or not os.path.exists(f"{directory}/{name}"):
                continue
            was = kernel.read(directory, name)
            try:
                kernel.write(directory, name, (lifted or kernel.read(os.path.dirname(directory), name) or "\n") if lift else value)
            except OSError as error:
                raise _refused(setting, name, value, error) from error
            done.append((directory, name, was or "\n"))
            return
        if not lift:
            self._apply(setting)  # which says that there is no such file

    def _in_order(self, settings: list[Setting]) -> list[Setting]:
        """Version 1 refuses a sum of memory and swap that is below the memory, whichever of them is written first."""
        total = next((one for one in settings if one.file == "memory.memsw.limit_in_bytes"), None)
        if total is None or int(total.value) < int(self._read("memory", total.file) or 0):
            return settings
        return [total, *(one for one in settings if one is not total)]

    def extend(self, controllers: set[str], find: Callable[[], list[int]]) -> None:
        """Have the living group counted and limited by more controllers, with every process that ``find`` tells. OSError, Unavailable."""
        machine = self._layout
        if machine is None or not machine.available().controllers >= controllers:
            reason = machine.available().reason if machine else "no control groups are mounted"
            raise Unavailable("this container has no control group that could be used", reason, "see `bulle doctor`")
        made = machine.extend(self.container_id, controllers, self._directories)
        self._directories.update(made)
        self.gather(find, made)
        if not self.processes():
            for directory in made.values():  # nobody would remove them
                kernel.remove(directory, 0)
            raise BulleError("the container is not running", "it has just ended", "")

    def gather(self, find: Callable[[], list[int]], directories: dict[str, str] | None = None) -> None:
        """Bring in the processes that ``find`` tells and that are not there, until it tells no other."""
        for directory in dict.fromkeys((self._directories if directories is None else directories).values()):
            tried: set[int] = set()
            while strangers := set(find()).difference(kernel.processes(directory), tried):
                for pid in sorted(strangers):
                    with contextlib.suppress(ProcessLookupError):
                        kernel.write(directory, "cgroup.procs", str(pid))
                tried |= strangers

    def descriptors(self) -> list[int]:
        """The open files to which a process writes ``0`` to enter; none on version 2, where clone3 does it."""
        return list(self._entrances)

    def attach_self(self) -> None:
        """Enter: the calling thread, before it becomes a container's process. After a clone3 with ``clone_into_fd`` there is nothing left to do."""
        for descriptor in self._entrances:
            os.write(descriptor, b"0")

    def processes(self) -> list[int]:
        """The host's pids of all in the group, ascending; empty when the group is not there."""
        for directory in self._directories.values():
            return kernel.processes(directory)
        return []

    def freeze(self, timeout_s: float = 5.0) -> bool:
        """Stop every process where it stands; False when that did not succeed in time."""
        return self._layout is not None and self._layout.freeze(self._directories, True, timeout_s)

    @staticmethod
    def is_frozen(container_id: str) -> bool:
        """Whether the container's group was told to stand still; one look at the kernel."""
        machine = layout()
        return machine is not None and machine.is_frozen(machine.directories(container_id))

    def thaw(self, timeout_s: float = 5.0) -> bool:
        """Let them continue."""
        return self._layout is not None and self._layout.freeze(self._directories, False, timeout_s)

    def kill(self, timeout_s: float = 5.0) -> bool:
        """SIGKILL all processes, frozen meanwhile so that none can fork away; False when some were left after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.processes():
            together = "" in self._directories  # version 2 kills a group at once
            if not together:
                self.freeze(min(0.5, timeout_s))
            kernel.kill(next(iter(self._directories.values())))
            if not together:
                self.thaw(min(0.5, timeout_s))
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def oom_count(self) -> int:
        """How many of its processes the kernel killed for want of memory; only counted where a memory limit (or accounting) was asked for."""
        if "" in self._directories:
            return kernel.read_values(self._directories[""], "memory.events").get("oom_kill", 0)
        return kernel.read_values(self._directories.get("memory", ""), "memory.oom_control").get("oom_kill", 0)

    def stats(self) -> Statistics:
        """What the group has used until now."""
        return of_group(self._directories)

    def _read(self, controller: str, name: str) -> str:
        return kernel.read(self._directories[controller], name) if controller in self._directories else ""

    def remove(self, timeout_s: float = 2.0) -> bool:
        """Remove the group once its processes have gone; harmless to repeat. False when some are still there after ``timeout_s``."""
        directories = [*self._directories.values(), *([self._delegated] if self._delegated else [])]
        results = [kernel.remove(directory, timeout_s) for directory in directories]
        return all(results)

    def close(self) -> None:
        """Close the entrances; the group stays."""
        for descriptor in self._entrances:
            os.close(descriptor)
        self._entrances.clear()
        if self.clone_into_fd >= 0:
            os.close(self.clone_into_fd)
            self.clone_into_fd = -1


def _refused(setting: Setting, name: str, value: str, error: OSError) -> BulleError:
    reason = "the container uses more than that now" if error.errno == errno.EBUSY else str(error.strerror)
    return BulleError(f"{setting.option} cannot be applied", f"{name} refuses {value!r}: {reason}")
