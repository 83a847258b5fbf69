"""``build --platform a,b``: one image for each platform, and an index of them under every name that was asked for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

import msgspec

from bulle.build.builder import Built, build
from bulle.build.options import BuildEvent, BuildOptions, Report, silent
from bulle.engine import Engine
from bulle.errors import InvalidInput, NotFound
from bulle.model.platform import parse_platform
from bulle.model.reference import Reference


def build_all(engine: Engine, options: BuildOptions, *, report: Report = silent, stdin: BinaryIO | None = None, explain: bool = False) -> list[Built]:
    """Build for all platforms of the options, one after the other; for one alone it is :func:`build`. Raises as that does."""
    if len(options.platforms) < 2:
        return [build(engine, options, report=report, stdin=stdin, explain=explain)]
    if options.context == "-" or options.file == "-":
        raise InvalidInput("a build for several platforms cannot read standard input", "it would be read only once", "use a directory")
    if options.outputs:
        raise InvalidInput("--output takes the image of one platform", f"{len(options.platforms)} were asked for", "build them one by one")
    platforms = dict.fromkeys(parse_platform(text) for text in options.platforms)
    built = []
    for platform in platforms:
        own = msgspec.structs.replace(options, platforms=(str(platform),), tags=())
        built.append(build(engine, own, report=_of_platform(str(platform), report), explain=explain))
    for tag in options.tags:
        reference = Reference.parse(tag)
        with suppress(NotFound):
            engine.indexes.delete(tag)
        with suppress(NotFound):
            engine.store.images.untag(reference)
        engine.indexes.create(tag, [one.image.id for one in built])
    return built


def _of_platform(platform: str, report: Report) -> Report:
    """Progress that says which platform a step is of."""

    def named(event: BuildEvent) -> None:
        step = event.step
        report(event if step is None else replace(event, step=replace(step, stage=f"{platform} {step.stage}")))

    return named
