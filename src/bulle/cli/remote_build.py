"""``bulle build`` for another machine: its context, Containerfile, secrets and results. See ``remote_files``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from bulle.cli.journey import Journey, path_and_tag
from bulle.errors import InvalidInput, NotFound
from bulle.fleet.carrying import Keep, Upload


def build(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    """Carry the context, without what it ignores, and the Containerfile."""
    journey.reads = "-" in positional or given.get("file") == "-"
    if not positional or positional[0] == "-" or not os.path.exists(positional[0]):
        if given.get("file") not in (None, "-"):
            journey.words.append(f"--file={given['file']}")  # in the context, wherever that is
        return
    context, file = positional[0], given.get("file")
    if os.path.isdir(context):
        positional[0] = journey.upload(context, "context", kept(context, file if isinstance(file, str) else ""))
    else:
        positional[0] = journey.upload(context)
    if isinstance(file, str) and file != "-":
        journey.words.append(f"--file={_containerfile(journey, context, file)}")
    if "SOURCE_DATE_EPOCH" in os.environ:
        journey.words.append(f"--build-arg=SOURCE_DATE_EPOCH={os.environ['SOURCE_DATE_EPOCH']}")


def kept(context: str, file: str) -> Keep | None:
    """What of a context goes along: not what it ignores, but always what says so and what is built. ``file`` is the Containerfile (host path)."""
    from bulle.build.context import NAMES, ignore_rules

    root = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rules = ignore_rules(root, file or NAMES[0], beside=file not in ("", "-"))
    finally:
        os.close(root)
    if rules is None:
        return None
    inside = os.path.relpath(file, context) if os.path.isabs(file) or os.path.exists(file) else os.path.normpath(file)
    always = {*NAMES, ".dockerignore", ".containerignore", inside, f"{inside}.dockerignore"}
    return lambda path, is_directory: path in always or not (rules.prunes(path) if is_directory else rules.excludes(path))


def _containerfile(journey: Journey, context: str, file: str) -> str:
    """Where the file is there: carried beside what it ignores, or in the context."""
    if not os.path.isdir(context) or not os.path.exists(file):
        return file
    there = journey.upload(file)
    if os.path.exists(f"{file}.dockerignore"):
        journey.uploads.append(Upload(f"{there.removeprefix(chr(0) + '/')}.dockerignore", os.path.abspath(f"{file}.dockerignore")))
    return there


def _context(journey: Journey, text: str) -> str:
    name, equals, value = text.partition("=")
    if ("://" in value and not value.startswith("oci-layout://")) or not equals:
        return text
    if value.startswith("oci-layout://"):
        path, colon, tag = path_and_tag(value.removeprefix("oci-layout://"))
        return f"{name}=oci-layout://{journey.upload(path)}{colon}{tag}"
    return f"{name}={journey.upload(value)}" if os.path.exists(value) else text


def _argument(journey: Journey, text: str) -> str | None:
    """NAME alone is this machine's variable, or none."""
    return text if "=" in text else f"{text}={os.environ[text]}" if text in os.environ else None


def _secret(journey: Journey, text: str) -> str:
    """A secret travels as a file, wherever it is from."""
    from bulle.cli.building import secret_from

    secret = secret_from(text, dict(os.environ))
    if secret.source:
        return f"id={secret.id},src={journey.upload(secret.source)}"
    if secret.variable not in os.environ:
        raise NotFound(f"the secret {secret.id} is not there", f"no variable {secret.variable} is in the environment", "set it, or name a file")
    name = f"in/{len(journey.uploads)}/secret"
    journey.uploads.append(Upload(name, content=os.fsencode(os.environ[secret.variable])))
    return f"id={secret.id},src=\0/{name}"


def _agent(journey: Journey, text: str) -> str:
    if "=" in text:
        raise InvalidInput("an ssh agent's socket of this machine is none on another one", "", "use --ssh default, and ForwardAgent in ~/.ssh/config")
    return text


def _output(journey: Journey, text: str) -> str:
    from bulle.build.outputs import parse_output

    output = parse_output(text)
    if output.type == "image" or output.destination == "-":
        return text
    if output.type == "local":
        os.makedirs(output.destination, exist_ok=True)
    return f"type={output.type},dest={journey.bring(output.destination, directory=output.type == 'local')}"


BUILD_OPTIONS: dict[str, Callable[[Journey, str], str | None]] = {
    "build_arg": _argument,
    "build_context": _context,
    "file": lambda journey, path: None,  # said by build
    "iidfile": lambda journey, path: journey.bring(path),
    "outputs": _output,
    "secret": _secret,
    "ssh": _agent,
}
"""What its flags become; None for one that is left out."""
