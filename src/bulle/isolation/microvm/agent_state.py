"""What both sides of the conversation with an agent know, as data: with it another process goes on with a guest that was kept and begun again.

Filled and used by :class:`bulle.isolation.microvm.agent.Agent`. Windows are those of ``docs/vm-agent.md``.
It may come from a file that somebody made: what no agent's other side can be in is refused when it is read.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from bulle.isolation.microvm.agent_protocol import INPUT_WINDOW_BYTES, MOST_PAYLOAD_BYTES, MOST_SESSIONS, OUTPUT_WINDOW_BYTES, FromHost

_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Output = Annotated[int, msgspec.Meta(ge=0, le=OUTPUT_WINDOW_BYTES)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]

class StreamState(msgspec.Struct, frozen=True):
    """Bytes that arrived and went nowhere yet, and how many the guest was not told to be consumed."""

    data: Annotated[bytes, msgspec.Meta(max_length=OUTPUT_WINDOW_BYTES)]
    ended: bool
    in_flight: _Output


class SessionState(msgspec.Struct, frozen=True):
    """A request that is not final. ``kind`` is its frame's type, ``credit`` what the guest still takes for its stdin."""

    number: _Number
    kind: Annotated[int, msgspec.Meta(ge=int(min(FromHost)), le=int(max(FromHost)))]
    started: bool
    pid: _Number
    terminal: bool
    takes_input: bool
    input_ended: bool
    closed: bool
    credit: Annotated[int, msgspec.Meta(ge=0, le=INPUT_WINDOW_BYTES)]
    output: StreamState
    errors: StreamState


class AgentState(msgspec.Struct, frozen=True):
    """``incoming`` is the beginning of a frame whose rest has not come."""

    release: _Text
    machine: _Text
    next_number: _Number
    incoming: Annotated[bytes, msgspec.Meta(max_length=2 * MOST_PAYLOAD_BYTES)]
    sessions: Annotated[tuple[SessionState, ...], msgspec.Meta(max_length=MOST_SESSIONS)]
