"""``bulle.run``: one command in one container that leaves nothing behind but what it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bulle.engine.engine import Engine
from bulle.engine.home import default_home
from bulle.errors import Conflict, InvalidInput
from bulle.model.container import ContainerOptions
from bulle.monitor.exchange import Exchange


@dataclass(frozen=True)
class CompletedRun:
    """How a run ended: its exit code (128+n for signal n) and all that it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    notes: tuple[str, ...] = ()


def run(
    image: str,
    command: Sequence[str] = (),
    *,
    input: bytes = b"",
    environment: Mapping[str, str] | None = None,
    home: Path | str | None = None,
    interruption: int = -1,
    **options: Any,
) -> CompletedRun:
    """Run a command in a new container of an image, wait, and remove the container.

    ``input`` is given to its standard input; ``options`` are fields of :class:`bulle.ContainerOptions` (units are in their names). ``home`` is a
    host path. When the descriptor ``interruption`` becomes readable (an eventfd of the caller's), an exception comes in between or the program dies,
    the container is killed. Raises BulleError when it cannot be started; a command that fails is an ``exit_code``, no exception. Safe in threads.
    """
    variables = tuple(f"{name}={value}" for name, value in (environment or {}).items())
    try:
        wanted = ContainerOptions(image=image, command=tuple(command), environment=variables, interactive=bool(input), auto_remove=True, **options)
    except TypeError as error:
        raise InvalidInput("bulle.run does not know an option", str(error), "see bulle.ContainerOptions") from error
    container = engine_of(home).containers.create(wanted)
    attachment = container.start(attach=True, bound=True)
    assert attachment is not None
    exchange = Exchange(attachment, input or None)
    try:
        exchange.run(interruption=interruption)
    finally:
        attachment.close()
    if exchange.exit_code is None:
        raise Conflict("the run was interrupted", "by the program that started it")
    return CompletedRun(exchange.exit_code, bytes(exchange.stdout), bytes(exchange.stderr), exchange.notes)


def engine_of(home: Path | str | None) -> Engine:
    """The engine of a home (a host path, None for the default one), which programs that call functions share."""
    return _engine(str(home) if home is not None else "", str(default_home()))


@lru_cache(maxsize=8)
def _engine(home: str, default: str) -> Engine:
    """One engine per home and process; it is safe in threads and cheap to keep."""
    return Engine(home or default)
