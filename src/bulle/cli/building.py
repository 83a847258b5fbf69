"""``bulle build``: an image from a Containerfile."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.build_progress import build_progress
from bulle.cli.container_flags import resource_limit
from bulle.cli.network_flags import extra_host
from bulle.cli.option_types import PLATFORM, Choice, HostPath, Size, Suggestion, Text
from bulle.cli.progress import progress_on_terminal
from bulle.cli.session import Session, note, printable, write
from bulle.cli.verb import WrongValue, verb
from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from bulle.build.options import Secret


@verb("build", "PATH | URL | -")
@click.argument("context")
@click.option("-t", "--tag", "tags", multiple=True, type=Text("name:tag"), help="Name of the result; may be given several times")
@click.option("-f", "--file", type=HostPath(), help="Name of the Containerfile (default: Containerfile or Dockerfile in PATH; -: standard input)")
@click.option("--target", type=Text(), help="Stage to build, by its name or number")
@click.option("--build-arg", multiple=True, type=Text("list"), help="Set an ARG (NAME=value, or NAME for the value in the environment)")
@click.option(
    "--build-context", multiple=True, type=Text("name=path"), help="Another place to copy from (a directory, docker-image://…, oci-layout://…)"
)
@click.option("--secret", multiple=True, type=Text("secret"), help="A secret for RUN --mount=type=secret (id=ID,src=FILE | id=ID,env=NAME)")
@click.option("--ssh", multiple=True, type=Text("agent"), help="An ssh agent for RUN --mount=type=ssh (default, or ID=SOCKET)")
@click.option(
    "--platform",
    multiple=True,
    type=PLATFORM,
    help="Platform of the result (several: an index of images, one for each)",
)
@click.option("--label", multiple=True, type=Text("list"), help="Set metadata for the image (NAME=value)")
@click.option("--annotation", multiple=True, type=Text("list"), help="Set an annotation of the image's manifest (NAME=value)")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=Text("output"),
    help="Where the result goes (type=oci|docker|local|tar,dest=PATH; default: the store)",
)
@click.option(
    "--sbom", type=Suggestion("form", "spdx", "cyclonedx"), default="", help="Attach a list of the packages in the image (spdx or cyclonedx)"
)
@click.option(
    "--allow",
    multiple=True,
    type=Suggestion("entitlement", "security.insecure", "network.host"),
    help="Allow what RUN may not ask for by itself (security.insecure, network.host)",
)
@click.option("--no-cache", is_flag=True, help="Do not use the cache")
@click.option("--no-cache-filter", multiple=True, type=Text("stage"), help="Do not use the cache for these stages")
@click.option("--pull", is_flag=True, help="Always pull the images that the file names")
@click.option("--network", type=Suggestion("network", "host", "none", "bridge"), default="", help="Network of RUN (default: host)")
@click.option("--isolation", type=Suggestion("level", "container", "chroot"), default="", help="How strongly to isolate RUN (container, chroot)")
@click.option("--add-host", multiple=True, type=Text("list"), help="Add a custom host-to-IP mapping to RUN (HOST:IP)")
@click.option("--ulimit", multiple=True, type=Text("ulimit"), help="Ulimit options of RUN (NAME=SOFT[:HARD])")
@click.option("-m", "--memory", type=Size(), help="Memory limit of RUN")
@click.option("--shm-size", type=Size(), help="Size of /dev/shm in RUN")
@click.option("--push", is_flag=True, help="Push the result under all its names")
@click.option("--load", is_flag=True, help="Put the image into the store (it always is, without --output)")
@click.option("--rm", is_flag=True, default=True, help="Remove the containers of steps (they always are)")
@click.option("--force-rm", is_flag=True, help="Remove them also after a failure (they always are)")
@click.option("--iidfile", type=HostPath(), help="Write the image ID to a file")
@click.option("--explain", is_flag=True, help="Say of each step why it was not in the cache")
@click.option("--progress", type=Choice("auto", "plain", "tty", "quiet"), default="auto", help="How to show progress")
@click.option("-q", "--quiet", is_flag=True, help="Only print the image ID")
@click.pass_obj
def build(session: Session, /, context: str, **flags: Any) -> int:
    """Build an image from a Containerfile.

    Prints the ID of the image. SOURCE_DATE_EPOCH in the environment (or as a build argument) makes two builds the same, byte for byte.
    """
    from bulle.build.platforms import build_all

    if not flags["rm"]:
        raise InvalidInput("--rm=false is not possible", "the containers of steps go with their steps", "build with --target the stage before")
    options = _options(context, flags)
    with build_progress("quiet" if flags["quiet"] else flags["progress"], explain=flags["explain"]) as report:
        built = build_all(session.engine, options, report=report, stdin=sys.stdin.buffer, explain=flags["explain"])
    for name in built[0].unused_arguments:
        note(f"WARNING: the build argument {printable(name)} is declared by no ARG")
    ids = "\n".join(one.image.id for one in built)
    if flags["iidfile"]:
        Path(flags["iidfile"]).write_text(ids)
    if flags["push"]:
        _push(session, options.tags, several=len(built) > 1, quiet=flags["quiet"])
    if not any(output.type != "image" and output.destination == "-" for output in options.outputs):
        write(f"{ids}\n")
    return 0


def _push(session: Session, tags: Sequence[str], *, several: bool, quiet: bool) -> None:
    if not tags:
        raise InvalidInput("nothing can be pushed", "the image has no name", "give it one with -t")
    engine = session.engine
    with progress_on_terminal(enabled=not quiet) as report:
        for tag in tags:
            if several:
                engine.indexes.push(tag, progress=report)
            else:
                engine.images.push(tag, progress=report)


def _options(context: str, flags: dict[str, Any]) -> Any:
    from bulle.build.options import BuildOptions
    from bulle.build.outputs import parse_output

    environment = dict(os.environ)
    arguments = flags["build_arg"]
    return BuildOptions(
        context=context,
        file=flags["file"] or "",
        tags=flags["tags"],
        target=flags["target"] or "",
        arguments=arguments,
        contexts=tuple(_pair(text, "--build-context") for text in flags["build_context"]),
        secrets=tuple(secret_from(text, environment) for text in flags["secret"]),
        ssh=flags["ssh"],
        platforms=tuple(part for text in flags["platform"] for part in text.split(",")),
        labels=flags["label"],
        annotations=flags["annotation"],
        outputs=tuple(parse_output(text) for text in flags["outputs"]),
        sbom=flags["sbom"],
        allowed=flags["allow"],
        no_cache=flags["no_cache"],
        no_cache_stages=flags["no_cache_filter"],
        pull=flags["pull"],
        network=flags["network"],
        isolation=flags["isolation"],
        memory_bytes=flags["memory"] or 0,
        shm_bytes=flags["shm_size"] or 0,
        extra_hosts=tuple(extra_host(text) for text in flags["add_host"]),
        limits=tuple(resource_limit(text) for text in flags["ulimit"]),
        source_date_epoch_s=_epoch(arguments, environment),
        environment=environment,
    )


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise WrongValue(f"invalid {flag} {text!r}", "", "write NAME=VALUE")
    return name, value


def secret_from(text: str, environment: dict[str, str]) -> Secret:
    """What ``--secret`` says; without a type it is a variable if there is one of that name, else a file. Raises WrongValue."""
    from bulle.build.options import Secret

    fields = dict(item.partition("=")[::2] for item in text.split(","))
    name = fields.pop("id", "")
    kind = fields.pop("type", "")
    source = fields.pop("src", "") or fields.pop("source", "")
    variable = fields.pop("env", "")
    if not name or fields or kind not in ("", "file", "env") or (source and variable):
        raise WrongValue("invalid --secret", "it is not id=ID,src=FILE and not id=ID,env=NAME", "write one of them")
    if kind == "env" and not variable:
        source, variable = "", source or name
    if not source and not variable:
        # As in Docker: a variable of that name, else a file.
        source, variable = ("", name) if name in environment else (name, "")
    return Secret(name, os.path.abspath(source) if source else "", variable)


def _epoch(arguments: Sequence[str], environment: dict[str, str]) -> int | None:
    given = next((item.partition("=")[2] for item in reversed(arguments) if item.startswith("SOURCE_DATE_EPOCH=")), None)
    text = environment.get("SOURCE_DATE_EPOCH", "") if given is None else given
    if not text:
        return None
    if not text.isdecimal() or len(text) > 11:
        raise InvalidInput(f"SOURCE_DATE_EPOCH={text!r} is no time", "", "give seconds since 1970 as a whole number")
    return int(text)
