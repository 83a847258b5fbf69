"""What a stage has come to so far: its layers and its config, instruction by instruction. Pure data, changed by the stage that owns it alone."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bulle.errors import InvalidInput
from bulle.model.digest import Digest, chain_ids
from bulle.model.image import ExecutionConfig, History, ImageConfig, Platform, RootFilesystemLayers
from bulle.store import Image

COMMENT = "bulle"
_DEFAULT_SHELL = ("/bin/sh", "-c")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass
class StageState:
    """One stage; ``created_ns`` is when the last of its layers was made, nanoseconds since the epoch."""

    platform: Platform
    layers: list[Digest] = field(default_factory=list)
    blobs: list[tuple[Digest, int, str]] = field(default_factory=list)
    """Of each layer the blob in a manifest: digest, bytes, media type."""
    config: ExecutionConfig = field(default_factory=ExecutionConfig)
    history: list[History] = field(default_factory=list)
    host_binds: tuple[str, ...] = ()
    author: str = ""
    created_ns: int = 0
    arguments: dict[str, str] = field(default_factory=dict)
    """ARG so far; a stage that begins with this one has them too."""
    has_command: bool = False
    """Whether this stage has a CMD of its own, which an ENTRYPOINT after it then keeps."""

    @property
    def chain_id(self) -> str:
        """What the layers are together; "" for none."""
        return str(chain_ids(self.layers)[-1]) if self.layers else ""

    @property
    def environment(self) -> dict[str, str]:
        """ENV so far."""
        return dict(item.partition("=")[::2] for item in self.config.env or ())

    @property
    def shell(self) -> tuple[str, ...]:
        """The words before a text in the shell form."""
        return self.config.shell or _DEFAULT_SHELL

    def change(self, **fields: Any) -> None:
        """Set fields of the config."""
        self.config = msgspec.structs.replace(self.config, **fields)

    def set_environment(self, name: str, value: str) -> None:
        """One variable, in the place of the one that was there."""
        variables = {**self.environment, name: value}
        self.change(env=tuple(f"{key}={text}" for key, text in variables.items()))

    def note(self, text: str, *, empty: bool) -> None:
        """A line of history."""
        self.history.append(History(timestamp(self.created_ns), text, self.author or None, COMMENT, empty))

    def copy(self) -> StageState:
        """For a stage that begins with this one."""
        made = StageState(self.platform, list(self.layers), list(self.blobs), self.config, list(self.history), self.host_binds, self.author)
        made.created_ns = self.created_ns
        made.arguments = dict(self.arguments)
        return made

    def image_config(self) -> ImageConfig:
        """The config of the image that this stage is."""
        return ImageConfig(
            architecture=self.platform.architecture,
            os=self.platform.os,
            variant=self.platform.variant,
            created=timestamp(self.created_ns),
            author=self.author or None,
            config=self.config,
            rootfs=RootFilesystemLayers(tuple(str(layer) for layer in self.layers)),
            history=tuple(self.history),
        )


def state_of_image(image: Image, blobs: list[tuple[Digest, int, str]]) -> StageState:
    """The begin of a stage on an image."""
    config = image.config
    state = StageState(config.platform, list(image.layers), blobs, config.config or ExecutionConfig(), list(config.history or ()), image.host_binds)
    state.author = config.author or ""
    state.created_ns = nanoseconds(config.created)
    return state


def timestamp(nanoseconds_: int) -> str:
    """A time as configs have it (RFC 3339)."""
    seconds, rest = divmod(nanoseconds_, 1_000_000_000)
    text = (_EPOCH + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def nanoseconds(text: str | None) -> int:
    """The time that a config states, 0 for none or nonsense."""
    if not text:
        return 0
    whole, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))] if dot else ""
    zone = rest[len(digits) :] if dot else ""
    try:
        moment = datetime.datetime.fromisoformat(f"{whole}{zone}".replace("Z", "+00:00"))
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int((moment - _EPOCH).total_seconds()) * 1_000_000_000 + int(digits[:9].ljust(9, "0") or 0)


def exposed(config: ExecutionConfig, ports: tuple[str, ...]) -> dict[str, Any]:
    """EXPOSE: each port of each range with its protocol. Raises InvalidInput."""
    found: dict[str, Any] = dict(config.exposed_ports or {})
    for item in ports:
        numbers, _, protocol = item.partition("/")
        protocol = protocol.lower() or "tcp"
        first, _, last = numbers.rpartition(":")[2].partition("-")
        if not first.isdecimal() or len(first) > 5 or len(last) > 5 or (last and not last.isdecimal()) or protocol not in ("tcp", "udp", "sctp"):
            raise InvalidInput(f"{item!r} is no port", "", "write a number or a range, with /tcp, /udp or /sctp")
        start, end = int(first), int(last or first)
        if not 0 < start <= end < 65536:
            raise InvalidInput(f"{item!r} is no port", "ports go from 1 to 65535", "write a number or a range")
        found.update({f"{port}/{protocol}": {} for port in range(start, end + 1)})
    return found
