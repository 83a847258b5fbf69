"""From what is asked of a new network, in Docker's words, to its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bulle.errors import InvalidInput
from bulle.model.network import NetworkConfig
from bulle.network.egress import parse_egress

_MTU = ("com.docker.network.driver.mtu", "mtu")


def network_config(
    name: str,
    driver: str,
    *,
    subnets: Sequence[str] = (),
    gateways: Sequence[str] = (),
    ip_ranges: Sequence[str] = (),
    internal: bool = False,
    ipv6: bool = False,
    dns: Sequence[str] = (),
    egress: str = "",
    labels: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> NetworkConfig:
    """The configuration; ``options`` are the driver's (``com.docker.network.driver.mtu``, ``parent``). Raises InvalidInput."""
    if driver not in ("bridge", "macvlan", "host", "none", "null"):
        raise InvalidInput(f"there is no network driver {driver!r}", "", "use bridge or macvlan")
    chosen = dict(options or {})
    mtu = next((chosen[key] for key in _MTU if key in chosen), "0")
    if not mtu.isdecimal() or (int(mtu) and not 68 <= int(mtu) <= 65535):
        raise InvalidInput(f"invalid MTU: {mtu}", "", "it is a number from 68 to 65535")
    return NetworkConfig(
        name=name,
        driver="none" if driver == "null" else driver,  # type: ignore[arg-type]
        subnets=tuple(subnets),
        gateways=tuple(gateways),
        ip_ranges=tuple(ip_ranges),
        internal=internal or chosen.get("com.docker.network.internal") == "true",
        ipv6=ipv6,
        mtu=int(mtu),
        parent=chosen.get("parent", ""),
        dns=tuple(dns),
        egress=parse_egress(egress or "all"),
        labels=dict(labels or {}),
        options=chosen,
    )
