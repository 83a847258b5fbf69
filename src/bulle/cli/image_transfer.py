"""``bulle pull``, ``push``, ``load`` and ``save``: images between this machine and archives, directories and registries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import click

from bulle.cli.option_types import PLATFORM, Choice, HostPath, Suggestion, complete_images
from bulle.cli.progress import progress_on_terminal
from bulle.cli.session import Session, write
from bulle.cli.verb import verb
from bulle.errors import InvalidInput, NotFound
from bulle.model.reference import Reference

_TRANSPORTS = Suggestion("image", "host", "deb:", "docker-archive:", "oci:", "oci-archive:", "dir:", "docker://")


@verb("pull", "NAME[:TAG|@DIGEST] | TRANSPORT:NAME")
@click.argument("name", type=_TRANSPORTS)
@click.option("-q", "--quiet", is_flag=True, help="Suppress the progress")
@click.option("-a", "--all-tags", "every", is_flag=True, help="Download all tagged images in the repository")
@click.option("--platform", type=PLATFORM, help="Set platform if the image has several")
@click.pass_obj
def pull(session: Session, name: str, quiet: bool, every: bool, platform: str | None) -> int:
    """Download an image from a registry, or make one from host, deb:SUITE, dir:DIR, oci:DIR, an archive.

    Prints the name under which the image is kept.
    """
    if every:
        with progress_on_terminal(enabled=not quiet) as report:
            images = session.engine.images.pull_all(name, platform=platform or "", progress=report)
        repository = Reference.parse(name.removeprefix("docker://")).repository
        names = {one for image in images for one in image.references if one.startswith(f"{repository}:")}
        write("".join(f"{one}\n" for one in sorted(names)))
        return 0
    with progress_on_terminal(enabled=not quiet) as report:
        image = session.engine.images.pull(name, platform=platform or "", progress=report)
    write((_name_asked_for(name, image.references) or image.id) + "\n")
    return 0


def _name_asked_for(name: str, references: Sequence[str]) -> str:
    """Of all names of an image the one that was just pulled; an image may have had others before."""
    with suppress(InvalidInput):
        wanted = Reference.parse(name.removeprefix("docker://")).canonical
        if wanted in references:
            return wanted
    return references[-1] if references else ""


@verb("push", "NAME[:TAG] [DESTINATION]")
@click.argument("name", shell_complete=complete_images)
@click.argument("destination", required=False)
@click.option("-a", "--all-tags", "every", is_flag=True, help="Push all tags of an image to the repository")
@click.option("-q", "--quiet", is_flag=True, help="Suppress verbose output")
@click.option("--compression", type=Choice("gzip", "zstd", "none"), help="Compression of layers that were made here (default gzip)")
@click.option("--platform", type=PLATFORM, default="", help="Push the image for this platform, where several have the name")
@click.pass_obj
def push(
    session: Session,
    name: str,
    destination: str | None,
    every: bool,
    quiet: bool,
    compression: Literal["gzip", "zstd", "none"] | None,
    platform: str,
) -> int:
    """Upload an image to a registry, with what speaks of it.

    It goes to the registry in its name, or to DESTINATION. Prints the digest that the registry has it under.
    """
    images = session.engine.images
    with progress_on_terminal(enabled=not quiet) as report:
        if every and platform:
            raise InvalidInput("--platform cannot be combined with --all-tags")
        if every:
            pushed = images.push_all(name, destination or "", compression=compression or "", progress=report)
        else:
            pushed = [images.push(name, destination or "", compression=compression or "", platform=platform, progress=report)]
    if quiet:
        write("".join(f"{one.reference.canonical}\n" for one in pushed))
        return 0
    write(f"The push refers to repository [{pushed[0].reference.repository}]\n")
    write("".join(f"{one.reference.tag}: digest: {one.digest} size: {one.size}\n" for one in pushed))
    return 0


@verb("load")
@click.option("--state", type=HostPath(), help="Read the state of a container that save --state wrote ('-': STDIN), and make the container")
@click.option("-i", "--input", "source", type=HostPath(), help="Read from tar archive file, instead of STDIN")
@click.option("-q", "--quiet", is_flag=True, help="Suppress the progress")
@click.option("--disk-only", is_flag=True, help="With --state, begin a virtual machine from its disk, as after a power cut, instead of its memory")
@click.pass_obj
def load(session: Session, state: str | None, source: str | None, quiet: bool, disk_only: bool) -> int:
    """Load an image from a tar archive or STDIN."""
    if state is not None:
        from bulle.cli.moving import load_file

        return load_file(session, state, disk_only=disk_only)
    if source is None and os.isatty(0):
        raise InvalidInput("requested load from stdin, but stdin is a terminal", "", "name a file with -i, or redirect one")
    if source is not None and not Path(source).exists():
        raise NotFound(f"open {source}: no such file or directory")
    with progress_on_terminal(enabled=not quiet) as report, ExitStack() as stack:
        archive = Path(source) if source is not None else stack.enter_context(open(0, "rb", closefd=False))
        images = session.engine.images.load(archive, progress=report)
    for image in images:
        for reference in image.references:
            write(f"Loaded image: {Reference.parse(reference).familiar}\n")
        if not image.references:
            write(f"Loaded image ID: {image.id}\n")
    return 0


@verb("save", "IMAGE [IMAGE...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_images)
@click.option("--state", type=HostPath(), help="Write the state of a container to a file ('-': STDOUT), instead of images")
@click.option("-o", "--output", type=HostPath(), help="Write to a file, instead of STDOUT")
@click.option("--format", "form", type=Choice("docker-archive", "oci-archive"), default="docker-archive", help="Format of the archive")
@click.option("--platform", type=PLATFORM, default="", help="Save the images for this platform, where several have a name")
@click.option("--disk-only", is_flag=True, help="With --state, leave the memory of a virtual machine out")
@click.pass_obj
def save(session: Session, names: Sequence[str], state: str | None, output: str | None, form: str, platform: str, disk_only: bool) -> int:
    """Save one or more images to a tar archive (streamed to STDOUT by default).

    With --state, save a container: what it wrote, its volumes, its options and its image, and the memory of a virtual machine that runs.
    """
    if state is not None:
        from bulle.cli.moving import save_file

        return save_file(session, names, state, disk_only=disk_only)
    if output is None and os.isatty(1):
        raise InvalidInput("cowardly refusing to save to a terminal", "", "use the -o flag or redirect")
    from bulle.engine.output_file import output_file

    for name in names:
        session.engine.images.get(name, platform)
    with output_file(output) as out:
        session.engine.images.save(list(names), out, format="oci-archive" if form == "oci-archive" else "docker-archive", platform=platform)
    return 0
