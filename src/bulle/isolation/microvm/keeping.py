"""A machine that stands still, kept in files, until who asked for it goes away: the shepherd's part of :mod:`bulle.isolation.microvm.checkpoint`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from bulle.isolation.microvm import checkpoint
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.checkpoint import Kept
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.sessions import Word, tell
from bulle.isolation.microvm.setup import Setup


class Keeping:
    """One time. ``descriptors`` are the files for its state and for what is known. Raises BulleError, OSError; then the machine goes on."""

    def __init__(
        self, client: socket.socket, descriptors: Sequence[int], control: Control, agent: Agent, _setup: Setup, describe: Callable[[], Kept]
    ) -> None:
        self._client, self._control = client, control
        try:
            state, known = descriptors
            checkpoint.keep(control, agent, state, known, describe)
        except BaseException:
            control.go_on()
            raise
        for descriptor in descriptors:
            os.close(descriptor)
        tell(client, Word("done"))

    @property
    def watched(self) -> tuple[int, ...]:
        """What :meth:`hear` must be called for."""
        return (self._client.fileno(),)

    def hear(self) -> bool:
        """The client went away: the machine goes on."""
        self._client.close()
        self._control.go_on()
        return False
