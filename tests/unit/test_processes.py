"""Processes by pid and start time: what is gone is gone, in the words of every kernel."""

from __future__ import annotations

import errno
import os

import pytest

from bulle.linux import process


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EINVAL])
def test_a_process_that_is_being_reaped_is_gone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel 6.1 calls its pid an invalid argument."""

    def refuse(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    ticks = process.start_ticks(os.getpid())
    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert process.open_process(os.getpid(), ticks) is None


def test_another_error_is_not_taken_for_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        process.open_process(os.getpid(), 1)
