"""The one error tree of Bulle.

Every failure that a user can meet is a :class:`BulleError`: one sentence made of what failed (``brief``), why (``details``) and what to do
(``resolution``). The command line maps it once to an exit code (the first column is that of ``run``), the HTTP socket once to a status; nothing
below them prints or exits.

::

    BulleError                      125  500   what failed, why, what to do
    ├── InvalidInput                125  400   an argument, option or value that cannot be right
    │   ├── InvalidReference        125  400   a name of an image that the distribution specification does not allow
    │   ├── BuildSyntaxError        125  400   a Containerfile that says something which no builder understands, with file and line
    │   └── CorruptImage            125  400   an archive, manifest, layer or digest that is not what it claims to be
    ├── NotFound                    125  404   no such image, container, file
    ├── Conflict                    125  409   a name that is taken, a container that is in the wrong state
    ├── Unsupported                 125  501   a feature that this driver does not have
    ├── Unavailable                 125  503   something that this machine or this user lacks (doctor says how to mend it)
    ├── StorageFull                 125  507   no space left where the store or a container lives
    ├── RegistryFailure             125  502   a registry refused, vanished or answered nonsense
    │   └── AuthenticationFailed    125  401   credentials missing or refused
    ├── CommandNotExecutable        126  400   the command was found in the container but cannot be executed
    └── CommandNotFound             127  400   the command does not exist in the container
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class BulleError(Exception):
    """What failed, why and what to do, in one sentence each.

    ``brief`` says what failed and names the thing; ``details`` says why (often the kernel's or the registry's own words); ``resolution`` is what the
    user can do. ``str()`` joins them into the one sentence that a user reads.
    """

    exit_code: ClassVar[int] = 125
    http_status: ClassVar[int] = 500

    def __init__(self, brief: str, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details, resolution)
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __str__(self) -> str:
        text = self.brief
        if self.details:
            text += f": {self.details}"
        if self.resolution:
            text += f"; {self.resolution}"
        return text


def to_parts(error: BulleError) -> tuple[str, ...]:
    """An error as plain strings, to be carried between processes; :func:`from_parts` makes it anew."""
    return (type(error).__name__, *error.args)


def from_parts(parts: Sequence[str]) -> BulleError:
    """The error that :func:`to_parts` took apart."""
    kind = globals().get(parts[0])
    if not (isinstance(kind, type) and issubclass(kind, BulleError)):
        kind = BulleError
    error: BulleError = kind(*parts[1:])
    return error


class InvalidInput(BulleError):
    """An argument, option or value that cannot be right, whatever the machine."""

    http_status = 400


class InvalidReference(InvalidInput):
    """A name of an image that the distribution specification does not allow."""


class BuildSyntaxError(InvalidInput):
    """A Containerfile says something that cannot be understood; the brief begins with file and line, the details say what to write instead."""


class CorruptImage(InvalidInput):
    """An archive, manifest, layer or digest that is not what it claims to be; the store is as it was before."""


class NotFound(BulleError):
    """No such image, container or file."""

    http_status = 404


class Conflict(BulleError):
    """A name that is taken, or a container whose state does not allow the verb."""

    http_status = 409


class Unsupported(BulleError):
    """A feature that a driver does not have; raised instead of a silent downgrade."""

    http_status = 501

    def __init__(self, feature: str, driver: str, resolution: str = "") -> None:
        super().__init__(f"isolation level {driver!r} has no {feature}", "", resolution)
        self.feature = feature
        self.driver = driver
        self.args = (feature, driver, resolution)


class Unavailable(BulleError):
    """Something that this machine or this user lacks; ``bulle doctor`` says how to mend it."""

    http_status = 503


class StorageFull(BulleError):
    """No space (or no inode, or no quota) left where the store or a container lives."""

    http_status = 507


class RegistryFailure(BulleError):
    """A registry refused, vanished or answered nonsense."""

    http_status = 502


class AuthenticationFailed(RegistryFailure):
    """Credentials are missing or were refused by the registry."""

    http_status = 401


class CommandNotExecutable(BulleError):
    """The command was found in the container but cannot be executed (exit code 126)."""

    exit_code = 126
    http_status = 400


class CommandNotFound(BulleError):
    """The command does not exist in the container (exit code 127)."""

    exit_code = 127
    http_status = 400
