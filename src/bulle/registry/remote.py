"""``docker://REFERENCE``, and every reference without a transport: one image from a registry.

Distribution specification, "pull". The manifest is fetched by tag or digest, verified, followed through an index to this platform, and its layers are
streamed when the store asks for them. Mirrors are tried first where the user configured any; what they send is held to the same digests only when the
reference has one, so they are as trusted as the user made them. What refers to the image (distribution specification 1.1, "listing referrers") is
offered beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import msgspec

from bulle.errors import AuthenticationFailed, BulleError, CorruptImage, NotFound, RegistryFailure
from bulle.model.digest import Digest
from bulle.model.image import INDEX_MEDIA_TYPES, MANIFEST_MEDIA_TYPES, METADATA_LIMIT_BYTES, OCI_INDEX, Descriptor, Index, Manifest
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.assembly import Contents, bounded, image_at
from bulle.registry.client import Client
from bulle.registry.progress import Progress
from bulle.registry.transport import RemoteArtifact, RemoteImage, Source, SourceConfiguration, SourceRequest

_NEXT = re.compile(r"<([^>]{1,2000})>\s*;\s*rel=\"?next")
_TAGS_LIMIT = 20_000
_ARTIFACTS_LIMIT = 32
_ARTIFACTS_LIMIT_BYTES = 64 << 20


class Repository(Contents):
    """One repository of one registry as a place with contents."""

    def __init__(self, client: Client, path: str, configuration: SourceConfiguration, what: str) -> None:
        self._client = client
        self._path = path
        self._configuration = configuration
        self._what = what
        self._scope = f"repository:{path}:pull"
        self._known: dict[str, bytes] = {}

    def resolve(self, reference: Reference) -> Descriptor:
        """What a tag or digest stands for right now, as the registry tells it and as far as that can be verified."""
        name = str(reference.digest or reference.tag)
        raw, headers = self._read(name)
        if reference.digest is not None:
            documents.check_content(raw, reference.digest, -1, f"the manifest of {self._what}")
        digest = reference.digest or Digest.of(raw)
        announced = headers.get("Docker-Content-Digest", "")
        if announced and reference.digest is None:
            documents.check_content(raw, Digest.parse(announced), -1, f"the manifest of {self._what}")
        media_type = documents.kind_of(raw, headers.get("Content-Type", ""), self._what)
        self._known[str(digest)] = raw
        return Descriptor(media_type=media_type, digest=str(digest), size=len(raw))

    def manifest(self, descriptor: Descriptor) -> bytes:
        known = self._known.get(descriptor.digest)
        return known if known is not None else self._read(descriptor.digest)[0]

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        digest = descriptor.digest
        received = 0
        progress = self._configuration.progress
        progress(Progress("download", digest, 0, descriptor.size))
        for chunk in self._client.stream(f"{self._path}/blobs/{digest}", scope=self._scope, what=self._what, size=descriptor.size):
            received += len(chunk)
            progress(Progress("download", digest, received, descriptor.size))
            yield chunk

    def referrers(self, subject: Digest) -> list[Descriptor]:
        """What speaks of a manifest, by the referrers API or the tag that stands in for it; empty where there is neither."""
        for path in (f"referrers/{subject}", f"manifests/{fallback_tag(subject)}"):
            try:
                raw, _ = self._client.read(f"{self._path}/{path}", scope=self._scope, accept=OCI_INDEX, limit=METADATA_LIMIT_BYTES, what=self._what)
                return list(Index.parse(raw).manifests)
            except (NotFound, CorruptImage, RegistryFailure):
                continue  # a registry without the API may answer anything
        return []

    def tags(self) -> list[str]:
        """Every tag of the repository, page by page. Distribution specification, "listing tags"."""
        found: list[str] = []
        path = f"{self._path}/tags/list?n=1000"
        while path and len(found) < _TAGS_LIMIT:
            raw, headers = self._client.read(path, scope=self._scope, accept="application/json", limit=METADATA_LIMIT_BYTES, what=self._what)
            try:
                page = msgspec.json.decode(raw, type=_Tags).tags or ()
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise CorruptImage(f"the tags of {self._what} cannot be read", str(error)) from None
            if not set(page) - set(found):
                break
            found += [tag for tag in page if tag not in found]
            following = _NEXT.search(headers.get("Link", ""))
            query = following[1].partition("?")[2] if following else ""
            path = f"{self._path}/tags/list?{query}" if query else ""
        return found

    def _read(self, name: str) -> tuple[bytes, dict[str, str]]:
        raw, headers = self._client.read(
            f"{self._path}/manifests/{name}", scope=self._scope, accept=documents.ACCEPT, limit=METADATA_LIMIT_BYTES, what=self._what
        )
        return raw, {key: headers[key] for key in ("Content-Type", "Docker-Content-Digest") if key in headers}


class _Tags(msgspec.Struct):
    tags: tuple[str, ...] | None = None


def list_tags(reference: Reference, configuration: SourceConfiguration) -> list[str]:
    """Every tag of a repository, as its registry tells them. Raises NotFound, RegistryFailure, AuthenticationFailed, CorruptImage."""
    client = Client(reference.domain, configuration)
    try:
        return Repository(client, reference.path, configuration, reference.familiar_name).tags()
    finally:
        client.close()


def fetch_document(reference: Reference, configuration: SourceConfiguration) -> tuple[bytes, str]:
    """The manifest or index behind a name, raw, and its media type; nothing else is fetched. Raises as :func:`list_tags` does."""
    client = Client(reference.domain, configuration)
    try:
        repository = Repository(client, reference.path, configuration, reference.familiar)
        descriptor = repository.resolve(reference)
        return repository.manifest(descriptor), descriptor.media_type
    finally:
        client.close()


def fetch_blob(repository: str, descriptor: Descriptor, configuration: SourceConfiguration) -> Iterator[bytes]:
    """One blob of a repository (``domain/path``), bounded but not verified. Raises as :func:`list_tags` does."""
    reference = Reference.parse(repository)
    client = Client(reference.domain, configuration)
    try:
        contents = Repository(client, reference.path, configuration, reference.familiar_name)
        yield from bounded(contents.blob(descriptor), descriptor.size, f"a layer of {reference.familiar_name}")
    finally:
        client.close()


class RemoteRepository(Source):
    """The image that one reference names. Raises InvalidReference at once, everything else when the image is asked for."""

    def __init__(self, request: SourceRequest) -> None:
        self._configuration = request.configuration
        self._platform = request.platform
        self.reference = Reference.parse(request.text.removeprefix("//"))
        self.repository = self.reference.repository
        self.progress = request.configuration.progress
        self.stopped = request.configuration.stopped
        self._clients: list[Client] = []
        self._repository: Repository | None = None

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    def images(self) -> Iterator[RemoteImage]:
        hosts = (*self._configuration.mirrors.get(self.reference.domain, ()), self.reference.domain)
        for host in hosts[:-1]:
            try:
                image = self._image(host)
            except (RegistryFailure, AuthenticationFailed, NotFound, CorruptImage):
                # A mirror is a convenience: whatever it cannot give, the registry is asked for.
                continue
            yield image
            return
        yield self._image(hosts[-1])

    def _image(self, host: str) -> RemoteImage:
        client = Client(host, self._configuration)
        self._clients.append(client)
        what = self.reference.familiar
        self._configuration.progress(Progress("resolve", what, message=host))
        repository = Repository(client, self.reference.path, self._configuration, what)
        try:
            descriptor = repository.resolve(self.reference)
            image = image_at(repository, descriptor, self._platform, (self.reference,), what)
        except BulleError:
            client.close()
            raise
        self._repository = repository
        if descriptor.media_type in INDEX_MEDIA_TYPES:
            self._configuration.progress(Progress("resolve", what, message=f"{self._platform} of {descriptor.digest}"))
        return image

    def artifacts(self, image: RemoteImage) -> Iterator[RemoteArtifact]:
        if self._repository is None:
            return
        left_bytes = _ARTIFACTS_LIMIT_BYTES
        for descriptor in self._repository.referrers(Digest.of(image.manifest))[:_ARTIFACTS_LIMIT]:
            if descriptor.media_type not in MANIFEST_MEDIA_TYPES or descriptor.size > METADATA_LIMIT_BYTES:
                continue
            raw = self._repository.manifest(descriptor)
            documents.check_content(raw, descriptor.parsed_digest, descriptor.size, "an artifact")
            manifest = Manifest.parse(raw)
            if manifest.subject is None or manifest.subject.digest != str(image.manifest_digest):
                continue
            left_bytes -= manifest.config.size + sum(layer.size for layer in manifest.layers)
            if left_bytes < 0:
                return
            yield RemoteArtifact(raw, partial(_blob_of, self._repository))


def _blob_of(repository: Repository, descriptor: Descriptor) -> Iterator[bytes]:
    return bounded(repository.blob(descriptor), descriptor.size, "an artifact")


def fallback_tag(subject: Digest) -> str:
    """The tag under which a registry without the referrers API lists what speaks of a manifest."""
    return f"{subject.algorithm}-{subject.encoded[:64]}"
