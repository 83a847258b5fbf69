"""Names of images: Docker's grammar and normalisation; digests."""

from __future__ import annotations

import pytest

from bulle.errors import CorruptImage, InvalidReference
from bulle.model.digest import Digest, chain_ids
from bulle.model.reference import Reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/localhost/app", "docker.io/localhost/app:latest", "docker.io/localhost/app:latest"),
        ("docker.io/a.b/app", "docker.io/a.b/app:latest", "docker.io/a.b/app:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/a/b__c/d-e.f_g:X.y_z-1", "127.0.0.1:5000/a/b__c/d-e.f_g:X.y_z-1", "127.0.0.1:5000/a/b__c/d-e.f_g:X.y_z-1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"quay.io/a:t@{DIGEST}", f"quay.io/a@{DIGEST}", f"quay.io/a:t@{DIGEST}"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, canonical: str, familiar: str) -> None:
    """Canonical and familiar form of what users write; both mean the same again."""
    reference = Reference.parse(text)
    assert (reference.canonical, reference.familiar) == (canonical, familiar)
    assert Reference.parse(reference.canonical).canonical == canonical


@pytest.mark.parametrize(
    "text",
    ["", ":", "/", "debian:", "Debian", "a//b", "a/", "/a", "a:b:c", "a b", "-a", "a.-b", "a@", "a@sha256:12", f"a@{DIGEST}0", "a@md5:" + "0" * 32,
     "ab" * 32, "a" * 256, "a:" + "t" * 129, "a:.t", "a\n", "a:t\n", "../a", "ex ample.com/a", "exa_mple.com/a", "docker.io/"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    """One clear error, whatever the text."""
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 32, DIGEST + "\n", "sha512:" + "a" * 64])
def test_malformed_digests_are_refused(text: str) -> None:
    """A Digest that exists is well-formed."""
    with pytest.raises(CorruptImage):
        Digest.parse(text)


def test_digests_of_content() -> None:
    """Algorithm, digits and short form."""
    digest = Digest.of(b"")
    assert digest == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (digest.algorithm, digest.short) == ("sha256", "e3b0c44298fc")


def test_chain_ids_follow_the_specification() -> None:
    """ChainID(L0|L1) is the digest of both names with a space between."""
    first, second = Digest.of(b"1"), Digest.of(b"2")
    assert chain_ids((first, second)) == [first, Digest.of(f"{first} {second}".encode())]
    assert chain_ids(()) == []
