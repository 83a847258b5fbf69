"""``docker://REFERENCE``, and every reference without a transport: one image from a registry.

Distribution specification, "pull". The manifest is fetched by tag or digest, verified, followed through an index to this platform, and its layers are
streamed when the store asks for them. Mirrors are tried first where the user configured any; what they send is held to the same digests only when the
reference has one, so they are as trusted as the user made them.
"""

from __future__ import annotations

from collections.abc import Iterator

from bulle.errors import AuthenticationFailed, BulleError, CorruptImage, NotFound, RegistryFailure
from bulle.model.digest import Digest
from bulle.model.image import INDEX_MEDIA_TYPES, METADATA_LIMIT_BYTES, Descriptor
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.assembly import Contents, image_at
from bulle.registry.client import Client
from bulle.registry.progress import Progress
from bulle.registry.transport import RemoteImage, Source, SourceConfiguration, SourceRequest


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

    def _read(self, name: str) -> tuple[bytes, dict[str, str]]:
        raw, headers = self._client.read(
            f"{self._path}/manifests/{name}", scope=self._scope, accept=documents.ACCEPT, limit=METADATA_LIMIT_BYTES, what=self._what
        )
        return raw, {key: headers[key] for key in ("Content-Type", "Docker-Content-Digest") if key in headers}


class RemoteRepository(Source):
    """The image that one reference names. Raises InvalidReference at once, everything else when the image is asked for."""

    def __init__(self, request: SourceRequest) -> None:
        self._configuration = request.configuration
        self._platform = request.platform
        self.reference = Reference.parse(request.text.removeprefix("//"))
        self._clients: list[Client] = []

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
        if descriptor.media_type in INDEX_MEDIA_TYPES:
            self._configuration.progress(Progress("resolve", what, message=f"{self._platform} of {descriptor.digest}"))
        return image
