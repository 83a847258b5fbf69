"""``bulle manifest``: indexes of images for several platforms; and ``image referrers``: what speaks of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from bulle.cli import human
from bulle.cli.option_types import PLATFORM, Suggestion, complete_images
from bulle.cli.progress import progress_on_terminal
from bulle.cli.session import Session, write, write_bytes
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.errors import InvalidInput


def _describing(function: Callable[..., int]) -> Callable[..., int]:
    """The flags that say what an index says of an image."""
    for option in reversed((
        click.option("--os", "system", default="", help="Operating system"),
        click.option("--arch", "architecture", default="", help="Architecture"),
        click.option("--variant", default="", help="Variant of the architecture"),
        click.option("--os-version", default="", help="Version of the operating system"),
        click.option("--os-features", multiple=True, help="Features of the operating system"),
        click.option("--annotation", "annotations", multiple=True, help="Annotation of the image in the index (KEY=VALUE)"),
    )):
        function = option(function)
    return function


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidInput(f"{text!r} is not an annotation", "expected KEY=VALUE")
        found[key] = value
    return found


@verb("create", "INDEX [IMAGE...]")
@click.argument("name")
@click.argument("images", nargs=-1, shell_complete=complete_images)
@click.option("-a", "--amend", is_flag=True, help="Amend an existing index")
@click.option("--annotation", "annotations", multiple=True, help="Annotation of the index (KEY=VALUE)")
@click.pass_obj
def create(session: Session, name: str, images: Sequence[str], amend: bool, annotations: Sequence[str]) -> int:
    """Create an index of images, which are pulled if they are not here."""
    with progress_on_terminal() as report:
        index = session.engine.indexes.create(name, list(images), replace=amend, annotations=_pairs(annotations), progress=report)
    write(f"Created manifest list {index.reference.canonical}\n")
    return 0


@verb("add", "INDEX IMAGE [IMAGE...]")
@click.argument("name")
@click.argument("images", nargs=-1, required=True, shell_complete=complete_images)
@click.option("--platform", type=PLATFORM, default="", help="Pull the image for this platform")
@click.option("--all", "every", is_flag=True, help="Add every image of an index that a registry has")
@_describing
@click.pass_obj
def add(session: Session, /, name: str, images: Sequence[str], platform: str, every: bool, **described: Any) -> int:
    """Add images to an index."""
    if every and (platform or any(described.values())):
        mend = "leave the other flags out, and use `bulle manifest annotate`"
        raise InvalidInput("--all takes each image as the registry's index has it", "", mend)
    with progress_on_terminal() as report:
        for image in images:
            if every:
                session.engine.indexes.add_all(name, image, progress=report)
                continue
            session.engine.indexes.add(name, image, _changes(described), platform=platform, progress=report)
    write(f"{session.engine.indexes.get(name).reference.canonical}\n")
    return 0


@verb("annotate", "INDEX IMAGE")
@click.argument("name")
@click.argument("image", shell_complete=complete_images)
@_describing
@click.pass_obj
def annotate(session: Session, /, name: str, image: str, **described: Any) -> int:
    """Say something else of an image in an index: its platform, annotations."""
    session.engine.indexes.annotate(name, image, _changes(described))
    return 0


def _changes(described: dict[str, Any]) -> Any:
    from bulle.engine.indexes import EntryChanges

    return EntryChanges(
        os=described["system"],
        architecture=described["architecture"],
        variant=described["variant"],
        os_version=described["os_version"],
        os_features=tuple(described["os_features"]),
        annotations=_pairs(described["annotations"]),
    )


@verb("inspect", "INDEX|IMAGE")
@click.argument("name", shell_complete=complete_images)
@click.pass_obj
def inspect(session: Session, name: str) -> int:
    """Display an index that was made here, else the index or manifest that a registry has."""
    write(msgspec.json.format(session.engine.indexes.inspect(name), indent=4).decode() + "\n")
    return 0


@verb("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only show names")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help="Format output: 'table', 'json', or a Go TEMPLATE")
@click.pass_obj
def ls(session: Session, quiet: bool, form: str) -> int:
    """List the indexes that were made here."""
    listing: Listing[Any] = Listing(
        fields={
            "Name": ("NAME", lambda one: one.reference.familiar),
            "Digest": ("DIGEST", lambda one: str(one.digest)),
            "Platforms": ("PLATFORMS", lambda one: ", ".join(str(entry.platform) for entry in one.manifests if entry.platform)),
        },
        columns=("Name", "Platforms"),
        methods={},
    )
    write(render(listing, session.engine.indexes.list(), "{{.Name}}" if quiet else form))
    return 0


@verb("push", "INDEX [DESTINATION]")
@click.argument("name")
@click.argument("destination", required=False)
@click.option("--all", "every", is_flag=True, help="Push the images too (they always are)")
@click.option("-p", "--purge", is_flag=True, help="Remove the index here after the push")
@click.option("-q", "--quiet", is_flag=True, help="Suppress the progress")
@click.pass_obj
def push(session: Session, name: str, destination: str | None, every: bool, purge: bool, quiet: bool) -> int:
    """Push an index and its images to a registry; prints the digest of the index."""
    with progress_on_terminal(enabled=not quiet) as report:
        pushed = session.engine.indexes.push(name, destination or "", progress=report)
    if purge:
        session.engine.indexes.delete(name)
    write(f"{pushed.digest}\n")
    return 0


@verb("remove", "INDEX IMAGE [IMAGE...]")
@click.argument("name")
@click.argument("images", nargs=-1, required=True, shell_complete=complete_images)
@click.pass_obj
def remove(session: Session, name: str, images: Sequence[str]) -> int:
    """Take images (by name, or by the digest of their manifest) out of an index."""
    return session.for_each(images, lambda image: session.engine.indexes.remove(name, image).reference.canonical)


@verb("rm", "INDEX [INDEX...]")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def delete(session: Session, names: Sequence[str]) -> int:
    """Remove indexes; their images stay."""
    return session.for_each(names, lambda name: f"Deleted: {session.engine.indexes.delete(name)}")


@verb("referrers", "IMAGE")
@click.argument("name", shell_complete=complete_images)
@click.option("--type", "kind", default="", help="Only artifacts of this type")
@click.option("--content", is_flag=True, help="Print what they hold instead of a list of them")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help="Format output: 'table', 'json', or a Go TEMPLATE")
@click.pass_obj
def referrers(session: Session, name: str, kind: str, content: bool, no_trunc: bool, form: str) -> int:
    """List what speaks of an image: lists of packages, signatures."""
    found = session.engine.artifacts.list(name, kind)
    if content:
        for one in found:
            write_bytes(1, session.engine.artifacts.content(one.digest))
        return 0
    listing: Listing[Any] = Listing(
        fields={
            "Digest": ("DIGEST", lambda one: str(one.digest) if no_trunc else one.digest.short),
            "ArtifactType": ("TYPE", lambda one: one.artifact_type),
            "Size": ("SIZE", lambda one: human.size(one.size_bytes)),
            "Subject": ("SUBJECT", lambda one: str(one.subject)),
            "Annotations": ("ANNOTATIONS", lambda one: ",".join(f"{key}={value}" for key, value in one.annotations.items())),
        },
        columns=("Digest", "ArtifactType", "Size"),
        methods={},
    )
    write(render(listing, found, form))
    return 0
