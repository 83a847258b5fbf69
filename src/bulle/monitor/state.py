"""``state.json``: what a container's monitor last knew, replaced atomically, and how anyone else tells whether it still holds.

Written by the monitor alone, read by every command. Whether a process lives is asked of the kernel at that moment (pid, start time and boot id
together); a file that says "running" about a process that is gone means that both the monitor and the container died unseen.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bulle.linux import process
from bulle.model.container import ContainerState
from bulle.records import reserve

STATE_FILE = "state.json"
_decoder = msgspec.json.Decoder(ContainerState)


def write_state(directory: str, state: ContainerState) -> None:
    """Replace the state of the container whose host directory is given."""
    reserve.replace_file(Path(directory).parent.parent, f"{directory}/{STATE_FILE}", msgspec.json.encode(state))


def read_state(directory: str) -> ContainerState:
    """What the monitor last wrote; a container that never started is ``created``."""
    try:
        fd = os.open(f"{directory}/{STATE_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ContainerState()
    try:
        return _decoder.decode(os.read(fd, 65536))
    except msgspec.DecodeError:
        return ContainerState(status="dead", exit_code=-1, error="its state file is damaged")
    finally:
        os.close(fd)


def is_process_alive(state: ContainerState) -> bool:
    """Whether the workload's first process is the one that was started, and lives."""
    return state.boot_id == process.boot_id() and process.start_ticks(state.pid) == state.pid_start_ticks != 0


def is_monitor_alive(state: ContainerState) -> bool:
    """Whether the monitor that wrote the state is still there."""
    return state.boot_id == process.boot_id() and process.start_ticks(state.monitor_pid) == state.monitor_start_ticks != 0


def look(directory: str) -> tuple[ContainerState, bool]:
    """The state as it is now, and whether the workload lives, or is to live again, without a monitor (which should be given one)."""
    state = read_state(directory)
    # One look at the kernel is enough where the monitor lives: it would have written the end.
    if not state.active or is_monitor_alive(state):
        return state, False
    if state.status == "restarting":
        here = state.boot_id == process.boot_id()
        return (state, True) if here else (msgspec.structs.replace(state, status="exited"), False)
    if is_process_alive(state):
        return state, True
    state = read_state(directory)  # the monitor may have written the end between the two looks
    if state.status != "running":
        return state, False
    return (state, True) if is_process_alive(state) else (lost(state), False)


def current_state(directory: str) -> ContainerState:
    """The state as it is now: what was written, corrected by what the kernel says.

    ``running`` is only answered for a live process, or while a live monitor is about to record its end.
    """
    return look(directory)[0]


def lost(state: ContainerState) -> ContainerState:
    """The state of a container that ended while nobody was there to see how (a reboot, or monitor and spawner killed at once)."""
    return msgspec.structs.replace(state, status="exited", pid=0, exit_code=-1, error="it ended while nothing was watching; its exit code is unknown")
