"""The frequency of an x86 processor's time stamp counter, as the kernel knows it. Intel's manual, volume 3, "Time-Stamp Counter"

A guest whose instructions are translated reads the host's own counter; told its frequency, it need not measure it against an emulated timer. Only a
frequency that is right may be told: the guest's clock runs by it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct

from bulle.linux.libc import check, libc

_PERF_EVENT_OPEN = 298  # on x86_64, the only one that has this counter
_PERF_TYPE_SOFTWARE, _PERF_FLAG_FD_CLOEXEC = 1, 8
_EXCLUDE_KERNEL_AND_HYPERVISOR = 1 << 5 | 1 << 6
_CAP_USER_TIME = 1 << 3
_ATTRIBUTES = struct.Struct("<IIQQQQQ64x")  # struct perf_event_attr, linux/perf_event.h
_CONVERSION = struct.Struct("<Q2xHI")  # capabilities, time_shift and time_mult of struct perf_event_mmap_page, from byte 40


def frequency_khz() -> int:
    """The frequency in kHz, 0 where it is not known for certain."""
    return _from_performance_events() or _from_processor_list()


def _from_performance_events() -> int:
    """How the kernel tells programs to convert the counter to nanoseconds. perf_event_open(2)"""
    attributes = _ATTRIBUTES.pack(_PERF_TYPE_SOFTWARE, _ATTRIBUTES.size, 0, 0, 0, 0, _EXCLUDE_KERNEL_AND_HYPERVISOR)
    try:
        arguments = (ctypes.c_long(0), ctypes.c_long(-1), ctypes.c_long(-1), ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC))
        fd = check(libc.syscall(ctypes.c_long(_PERF_EVENT_OPEN), attributes, *arguments), "perf_event_open")
    except OSError:
        return 0  # many machines allow it to nobody
    try:
        with mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            capabilities, shift, multiplier = _CONVERSION.unpack_from(page, 40)
    except OSError:
        return 0
    finally:
        os.close(fd)
    if not capabilities & _CAP_USER_TIME or not multiplier:
        return 0
    frequency: int = round((1_000_000 << shift) / multiplier)
    return frequency


def _from_processor_list() -> int:
    """``cpu MHz`` of a virtual machine, where nothing changes or measures the processor's own frequency: that of the counter. proc_cpuinfo(5)"""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(8192).partition("\n\n")[0]
    except OSError:
        return 0
    found = re.search(r"^flags\s*: (.*)$", first, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    speed = re.search(r"^cpu MHz\s*: ([0-9]+)\.([0-9]{3})$", first, re.MULTILINE)
    if (
        speed is None
        or not {"constant_tsc", "hypervisor"} <= flags
        or "aperfmperf" in flags
        or os.path.exists("/sys/devices/system/cpu/cpu0/cpufreq")
    ):
        return 0
    return int(speed[1] + speed[2])
