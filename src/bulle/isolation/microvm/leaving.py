"""A machine that leaves for another host while its guest goes on: the shepherd's part at the end where it runs.

The client, who carries what is sent to the other end, asks with a stream for the memory and a file for what is known (``known``, with a listener
for the disk's connection), says ``go`` when the other end is ready, and hears ``still`` when the guest stands still and the file is complete, then
``sent``. The disk is mirrored there while the guest runs, then its memory is copied, again and again what it writes meanwhile; it stands still for
the rest alone. Whatever fails, and when the client goes away, the guest goes on here. The other end: :mod:`bulle.isolation.microvm.arrival`.
https://www.qemu.org/docs/master/interop/live-block-operations.html
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from bulle.errors import BulleError, to_parts
from bulle.isolation.microvm import checkpoint, sandbox
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.arrival import EXPORT
from bulle.isolation.microvm.checkpoint import Kept
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.sessions import Condition, Word, tell, words
from bulle.isolation.microvm.setup import Setup

_PATH = f"{sandbox.RUN}/leaving.sock"
_JOB, _TARGET = "leaving", "there"
_MIRROR_BYTES = 64 << 20  # most that is looked at, or known to be empty, at once
_STILL_MS = 20
_MOST_PASSES = 30
"""A guest that writes more than the connection carries stands still for the rest after so many turns."""
_BYTES_PER_S = 1 << 40
_PATIENCE_S = 60.0
_LOOK_S = 0.001
_SWITCHES = ("pause-before-switchover", "events")
_OVER = ("none", "completed", "failed", "cancelled")


class Leaving:
    """One attempt. ``descriptors`` are the stream and the file, ``describe`` gives what is known.

    Guests of an emulated processor (QEMU 7.2) came over hung when what they wrote was looked at repeatedly. So that is done twice only:
    when it begins, while the guest stands still for a moment, and at the end, when it stands still for good; no pass comes between.
    """

    def __init__(
        self, client: socket.socket, descriptors: Sequence[int], control: Control, agent: Agent, setup: Setup, describe: Callable[[], Kept]
    ) -> None:
        self._client, (self._stream, self._known) = client, descriptors
        self._control, self._agent, self._describe = control, agent, describe
        self._disk, self._emulated = setup.scratch_node, setup.accelerator == "tcg"
        self._told = ""
        self._ready: Condition = lambda: True
        self._steps = self._leave()
        self._advance()

    @property
    def watched(self) -> tuple[int, ...]:
        """What :meth:`hear` must be called for."""
        return self._client.fileno(), self._control.fileno()

    def hear(self) -> bool:
        """What the client or the hypervisor said; False where it is over, and the guest goes on here."""
        try:
            with suppress(BlockingIOError):
                data = self._client.recv(4096, socket.MSG_DONTWAIT)
                if not data:
                    self._stay()
                    return False
                self._told = words.decode(data).kind
            self._control.hear()
            self._advance()
        except (BulleError, OSError, ValueError) as error:
            failure = error if isinstance(error, BulleError) else BulleError("the machine could not leave", str(error))
            tell(self._client, Word("error", parts=to_parts(failure)))
            self._stay()
            return False
        return True

    def _advance(self) -> None:
        with suppress(StopIteration):
            while self._ready():
                self._ready = next(self._steps)

    def _leave(self) -> Iterator[Condition]:
        control = self._control
        control.execute("query-status")
        self._listen()
        yield lambda: self._told == "go"
        control.events.clear()
        server = {"type": "unix", "path": _PATH}
        control.execute("blockdev-add", driver="nbd", server=server, export=EXPORT, discard="unmap", **{"node-name": _TARGET})
        os.unlink(_PATH)
        control.execute("blockdev-mirror", device=self._disk, target=_TARGET, sync="full", **{"job-id": _JOB, "buf-size": _MIRROR_BYTES})
        yield lambda: self._mirror_is("BLOCK_JOB_READY")
        switch(control, on=True)
        still_ms = 0 if self._emulated else _STILL_MS
        control.execute("migrate-set-parameters", **{"max-bandwidth": _BYTES_PER_S, "downtime-limit": still_ms})
        control.execute("getfd", self._stream, fdname="leaving")
        if self._emulated:
            self._agent.held = True
            checkpoint.settle(self._agent)
            control.stop()
        control.execute("migrate", uri="fd:leaving")
        if self._emulated:
            self._wait(lambda: self._status() not in ("none", "setup"))
            control.go_on()
        yield self._stands_still
        self._finish()
        yield lambda: False

    def _listen(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(_PATH)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(_PATH)
            listener.listen(1)
            self._write(msgspec.json.encode(self._describe()))
            socket.send_fds(self._client, [b'{"kind":"known"}'], [listener.fileno()])

    def _write(self, known: bytes) -> None:
        os.ftruncate(self._known, 0)
        os.pwrite(self._known, known, 0)

    def _mirror_is(self, wanted: str) -> bool:
        names = [str(one["event"]) for one in self._control.events if one.get("data", {}).get("device") == _JOB]
        if wanted in names:
            return True
        if {"BLOCK_JOB_ERROR", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"} & {*names}:
            raise BulleError("the machine's disk could not be copied", "the other end, or the connection to it, failed", "it goes on here")
        return False

    def _stands_still(self) -> bool:
        found: list[dict[str, Any]] = [one for one in self._control.events if one["event"] in ("MIGRATION", "MIGRATION_PASS")]
        states = [one["data"].get("status") for one in found]
        if "failed" in states or "cancelled" in states:
            why = str(self._control.execute("query-migrate").get("error-desc", ""))
            raise BulleError("the machine's memory could not be copied", why or "QEMU gave up", "it goes on here")
        passes = max((one["data"].get("pass", 0) for one in found), default=0)
        self._agent.held = self._agent.held or passes > 1  # it may come to a stand at any moment
        if passes >= _MOST_PASSES:
            self._control.stop()
        return "pre-switchover" in states

    def _finish(self) -> None:
        """All that takes its time has been done; until the other end has it, nothing is."""
        self._agent.held = True
        if checkpoint.unread(self._agent):
            raise BulleError("the machine could not leave", "its guest was just given input", "it goes on here; try again")
        checkpoint.listen(self._control, self._agent)
        self._write(msgspec.json.encode(self._describe()))
        tell(self._client, Word("still"))
        self._control.execute("block-job-cancel", device=_JOB)
        self._wait(lambda: self._mirror_is("BLOCK_JOB_COMPLETED"))
        self._control.execute("blockdev-del", **{"node-name": _TARGET})
        self._control.execute("migrate-continue", state="pre-switchover")
        self._wait(lambda: self._status() == "completed")
        tell(self._client, Word("sent"))

    def _status(self) -> str:
        status = str(self._control.execute("query-migrate").get("status", "none"))
        if status in ("failed", "cancelled"):
            raise BulleError("the machine's memory could not be copied", f"QEMU says {status}", "it goes on here")
        return status

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not ready():
            if time.monotonic() > deadline:
                raise BulleError("the machine could not leave", "the other end takes no more", "it goes on here")
            time.sleep(_LOOK_S)
            self._control.execute("query-status")

    def _stay(self) -> None:
        """Whatever was begun is undone, and the guest goes on."""
        control, self._agent.held = self._control, False
        for descriptor in (self._stream, self._known):
            os.close(descriptor)
        self._client.close()
        with suppress(BulleError):
            control.execute("migrate_cancel")
            self._wait(lambda: str(control.execute("query-migrate").get("status", "none")) in _OVER)
            switch(control, on=False)
        with suppress(BulleError):
            if control.execute("query-block-jobs"):
                control.execute("block-job-cancel", device=_JOB, force=True)
                self._wait(lambda: not control.execute("query-block-jobs"))
        with suppress(BulleError):
            control.execute("blockdev-del", **{"node-name": _TARGET})
        with suppress(BulleError):
            control.go_on()


def switch(control: Control, *, on: bool) -> None:
    """Have what is peculiar to such a copy of a machine, or not: others of the same machine go on by themselves."""
    control.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": on} for name in _SWITCHES])
