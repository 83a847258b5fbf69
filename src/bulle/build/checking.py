"""What of a build can be known to be wrong before its first step: said at once, and not after an hour."""

from __future__ import annotations

import os
from pathlib import Path

from bulle.build.options import IMAGE_CONTEXTS, BuildOptions
from bulle.build.step_mounts import secret_value
from bulle.engine.drivers import LEVELS
from bulle.errors import InvalidInput, NotFound
from bulle.model.reference import Reference


def check_options(options: BuildOptions) -> None:
    """Raise InvalidInput or NotFound for names, places and words that cannot be right."""
    for name in ("tags", "arguments", "contexts", "secrets", "ssh", "platforms", "labels", "annotations", "outputs", "allowed", "no_cache_stages"):
        if isinstance(getattr(options, name), str):
            raise InvalidInput(f"BuildOptions.{name} is a text", "it must be a tuple", f"write ({getattr(options, name)!r},)")
    for tag in options.tags:
        if Reference.parse(tag).digest is not None:
            raise InvalidInput(f"{tag!r} cannot be given to an image", "a digest is not chosen, it follows from the content", "give a tag")
    if options.isolation and options.isolation not in LEVELS:
        raise InvalidInput(f"there is no isolation level {options.isolation!r}", "", f"use one of {', '.join(LEVELS)}")
    for item in (*options.labels, *options.annotations):
        if not item.partition("=")[0]:
            raise InvalidInput(f"{item!r} names nothing", "", "write NAME=value")
    for item in options.annotations:
        if "=" not in item:
            raise InvalidInput(f"the annotation {item!r} has no value", "", "write NAME=value")
    for secret in options.secrets:
        secret_value(secret, options)
    for name, place in options.contexts:
        if not place.startswith(IMAGE_CONTEXTS) and "://" not in place and not os.path.exists(place):
            raise NotFound(f"the context {name} cannot be used", f"there is no {place}", "name a directory, docker-image://… or oci-layout://…")
    for output in options.outputs:
        if output.destination == "-":
            continue
        parent = Path(output.destination).absolute().parent
        if output.type == "local" and Path(output.destination).exists() and not Path(output.destination).is_dir():
            raise InvalidInput(f"{output.destination} cannot be filled", "it is not a directory", "name a directory")
        if output.type in ("oci", "docker", "tar") and not parent.is_dir():
            raise NotFound(f"{output.destination} cannot be written", f"there is no directory {parent}", "make it first")
