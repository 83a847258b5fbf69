"""``bulle serve``: the Docker Engine API on a socket."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bulle.cli.option_types import Choice, HostPath, Text
from bulle.cli.session import Session, note, write
from bulle.cli.verb import verb
from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from bulle.api.listening import Certificates, Listener


@verb("serve")
@click.option("-H", "--host", "hosts", multiple=True, type=Text("list"), help="Where to listen (unix:///PATH, or tcp://ADDRESS:PORT with TLS)")
@click.option("-G", "--group", type=Text(), default="", help="Group that may use the unix socket")
@click.option(
    "--publish", type=Choice("all", "loopback"), default="all", help="Where ports are published that name no address (all addresses, or loopback)"
)
@click.option("--tlscacert", type=HostPath(), help="Certificate of the authority that clients' certificates are signed by")
@click.option("--tlscert", type=HostPath(), help="Certificate of the server")
@click.option("--tlskey", type=HostPath(), help="Key of the server")
@click.option("--openapi", is_flag=True, help="Print what is served as an OpenAPI description, and serve nothing")
@click.pass_obj
def serve(
    session: Session, hosts: Sequence[str], group: str, publish: str, tlscacert: str | None, tlscert: str | None, tlskey: str | None, openapi: bool
) -> int:
    """Serve the Docker Engine API, for docker, compose and other tools of Docker's, until it is interrupted."""
    if openapi:
        from bulle.api.description import openapi_text

        write(openapi_text())
        return 0
    from bulle.api import listening
    from bulle.api.server import serve as serve_until_told
    from bulle.api.service import EVERYWHERE, LOOPBACK, Service
    from bulle.engine.supervisor import warm
    from bulle.spawner.child import return_to_callers_mounts

    return_to_callers_mounts()  # before there are threads
    listeners = listening.handed_over(os.environ) if not hosts else []
    service = Service(session.home, LOOPBACK if publish == "loopback" else EVERYWHERE)
    warm(service.engine.home)  # forks, which a process with threads must not
    places = [] if listeners else list(hosts) or [f"unix://{listening.default_path()}"]
    certificates = _certificates(tlscacert, tlscert, tlskey)
    try:
        for place in places:
            listeners.append(listening.open_listener(place, group, certificates))
        serve_until_told(service, listeners, lambda: note(f"listening on {', '.join(places) or 'what systemd handed over'}"))
    finally:
        _forget(places[: len(listeners)], listeners)
        service.engine.close()
    return 0


def _certificates(authority: str | None, certificate: str | None, key: str | None) -> Certificates | None:
    from bulle.api.listening import Certificates

    if not (authority or certificate or key):
        return None
    if not (authority and certificate and key):
        raise InvalidInput("TLS needs three files", "one of them is not given", "give --tlscacert, --tlscert and --tlskey")
    return Certificates(Path(authority), Path(certificate), Path(key))


def _forget(places: Sequence[str], listeners: Sequence[Listener]) -> None:
    for place, (listener, _context) in zip(places, listeners, strict=False):
        listener.close()
        if place.startswith("unix://"):
            with suppress(OSError):
                os.unlink(place.removeprefix("unix://"))
