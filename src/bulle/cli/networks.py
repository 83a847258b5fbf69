"""``bulle network``: networks, and who is on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.cleaning import FORCE, chosen_by, confirmed, filter_option, show_removed
from bulle.cli.filters import parse
from bulle.cli.inspection import FORMAT, inspect_all
from bulle.cli.network_flags import check_option
from bulle.cli.option_types import Suggestion, Text, complete_containers, complete_networks
from bulle.cli.processes import FORMAT_HELP, SHORT_ID
from bulle.cli.session import Session, note, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.engine import filters
from bulle.engine.network_options import network_config
from bulle.errors import InvalidInput
from bulle.model.network import NetworkOption

if TYPE_CHECKING:
    from bulle.records.networks import NetworkRecord



@verb("create", "NETWORK")
@click.argument("name")
@click.option("-d", "--driver", type=Suggestion("string", "bridge", "macvlan"), default="bridge", help="Driver of the network (bridge, macvlan)")
@click.option("--subnet", multiple=True, type=Text("list"), help="Subnet in CIDR format that represents a network segment")
@click.option("--gateway", multiple=True, type=Text("list"), help="IPv4 or IPv6 Gateway for the master subnet")
@click.option("--ip-range", multiple=True, type=Text("list"), help="Allocate container ip from a sub-range")
@click.option("--internal", is_flag=True, help="Restrict external access to the network")
@click.option("--ipv6", is_flag=True, help="Enable IPv6 networking")
@click.option("--dns", multiple=True, type=Text("list"), help="DNS servers that are asked for its containers, instead of the host's")
@click.option("--egress", type=Text("rule"), help="What its containers may reach outside of it (none, internet, allow:LIST, all)")
@click.option("--label", multiple=True, type=Text("list"), help="Set metadata on a network")
@click.option("-o", "--opt", multiple=True, type=Text("list"), help="Set driver specific options (com.docker.network.driver.mtu=, parent=)")
@click.option("--attachable", is_flag=True, hidden=True, help="Every network is")
@click.pass_obj
def create(
    session: Session, name: str, driver: str, subnet: Sequence[str], gateway: Sequence[str], ip_range: Sequence[str], internal: bool, ipv6: bool,
    dns: Sequence[str], egress: str | None, label: Sequence[str], opt: Sequence[str], attachable: bool,
) -> int:  # fmt: skip
    """Create a network."""
    config = network_config(
        name, driver, subnets=subnet, gateways=gateway, ip_ranges=ip_range, internal=internal, ipv6=ipv6, dns=dns, egress=egress or "",
        labels=dict(_pair(text) for text in label), options=dict(_pair(text) for text in opt),
    )  # fmt: skip
    write(session.engine.networks.create(config).id + "\n")
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key:
        raise InvalidInput(f"invalid value {text!r}", "", "write KEY=VALUE")
    return key, value


def _listing(*, truncate: bool) -> Listing[NetworkRecord]:
    return Listing(
        fields={
            "ID": ("NETWORK ID", lambda one: one.id[:SHORT_ID] if truncate else one.id),
            "Name": ("NAME", lambda one: one.name),
            "Driver": ("DRIVER", filters.shown_driver),
            "Scope": ("SCOPE", lambda one: "local"),
            "CreatedAt": ("CREATED AT", lambda one: human.timestamp(one.created_at_ns)),
            "IPv4": ("IPV4", lambda one: "true" if one.config.driver in ("bridge", "macvlan") else "false"),
            "IPv6": ("IPV6", lambda one: "true" if one.config.ipv6 else "false"),
            "Internal": ("INTERNAL", lambda one: "true" if one.config.internal else "false"),
            "Labels": ("LABELS", lambda one: ",".join(f"{key}={value}" for key, value in one.config.labels.items())),
            "Subnets": ("SUBNETS", lambda one: ",".join(one.config.subnets)),
        },
        columns=("ID", "Name", "Driver", "Scope"),
        methods={"Label": ("LABEL", lambda one: lambda name: one.config.labels.get(name, ""))},
    )


@verb("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only display network IDs")
@click.option("--no-trunc", is_flag=True, help="Do not truncate the output")
@click.option(
    "-f", "--filter", "wanted", multiple=True, type=Suggestion("filter", *(f"{key}=" for key in filters.NETWORK_KEYS)), help="Provide filter values"
)
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def ls(session: Session, quiet: bool, no_trunc: bool, wanted: Sequence[str], form: str) -> int:
    """List networks."""
    tests = filters.networks(session.engine, parse(wanted, filters.NETWORK_KEYS))
    found = sorted((one for one in session.engine.networks.list() if all(test(one) for test in tests)), key=lambda one: one.name)
    if quiet:
        write("".join((one.id if no_trunc else one.id[:SHORT_ID]) + "\n" for one in found))
    else:
        write(render(_listing(truncate=not no_trunc), found, form))
    return 0


@verb("inspect", "NETWORK [NETWORK...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_networks)
@FORMAT
@click.option("-v", "--verbose", is_flag=True, hidden=True, help="There is no more to say")
@click.pass_obj
def inspect(session: Session, names: Sequence[str], form: str, verbose: bool) -> int:
    """Display detailed information on one or more networks."""
    from bulle.engine.network_inspection import network_document

    return inspect_all(names, form, lambda name: network_document(session.engine.networks, name))


@verb("rm", "NETWORK [NETWORK...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_networks)
@click.option("-f", "--force", is_flag=True, help="Do not error if the network does not exist")
@click.pass_obj
def remove(session: Session, names: Sequence[str], force: bool) -> int:
    """Remove one or more networks."""
    from bulle.errors import NotFound

    def act(name: str) -> str | None:
        try:
            session.engine.networks.remove(name)
        except NotFound:
            if not force:
                raise
            return None
        return name

    return session.for_each(names, act)


@verb("connect", "NETWORK CONTAINER")
@click.argument("network", shell_complete=complete_networks)
@click.argument("container", shell_complete=complete_containers)
@click.option("--alias", multiple=True, type=Text("list"), help="Add network-scoped alias for the container")
@click.option("--ip", type=Text(), help="IPv4 address (e.g., 172.30.100.104)")
@click.option("--ip6", type=Text(), help="IPv6 address (e.g., 2001:db8::33)")
@click.pass_obj
def connect(session: Session, network: str, container: str, alias: Sequence[str], ip: str | None, ip6: str | None) -> int:
    """Connect a container to a network."""
    option = NetworkOption(network, ip or "", ip6 or "", "", tuple(alias))
    check_option(option)
    session.engine.networks.connect(network, session.engine.containers.get(container), option)
    return 0


@verb("disconnect", "NETWORK CONTAINER")
@click.argument("network", shell_complete=complete_networks)
@click.argument("container", shell_complete=complete_containers)
@click.option("-f", "--force", is_flag=True, help="Force the container to disconnect from a network")
@click.pass_obj
def disconnect(session: Session, network: str, container: str, force: bool) -> int:
    """Disconnect a container from a network."""
    session.engine.networks.disconnect(network, session.engine.containers.get(container))
    return 0


@verb("prune")
@filter_option("label", "until")
@FORCE
@click.pass_obj
def prune(session: Session, wanted: Sequence[str], force: bool) -> int:
    """Remove all unused networks."""
    chosen = chosen_by(wanted)
    if not confirmed(force, "This will remove all custom networks not used by at least one container."):
        return 0
    show_removed("Networks", session.engine.networks.prune(chosen))
    return 0


@verb("rules")
@click.pass_obj
def rules(session: Session) -> int:
    """Show the nftables rules that stand for the networks of this home."""
    text = session.engine.networks.rules()
    if not text:
        note("no rules stand: no container with a network of its own runs")
    write(text)
    return 0
