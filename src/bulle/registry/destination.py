"""One repository of a registry as a place to push to: blobs, manifests, and what refers to them.

Distribution specification 1.1, "push" and "pushing manifests with subject". The engine says what an image is made of; everything of it is sent before
its manifest, so that a registry never names what it does not have. Where a registry does not know referrers, they are listed under a tag that is made
of the subject's digest, as the specification has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from bulle.errors import AuthenticationFailed, CorruptImage, RegistryFailure
from bulle.model.digest import Digest
from bulle.model.image import METADATA_LIMIT_BYTES, OCI_INDEX, Index, Manifest
from bulle.model.reference import Reference
from bulle.registry.answers import discard
from bulle.registry.client import Client
from bulle.registry.remote import fallback_tag
from bulle.registry.transport import SourceConfiguration
from bulle.registry.uploads import Blob, Outcome, Upload


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to: the name, and the digest and bytes of the manifest that the registry now has under it."""

    reference: Reference
    digest: Digest
    size: int


class Destination:
    """The repository of ``reference``; a context manager. Made without any request."""

    def __init__(self, reference: Reference, configuration: SourceConfiguration) -> None:
        self.reference = reference
        self._path = reference.path
        self._what = reference.familiar
        self._scope = f"repository:{reference.path}:pull,push"
        self._configuration = configuration
        self._client = Client(reference.domain, configuration, "push")

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, blob: Blob) -> Outcome:
        """Bring one blob there; may be called from several threads. Raises RegistryFailure, AuthenticationFailed."""
        return Upload(self._client, self._path, blob, self._what, self._configuration).send()

    def find(self, blob: Blob) -> Outcome | None:
        """Whether one blob is there, or the registry took it from another of its repositories, without its bytes."""
        return Upload(self._client, self._path, blob, self._what, self._configuration).find()

    def put_manifest(self, raw: bytes, media_type: str, name: str = "") -> bool:
        """Put a manifest or index under a tag, or under its digest; returns whether the registry took note of its subject.

        Raises RegistryFailure, AuthenticationFailed, CorruptImage where the registry says that it got something else.
        """
        digest = Digest.of(raw)
        url = self._client.address(f"{self._path}/manifests/{name or digest}")
        headers = {"Content-Type": media_type, "Content-Length": str(len(raw))}

        def attempt() -> bool:
            response, _ = self._client.exchange("PUT", url, scope=self._scope, headers=headers, what=self._what, body=lambda: raw)
            discard(response)
            told = response.headers.get("Docker-Content-Digest", "")
            if told.startswith("sha256:") and told != digest:
                raise CorruptImage(f"cannot push {self._what}", f"{self._client.host} has the manifest as {told[:80]} instead of {digest}")
            return bool(response.headers.get("OCI-Subject"))

        return self._client.repeat(attempt, self._what)

    def put_referrer(self, raw: bytes, media_type: str) -> None:
        """Put an artifact whose blobs are there, and list it where the registry does not do so itself."""
        if not self.put_manifest(raw, media_type):
            self._list_referrer(raw, media_type)

    def _list_referrer(self, raw: bytes, media_type: str) -> None:
        """Add an artifact to the index that the fallback tag of its subject names. Distribution specification, "referrers tag schema"."""
        manifest = Manifest.parse(raw)
        if manifest.subject is None:
            return
        tag = fallback_tag(manifest.subject.parsed_digest)
        entry: dict[str, Any] = {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw)}
        entry["artifactType"] = manifest.artifact_type or manifest.config.media_type
        if manifest.annotations:
            entry["annotations"] = manifest.annotations
        known = self._listed(tag)
        if any(one.get("digest") == entry["digest"] for one in known):
            return
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*known, entry]}
        self.put_manifest(msgspec.json.encode(index), OCI_INDEX, tag)

    def _listed(self, tag: str) -> list[dict[str, Any]]:
        """What the index of a tag lists, nothing where there is none or where it is something else."""
        path = f"{self._path}/manifests/{tag}"

        def attempt() -> bytes | None:
            allowed = frozenset({404})
            response, _ = self._client.exchange(
                "HEAD", self._client.address(path), scope=self._scope, headers={"Accept": OCI_INDEX}, what=self._what, allowed=allowed
            )
            discard(response)
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            return self._client.read(path, scope=self._scope, accept=OCI_INDEX, limit=METADATA_LIMIT_BYTES, what=self._what)[0]

        raw = self._client.repeat(attempt, self._what)
        if raw is None:
            return []
        try:
            Index.parse(raw)
        except CorruptImage:
            return []
        listed = msgspec.json.decode(raw)["manifests"]
        return list(listed)


def check_login(host: str, configuration: SourceConfiguration) -> None:
    """Find out whether a registry takes the login that ``configuration`` has for it. Raises AuthenticationFailed, RegistryFailure."""
    client = Client(host, configuration, "log in to")
    try:
        client.read("", scope="", accept="application/json", limit=1 << 20, what=host)
    except AuthenticationFailed as error:
        raise AuthenticationFailed(f"cannot log in to {host}", error.details, "check user name and password") from None
    except RegistryFailure as error:
        if "404" in error.details:
            raise RegistryFailure(f"cannot log in to {host}", "it is no registry: it knows no /v2/", "check its name") from None
        raise
    finally:
        client.close()
