"""What the user said of networks: ``network.toml`` of the machine (``/etc/bulle``) and of the user, and two variables of the environment.

::

    publish_address = "0.0.0.0"      # where -p publishes when no address is given; by default loopback alone, 127.0.0.1 and ::1
    default_network = "none"         # the network of a container that asks for none; by default bridge
    address_pool = "10.208.0.0/12"   # where networks take their subnets from
    subnet_size = 20                 # how large each is

The user's file takes the place of the machine's, key by key; ``BULLE_PUBLISH_ADDRESS`` and ``BULLE_NETWORK`` that of both.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import msgspec

from bulle.errors import InvalidInput
from bulle.model.network import DEFAULT_NETWORK

LOOPBACK = ("127.0.0.1", "::1")
_EVERYWHERE = {"0.0.0.0": ("0.0.0.0", "::"), "localhost": LOOPBACK}
_MACHINE = Path("/etc/bulle/network.toml")


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings; see the module."""

    publish_address: str = "localhost"
    default_network: str = DEFAULT_NETWORK
    address_pool: str = "10.208.0.0/12"
    subnet_size: int = 20

    @property
    def publish_addresses(self) -> tuple[str, ...]:
        """Where a port is published when no address is given."""
        return _EVERYWHERE.get(self.publish_address, (self.publish_address,))

    def subnets(self) -> list[str]:
        """The subnets that networks may get, as CIDRs."""
        return [str(subnet) for subnet in IPv4Network(self.address_pool).subnets(new_prefix=self.subnet_size)]


def read_settings() -> NetworkSettings:
    """The settings as they are now. Raises InvalidInput, naming file and key."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "bulle/network.toml"
    found: dict[str, object] = {}
    names = "the environment"
    for path in (_MACHINE, own):
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        import tomllib  # most machines have no such file

        try:
            found |= tomllib.loads(raw.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} cannot be used", str(error)) from None
        names = str(path)
    for variable, key in (("BULLE_PUBLISH_ADDRESS", "publish_address"), ("BULLE_NETWORK", "default_network")):
        if value := os.environ.get(variable):
            found[key] = value
    try:
        settings = msgspec.convert(found, NetworkSettings)
        if settings.publish_address != "localhost":
            ip_address(settings.publish_address)
        settings.subnets()
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(f"the settings of networks in {names} cannot be used", str(error), "see docs/networks.md") from None
    return settings
