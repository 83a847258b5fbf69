"""What the user said of registries: ``registries.toml`` of the machine and of the user, and Docker's directory of certificates.

::

    [registry."docker.io"]
    mirrors = ["mirror.example:5000"]     # tried first, in this order, by pull alone
    [registry."registry.example"]
    ca = "/etc/ssl/registry.example.pem"  # beside the system's authorities
    insecure = true                       # plain http, or TLS that nobody vouches for

The user's entry of a registry takes the place of the machine's. ``BULLE_REGISTRIES`` names a file that takes the place of both. Read whenever a
source or destination is opened; a file that is wrong in any place is refused, because a setting that is silently ignored is worse than none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from bulle.errors import InvalidInput
from bulle.registry.transport import Trust

SETTING = "BULLE_REGISTRIES"
CERTIFICATE_DIRECTORIES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
_MACHINE = Path("/etc/bulle/registries.toml")
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?")


class RegistrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One registry's entry; paths are the host's."""

    mirrors: tuple[str, ...] = ()
    insecure: bool = False
    ca: str = ""
    client_certificate: str = ""
    client_key: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    registry: dict[str, Any] = {}


class Settings:
    """The entries of all registries."""

    def __init__(self, entries: Mapping[str, RegistrySettings]) -> None:
        self.entries = dict(entries)

    @property
    def mirrors(self) -> dict[str, tuple[str, ...]]:
        """What to try before each registry."""
        return {host: entry.mirrors for host, entry in self.entries.items() if entry.mirrors}

    @property
    def insecure(self) -> tuple[str, ...]:
        """The registries that may speak plain http, or TLS that nobody vouches for."""
        return tuple(host for host, entry in self.entries.items() if entry.insecure)

    def trust(self, host: str, directories: tuple[Path, ...] = CERTIFICATE_DIRECTORIES) -> Trust:
        """By what a host (with its port) is believed: its entry, and its directory below one of these (``HOST/*.crt``, ``*.cert``, ``*.key``)."""
        entry = self.entries.get(host, RegistrySettings())
        authorities = [Path(entry.ca)] if entry.ca else []
        client = (Path(entry.client_certificate), Path(entry.client_key)) if entry.client_certificate else None
        if _HOST.fullmatch(host):
            for directory in directories:
                authorities += sorted((directory / host).glob("*.crt"))
                for certificate in sorted((directory / host).glob("*.cert")):
                    client = client or (certificate, certificate.with_suffix(".key"))
        return Trust(not entry.insecure, tuple(authorities), client)


def read_settings() -> Settings:
    """The settings as they are now. Raises InvalidInput, naming file and key."""
    named = os.environ.get(SETTING, "")
    if named:
        return Settings(_read(Path(named), must_exist=True))
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "bulle/registries.toml"
    return Settings({**_read(_MACHINE), **_read(own)})


def _read(path: Path, *, must_exist: bool = False) -> dict[str, RegistrySettings]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if must_exist:
            raise InvalidInput(f"cannot read {path}", "there is no such file", f"correct {SETTING}") from None
        return {}
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", error.strerror or str(error)) from None
    return parse_settings(raw, str(path))


def parse_settings(raw: bytes, name: str) -> dict[str, RegistrySettings]:
    """The entries of a file that errors call ``name``. Raises InvalidInput."""
    import tomllib  # most machines have no such file

    wrong = f"{name} cannot be used"
    try:
        document = msgspec.convert(tomllib.loads(raw.decode()), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(wrong, str(error)) from None
    entries = {}
    for host, value in document.registry.items():
        place = f'registry."{host}"'
        if not _HOST.fullmatch(host):
            raise InvalidInput(wrong, f"{place} is not the name of a registry", "write its host, with the port if there is one, without https://")
        try:
            entry = msgspec.convert(value, RegistrySettings)
        except msgspec.ValidationError as error:
            raise InvalidInput(wrong, f"{place}: {error}") from None
        for mirror in entry.mirrors:
            if not _HOST.fullmatch(mirror):
                raise InvalidInput(wrong, f"{place}: the mirror {mirror!r} is not a host", "write host or host:port")
        if bool(entry.client_certificate) != bool(entry.client_key):
            raise InvalidInput(wrong, f"{place}: client_certificate and client_key belong together")
        for key in ("ca", "client_certificate", "client_key"):
            if (value := getattr(entry, key)) and not Path(value).is_absolute():
                raise InvalidInput(wrong, f"{place}: {key} is not an absolute path")
        entries["docker.io" if host == "index.docker.io" else host] = entry
    return entries
