"""What a name that somebody gave to ``pull --all-tags`` and ``push`` means; for :mod:`bulle.engine.images`."""

from __future__ import annotations

from bulle.errors import InvalidInput, InvalidReference
from bulle.model.reference import DEFAULT_TAG, Reference


def repository_of(text: str) -> Reference:
    """The repository that a name without a tag means. Raises InvalidReference, InvalidInput."""
    name = text.removeprefix("docker://")
    reference = Reference.parse(name)
    if reference.digest is not None or (reference.tag != DEFAULT_TAG or name.endswith(f":{DEFAULT_TAG}")):
        raise InvalidInput("tag can't be used with --all-tags/-a", f"{text!r} has one", "name the repository alone")
    return reference


def destination_of(name: str, destination: str) -> Reference:
    """Where an image of this name is to be pushed. Raises InvalidReference, InvalidInput."""
    text = (destination or name).removeprefix("docker://")
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        if destination:
            raise
        raise InvalidInput(f"{name} says not where it is to be pushed", "", "give it a name with `bulle tag`, or name the destination") from None
    if reference.digest is not None:
        raise InvalidInput(f"cannot push to {text}", "a digest is not chosen, it follows from the content", "name a tag")
    return reference
