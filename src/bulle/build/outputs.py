"""``--output``: the result of a build somewhere else than in the store, as an archive of the image or as its files.

An archive appears under its name when it is whole. A directory is filled by tar(1), which knows every kind of file; what was there before stays.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bulle.build.copying import Group, Placement, Target
from bulle.build.options import Output
from bulle.build.sources import LayersSource, Top
from bulle.engine import Engine
from bulle.engine.output_file import output_file
from bulle.engine.saving import save_images
from bulle.errors import BulleError, InvalidInput
from bulle.model.reference import Reference
from bulle.registry import tar_format
from bulle.store import Image
from bulle.store.failures import storage_errors
from bulle.store.merged_view import MergedView

_FORMATS = {"oci": "oci-archive", "docker": "docker-archive"}


def parse_output(text: str) -> Output:
    """``type=TYPE[,dest=PATH]``, or a directory alone, or ``-`` for a tar on standard output. Raises InvalidInput."""
    if "=" not in text:
        return Output("tar", "-") if text == "-" else Output("local", text)
    fields = dict(item.partition("=")[::2] for item in text.split(","))
    kind = fields.pop("type", "")
    destination = fields.pop("dest", "")
    if kind not in ("image", "oci", "docker", "local", "tar"):
        raise InvalidInput(f"--output type={kind} is not known", "", "use oci, docker, local, tar or image")
    if fields:
        raise InvalidInput(f"--output has no field {next(iter(fields))!r}", "", "write type=oci,dest=FILE")
    if not destination and kind == "docker":
        kind = "image"  # as with Docker: into the store
    if not destination and kind == "local":
        raise InvalidInput("--output type=local needs a directory", "", "add dest=DIRECTORY")
    return msgspec.convert({"type": kind, "destination": destination or "-"}, Output)


def write_output(engine: Engine, image: Image, output: Output, names: tuple[Reference, ...]) -> None:
    """Write an image where an output says; to standard output for "-". Raises StorageFull, BulleError."""
    if output.type == "local":
        _fill(engine, image, Path(output.destination))
        return
    with output_file(None if output.destination == "-" else output.destination) as out:
        if output.type == "tar":
            for chunk in root_stream(engine, image):
                out.write(chunk)
        else:
            save_images(engine.store, [(image, names)], out, _FORMATS[output.type])


def root_stream(engine: Engine, image: Image, *, harmless: bool = False) -> Iterator[bytes]:
    """The files of an image as one tar; ``harmless`` without devices, which in a directory of the host would be the host's."""
    if image.host_binds:
        raise BulleError("the files of this image cannot be written", f"its {image.host_binds[0]} is this machine's own", "write an archive instead")
    with engine.store.layers.view(image.layers) as view:
        source = LayersSource(view, "the image")
        root = source.follow(b"")
        assert root is not None
        placement = Placement(MergedView([]), Target("/", into=True), 0)
        placement.add([Group(source, [Top(b"", root)])])
        if harmless:
            devices = (tar_format.CHARACTER_DEVICE, tar_format.BLOCK_DEVICE)
            placement.members = {path: member for path, member in placement.members.items() if member.kind not in devices}
        yield from placement.stream(None)


def _fill(engine: Engine, image: Image, directory: Path) -> None:
    with storage_errors(f"{directory} could not be made"):
        directory.mkdir(parents=True, exist_ok=True)
    words = ["tar", "--extract", "--file=-", f"--directory={directory}", "--numeric-owner", "--delay-directory-restore"]
    if os.geteuid() == 0:
        words += ["--preserve-permissions", "--same-owner", "--xattrs", "--xattrs-include=security.capability"]
    # Its words go to a file: a pipe that nobody reads meanwhile could hold it up.
    with tempfile.TemporaryFile() as words_of_tar:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=words_of_tar)
        assert process.stdin is not None
        try:
            for chunk in root_stream(engine, image, harmless=True):
                process.stdin.write(chunk)
        except BrokenPipeError:
            pass  # its own words say why
        finally:
            process.communicate()
        words_of_tar.seek(0)
        said = words_of_tar.read(10_000).decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise BulleError(f"{directory} could not be filled", said[0][:200] if said else "tar failed", "check its room and permissions")
