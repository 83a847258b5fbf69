"""The kernel's virtual machines, as far as one must know whether they are real: a guest of a few instructions, and the time that it takes.

A kernel may offer /dev/kvm and yet interpret a guest's instructions one by one, a hundred times slower than emulation by translation. Linux
documentation, virt/kvm/api.rst
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import time

DEVICE = "/dev/kvm"
KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
KVM_CREATE_VCPU, KVM_RUN = 0xAE41, 0xAE80
KVM_SET_USER_MEMORY_REGION, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS = 0x4020AE46, 0x4090AE82, 0x8138AE83, 0x4138AE84
API_VERSION = 12
KVM_EXIT_HLT = 5
_REGION = struct.Struct("<IIQQQ")
_MEMORY_BYTES = 4096
_EXIT_REASON_OFFSET = 8
_CS_SELECTOR_OFFSET = 12  # struct kvm_segment begins with base (8 bytes) and limit (4)
# mov ecx, imm32; 1: dec ecx; jnz 1b; hlt - in 16-bit mode, at address 0
_LOOP = b"\x66\xb9%b\x66\x49\x75\xfc\xf4"


def iteration_ns(budget_s: float = 0.05) -> float:
    """The processor time that one turn of a loop takes in a guest of the host's own architecture; 0.0 where it is not measured (not on x86).

    Raises OSError where there is no usable device, or the guest ends in another way than it should.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        if fcntl.ioctl(device, KVM_GET_API_VERSION) != API_VERSION:
            raise OSError(38, "KVM_GET_API_VERSION: another version of the interface", DEVICE)
        machine = fcntl.ioctl(device, KVM_CREATE_VM)
        try:
            processor = fcntl.ioctl(machine, KVM_CREATE_VCPU)
            try:
                if platform.machine() != "x86_64":
                    return 0.0
                return _measure(machine, processor, fcntl.ioctl(device, KVM_GET_VCPU_MMAP_SIZE), budget_s)
            finally:
                os.close(processor)
        finally:
            os.close(machine)
    finally:
        os.close(device)


def _measure(machine: int, processor: int, state_bytes: int, budget_s: float) -> float:
    """What a long loop takes longer than a short one, the best of a few turns: others' work on the machine only ever adds."""
    with mmap.mmap(-1, _MEMORY_BYTES) as memory, mmap.mmap(processor, state_bytes) as state:
        address = ctypes.addressof(holder := ctypes.c_char.from_buffer(memory))
        try:
            fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, _REGION.pack(0, 0, 0, _MEMORY_BYTES, address))
            special = bytearray(fcntl.ioctl(processor, KVM_GET_SREGS, bytes(312)))
            struct.pack_into("<Q", special, 0, 0)
            struct.pack_into("<H", special, _CS_SELECTOR_OFFSET, 0)
            fcntl.ioctl(processor, KVM_SET_SREGS, bytes(special))
            _run(processor, memory, state, 1)  # the first entry is slower
            deadline = time.thread_time() + budget_s
            best: dict[int, float] = {}
            for turns in (100, 2000) * 5:
                best[turns] = min(best.get(turns, 1.0), _run(processor, memory, state, turns))
                if time.thread_time() > deadline and len(best) == 2:
                    break
            return max(0.0, best[2000] - best[100]) / 1900 * 1e9
        finally:
            # The guest's memory must not be taken away under it: it ends with its last descriptor, which the caller closes.
            fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, _REGION.pack(0, 0, 0, 0, 0))
            del holder


def _run(processor: int, memory: mmap.mmap, state: mmap.mmap, turns: int) -> float:
    """One guest from its first instruction to its halt; the seconds of processor time that it took."""
    code = _LOOP % struct.pack("<I", turns)
    memory[: len(code)] = code
    fcntl.ioctl(processor, KVM_SET_REGS, struct.pack("<16Q2Q", *(0,) * 17, 2))
    start = time.thread_time()
    fcntl.ioctl(processor, KVM_RUN, 0)
    took = time.thread_time() - start
    (reason,) = struct.unpack_from("<I", state, _EXIT_REASON_OFFSET)
    if reason != KVM_EXIT_HLT:
        raise OSError(5, f"KVM_RUN: the guest ended for the reason {reason} instead of its halt", DEVICE)
    return took
