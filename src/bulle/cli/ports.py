"""``bulle port``: where a container's ports can be reached."""

from __future__ import annotations

import click

from bulle.cli.option_types import complete_containers
from bulle.cli.session import Session, write
from bulle.cli.verb import verb
from bulle.errors import InvalidInput, NotFound

_PROTOCOLS = ("tcp", "udp", "sctp")


@verb("port", "CONTAINER [PRIVATE_PORT[/PROTO]]")
@click.argument("container", shell_complete=complete_containers)
@click.argument("private_port", required=False)
@click.pass_obj
def port(session: Session, container: str, private_port: str | None) -> int:
    """List port mappings or a specific mapping for the container."""
    number, _, protocol = (private_port or "").partition("/")
    if private_port and not (number.isascii() and number.isdigit() and 0 < int(number) < 65536 and (protocol or "tcp") in _PROTOCOLS):
        raise InvalidInput(f"invalid port '{private_port}'", "", f"write 80 or 80/PROTOCOL, which is one of {', '.join(_PROTOCOLS)}")
    settings = session.engine.containers.get(container).inspect()["NetworkSettings"]
    assert isinstance(settings, dict)
    wanted = f"{number}/{protocol or 'tcp'}"
    found = {name: where for name, where in settings["Ports"].items() if not private_port or name == wanted}
    if private_port and not found:
        raise NotFound(f"no public port '{private_port}' published for {container}")
    for name, places in sorted(found.items()):
        for place in places or ():
            write(("" if private_port else f"{name} -> ") + f"{place['HostIp']}:{place['HostPort']}\n")
    return 0
