"""``machine.json`` in a container's host directory: what its shepherd tells of the machine, how it runs and how it ended."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bulle.model.run_plan import RunPlan

RECORD_NAME = "machine.json"


class Record(msgspec.Struct):
    """``accelerator`` is kvm or tcg, ``hypervisor`` says which type that is. ``status`` is the command's wait status in the guest, ``ended`` why the
    machine ended before it; ``out_of_memory``: the guest's kernel killed a process of the command because its memory was used up; ``refused``
    names system calls that the filter did not let pass. ``start`` is how it began: cold, template, kept or moved."""

    accelerator: str = ""
    hypervisor: str = ""
    kernel: str = ""
    architecture: str = ""
    processors: int = 0
    memory_bytes: int = 0
    hypervisor_pid: int = 0
    start: str = ""
    ended: str = ""
    status: int | None = None
    out_of_memory: bool = False
    refused: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(Record)


def read_record(directory: str) -> Record:
    """What the last shepherd of a container (host directory) told; an empty one where there was none."""
    try:
        return _decoder.decode(Path(directory, RECORD_NAME).read_bytes())
    except (OSError, msgspec.DecodeError):
        return Record()


def usable_memory_bytes(plan: RunPlan) -> int:
    """What the container of a plan may use of its guest's memory."""
    assert plan.guest is not None
    return plan.resources.memory_bytes or plan.guest.memory_bytes
