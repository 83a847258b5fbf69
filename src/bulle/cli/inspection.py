"""``bulle inspect``: everything that is known of a container, an image or a volume, as JSON or through a template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import click
import msgspec

from bulle.cli.option_types import PLATFORM, Choice, Suggestion, complete_containers, complete_images
from bulle.cli.session import Reported, Session, complain, note, write
from bulle.cli.verb import verb
from bulle.errors import BulleError, NotFound

_SIZE = click.option("-s", "--size", "sizes", is_flag=True, help="Display total file sizes of containers")
FORMAT = click.option("-f", "--format", "form", type=Suggestion("string", "json"), default="", help="Format output: 'json', or a Go TEMPLATE")


@verb("inspect", "NAME|ID [NAME|ID...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_containers)
@FORMAT
@_SIZE
@click.option("--type", "kind", type=Choice("container", "image", "network", "volume"), help="Only inspect objects of the given type")
@click.pass_obj
def inspect(session: Session, names: Sequence[str], form: str, sizes: bool, kind: str | None) -> int:
    """Return low-level information on containers, images, networks and volumes."""
    if sizes and kind not in ("container", None):
        note(f"WARNING: --size ignored for {kind}s")
    find = {"container": _container, "image": _image, "network": _network, "volume": _volume}.get(kind or "", _either)
    return inspect_all(names, form, lambda name: find(session, name, sizes))


@verb("inspect", "CONTAINER [CONTAINER...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_containers)
@FORMAT
@_SIZE
@click.pass_obj
def inspect_container(session: Session, names: Sequence[str], form: str, sizes: bool) -> int:
    """Display detailed information on one or more containers."""
    return inspect_all(names, form, lambda name: _container(session, name, sizes))


@verb("inspect", "IMAGE [IMAGE...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_images)
@FORMAT
@click.option("--platform", type=PLATFORM, default="", help="Inspect the image for this platform, where several have the name")
@click.pass_obj
def inspect_image(session: Session, names: Sequence[str], form: str, platform: str) -> int:
    """Display detailed information on one or more images."""
    return inspect_all(names, form, lambda name: session.engine.images.inspect(name, platform))


def _container(session: Session, name: str, sizes: bool = False) -> Mapping[str, object]:
    return session.engine.containers.get(name).inspect(sizes=sizes)


def _image(session: Session, name: str, _sizes: bool = False) -> Mapping[str, object]:
    return session.engine.images.inspect(name)


def _network(session: Session, name: str, _sizes: bool = False) -> Mapping[str, object]:
    from bulle.engine.network_inspection import network_document

    return network_document(session.engine.networks, name)


def _volume(session: Session, name: str, _sizes: bool = False) -> Mapping[str, object]:
    from bulle.cli.volumes import document

    return document(session, name)


def _either(session: Session, name: str, sizes: bool) -> Mapping[str, object]:
    try:
        return _container(session, name, sizes)
    except NotFound:
        pass
    for find in (_image, _network, _volume):
        # A name that only another thing can have is no image reference.
        with suppress(BulleError):
            return find(session, name)
    raise NotFound(f"no such object: {name}")



def inspect_all(names: Sequence[str], form: str, find: Callable[[str], Mapping[str, object]]) -> int:
    """Print what ``find`` knows of each name, as JSON or through a template; what is not found is said, and the rest shown."""
    from bulle.cli.go_template import Template

    template = Template(form) if form not in {"", "json"} else None
    found: list[Mapping[str, object]] = []
    first: BulleError | None = None
    for name in names:
        try:
            found.append(find(name))
            if template is not None:
                write(template.execute(found[-1]) + "\n")
        except BulleError as error:
            complain(str(error))
            first = first or error
    if template is None:
        encoded = msgspec.json.encode(found)
        write((encoded if form == "json" else msgspec.json.format(encoded, indent=4)).decode() + "\n")
    if first is not None:
        raise Reported(first)
    return 0
