"""``bulle port``: where a container's ports can be reached, and changing that while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.network_flags import PROTOCOLS, port_mappings
from bulle.cli.option_types import complete_containers
from bulle.cli.session import Session, write
from bulle.cli.verb import WrongUsage, verb
from bulle.errors import InvalidInput, NotFound


@verb("port", "CONTAINER [PRIVATE_PORT[/PROTO]] | add CONTAINER PORT... | rm CONTAINER PORT...")
@click.argument("words", nargs=-1, required=True, shell_complete=complete_containers)
@click.pass_obj
def port(session: Session, words: Sequence[str]) -> int:
    """List port mappings or a specific mapping for the container; add some, or remove some, also while it runs.

    Ports to add and to remove are written as for ``run -p``.
    """
    if len(words) > 2 and words[0] in ("add", "rm"):
        container = session.engine.containers.get(words[1])
        mappings = [mapping for text in words[2:] for mapping in port_mappings(text)]
        if words[0] == "rm":
            session.engine.networks.retract_ports(container, mappings)
        else:
            session.engine.networks.publish_ports(container, mappings)
            _list(session, words[1], "")
        return 0
    if len(words) > 2:
        raise WrongUsage("port takes a container and at most one port")
    return _list(session, *words, *([""] if len(words) == 1 else []))


def _list(session: Session, container: str, private_port: str) -> int:
    number, _, protocol = private_port.partition("/")
    if private_port and not (number.isascii() and number.isdigit() and 0 < int(number) < 65536 and (protocol or "tcp") in PROTOCOLS):
        raise InvalidInput(f"invalid port '{private_port}'", "", f"write 80 or 80/PROTOCOL, which is one of {', '.join(PROTOCOLS)}")
    settings = session.engine.containers.get(container).inspect()["NetworkSettings"]
    assert isinstance(settings, dict)
    wanted = f"{number}/{protocol or 'tcp'}"
    found = {name: where for name, where in settings["Ports"].items() if where and (not private_port or name == wanted)}
    if private_port and not found:
        raise NotFound(f"no public port '{private_port}' published for {container}")
    for name, places in sorted(found.items()):
        for place in places:
            address = f"[{place['HostIp']}]" if ":" in place["HostIp"] else place["HostIp"]
            write(("" if private_port else f"{name} -> ") + f"{address}:{place['HostPort']}\n")
    return 0
