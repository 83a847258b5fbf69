"""What both sides of the conversation with an agent know, as data: with it another process goes on with a guest that was kept and begun again.

Filled and used by :class:`bulle.isolation.microvm.agent.Agent`. Windows are those of ``docs/vm-agent.md``.
"""

from __future__ import annotations

import msgspec


class StreamState(msgspec.Struct, frozen=True):
    """Bytes that arrived and went nowhere yet, and how many the guest was not told to be consumed."""

    data: bytes
    ended: bool
    in_flight: int


class SessionState(msgspec.Struct, frozen=True):
    """A request that is not final. ``kind`` is its frame's type, ``credit`` what the guest still takes for its stdin."""

    number: int
    kind: int
    started: bool
    pid: int
    terminal: bool
    takes_input: bool
    input_ended: bool
    closed: bool
    credit: int
    output: StreamState
    errors: StreamState


class AgentState(msgspec.Struct, frozen=True):
    """``incoming`` is the beginning of a frame whose rest has not come, ``outgoing`` what was not sent."""

    release: str
    machine: str
    next_number: int
    incoming: bytes
    sessions: tuple[SessionState, ...]
    outgoing: bytes = b""
