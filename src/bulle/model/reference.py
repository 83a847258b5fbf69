"""Names of images: Docker's grammar and its normalisation (``debian`` is ``docker.io/library/debian:latest``).

Used wherever a user names an image. Pure data: it does not know which images exist; ids and prefixes of ids are the image store's business.
Grammar: the distribution project's reference package, which Docker, containerd and podman share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bulle.errors import CorruptImage, InvalidReference
from bulle.model.digest import Digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised name: ``domain`` (with its port), ``path``, and ``tag`` or ``digest`` (both are possible; then the digest decides)."""

    domain: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that a user means by ``text``. Raises InvalidReference."""
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(f"{text!r} is not an image name", "64 hexadecimal digits are an image id")
        name, _, digest_text = text.partition("@")
        digest = _digest(text, digest_text) if "@" in text else None
        domain, remainder = _split_domain(name)
        path, colon, tag = remainder.partition(":")
        if colon and not _TAG.fullmatch(tag):
            allowed = "tags have letters, digits, _ . - and at most 128 of them"
            raise InvalidReference(f"{text!r} is not an image name", f"{tag!r} is not a tag", allowed)
        if domain == DEFAULT_DOMAIN and "/" not in path:
            path = f"library/{path}" if path else path
        if not _DOMAIN.fullmatch(domain):
            raise InvalidReference(f"{text!r} is not an image name", f"{domain!r} is not a registry's name")
        if not _PATH.fullmatch(path):
            details = "the name of a repository must be lower case" if path != path.lower() else "invalid reference format"
            raise InvalidReference(f"{text!r} is not an image name", details)
        if len(domain) + 1 + len(path) > _NAME_LENGTH:
            raise InvalidReference(f"{text[:40]!r}… is not an image name", f"it is longer than {_NAME_LENGTH} characters")
        return cls(domain, path, tag or ("" if digest else DEFAULT_TAG), digest)

    @property
    def repository(self) -> str:
        """``domain/path``, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def canonical(self) -> str:
        """The full form under which the store keeps it: ``domain/path:tag``, or ``domain/path@digest`` where there is a digest."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: without ``docker.io/library/``, where that means the same."""
        if self.domain == DEFAULT_DOMAIN:
            short = self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path
            # What is left may look like a registry's name and its repository.
            return short if _split_domain(short) == (DEFAULT_DOMAIN, short) else self.repository
        return self.repository

    @property
    def familiar(self) -> str:
        """The whole reference as people write it; listings and messages show this."""
        text = self.familiar_name + (f":{self.tag}" if self.tag else "")
        return f"{text}@{self.digest}" if self.digest else text

    def __str__(self) -> str:
        return self.familiar


def _digest(text: str, digest_text: str) -> Digest:
    try:
        return Digest.parse(digest_text)
    except CorruptImage as error:
        raise InvalidReference(f"{text!r} is not an image name", error.brief) from error


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # Docker's rule: the first component is a registry only if it looks like a host and not like a user's name.
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return (DEFAULT_DOMAIN if first == "index.docker.io" else first), rest
    return DEFAULT_DOMAIN, name
