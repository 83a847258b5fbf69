"""Sending one blob to one repository: not at all where it is there, mounted from another repository where the registry can, else uploaded.

Distribution specification, "pushing blobs". A large blob goes in one PATCH, so that what arrived before a broken connection counts: the registry is
asked how much that was, and the rest follows (registries of the line of ``distribution`` 2 have then cancelled the upload, and get it from the
start). A registry that takes no such body is given smaller ones, and at last a single PUT. Called by ``destination``, from several threads; what a
blob is and whence it comes is the caller's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, Literal
from urllib.parse import quote, urlsplit

from bulle.errors import AuthenticationFailed, BulleError, RegistryFailure
from bulle.model.digest import Digest
from bulle.registry.answers import TemporaryFailure, discard
from bulle.registry.client import Client
from bulle.registry.compression import CHUNK_BYTES
from bulle.registry.progress import Progress
from bulle.registry.transport import SourceConfiguration

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

Outcome = Literal["exists", "mounted", "pushed"]

_SMALL_BYTES = 1 << 20  # less than this is not worth a second request
_PIECES_BYTES = (1 << 62, 64 << 20, 8 << 20)  # how much one PATCH may carry, until the registry takes it
_MOUNTS_LIMIT = 3
_COMMIT_TIMEOUT_S = 900.0  # a registry may read the whole blob once more before it answers
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_NO_PATCH = frozenset({400, 404, 405, 411, 415, 501})
_ANSWERS = frozenset({400, 404, 405, 411, 413, 415, 416, 501})


@dataclass(frozen=True, slots=True)
class Blob:
    """What is to be sent: ``open`` gives its bytes, seekable, each time anew. ``sources`` are repositories of the same registry that may have it."""

    digest: Digest
    size: int
    open: Callable[[], BinaryIO]
    sources: tuple[str, ...] = ()


class _Refused(Exception):
    """The registry does not take a body of this form; ``status`` is its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Lost(Exception):
    """The registry has forgotten the upload: many cancel one of which a part arrived that they did not acknowledge."""


class Upload:
    """One blob on its way to the repository ``path``; ``what`` is how errors call the image."""

    def __init__(self, client: Client, path: str, blob: Blob, what: str, configuration: SourceConfiguration) -> None:
        self._client = client
        self._path = path
        self._blob = blob
        self._what = what
        self._configuration = configuration
        self._report = configuration.progress
        self._scope = f"repository:{path}:pull,push"
        self._place = ""
        self._failures = 0

    def send(self) -> Outcome:
        """Bring the blob there. Raises RegistryFailure, AuthenticationFailed, NotFound (the blob is not here any more)."""
        digest = str(self._blob.digest)
        if found := self.find():
            return found
        self._report(Progress("upload", digest, 0, self._blob.size, "waiting"))
        self._upload()
        self._report(Progress("upload", digest, self._blob.size, self._blob.size, "pushed"))
        return "pushed"

    def find(self) -> Outcome | None:
        """Whether the blob is there without being sent: it was, or the registry took it from another repository."""
        found: Outcome | None = None
        if self._exists():
            found, message = "exists", "exists already"
        else:
            for source in self._blob.sources[:_MOUNTS_LIMIT]:
                if self._mount(source):
                    found, message = "mounted", f"mounted from {source}"
                    break
        if found is not None:
            self._report(Progress("upload", str(self._blob.digest), self._blob.size, self._blob.size, message))
        return found

    def _exists(self) -> bool:
        def attempt() -> bool:
            url = self._client.address(f"{self._path}/blobs/{self._blob.digest}")
            response, _ = self._exchange("HEAD", url, allowed=frozenset({404}))
            discard(response)
            return response.status == HTTPStatus.OK

        return self._client.repeat(attempt, self._what)

    def _mount(self, source: str) -> bool:
        """Ask the registry to take the blob from another of its repositories; where it will not, an upload has begun."""
        if self._place or source == self._path:
            return False
        url = self._client.address(f"{self._path}/blobs/uploads/?mount={quote(str(self._blob.digest))}&from={quote(source)}")
        scope = f"{self._scope} repository:{source}:pull"

        def attempt() -> bool:
            response, place = self._client.exchange("POST", url, scope=scope, headers={}, what=self._what)
            discard(response)
            if response.status == HTTPStatus.CREATED:
                return True
            self._place = self._location(response, place)
            return False

        try:
            return self._client.repeat(attempt, self._what)
        except (AuthenticationFailed, RegistryFailure):
            return False  # we may not read there: it is uploaded

    def _upload(self) -> None:
        """Begin uploads until one comes to its end; a form of body that the registry refuses is not tried again."""
        pieces = list(_PIECES_BYTES) if self._blob.size > _SMALL_BYTES else []
        restarts = 0
        while True:
            if not self._place:
                self._begin()
            try:
                if pieces:
                    self._patch_all(pieces[0])
                    self._commit()
                else:
                    self._put_all()
                return
            except _Refused as refusal:
                self._place = ""
                if refusal.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(pieces) > 1:
                    pieces.pop(0)
                elif pieces and refusal.status in _NO_PATCH and not restarts:
                    restarts += 1  # what was left of a broken request may have arrived late: once more from the start
                elif pieces and refusal.status in _NO_PATCH:
                    pieces.clear()
                else:
                    raise RegistryFailure(f"cannot push {self._what}", f"{self._client.host} answers {refusal.status} to a blob") from None
            except _Lost:
                self._place = ""
            except TemporaryFailure as failure:
                self._place = ""
                self._wait(failure)

    def _begin(self) -> None:
        def attempt() -> str:
            response, place = self._exchange("POST", self._client.address(f"{self._path}/blobs/uploads/"))
            discard(response)
            return self._location(response, place)

        self._place = self._client.repeat(attempt, self._what)

    def _patch_all(self, piece_bytes: int) -> None:
        """Send everything in pieces, going on where the registry says that it stands after each broken one."""
        position = 0
        while position < self._blob.size:
            try:
                response = self._patch(position, min(piece_bytes, self._blob.size - position))
                if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise TemporaryFailure("it holds another part of the blob than was sent")
                if response.status in _ANSWERS:
                    raise _Refused(response.status)
                position = self._advanced(position, piece_bytes, self._received(response))
                self._failures = 0
            except TemporaryFailure as failure:
                self._wait(failure)
                before, position = position, self._stand()
                if position > before:
                    self._failures = 0

    def _advanced(self, position: int, piece_bytes: int, received: int | None) -> int:
        """Where the upload stands after a piece that was taken, as the registry says it if it does."""
        sent = min(position + piece_bytes, self._blob.size)
        if received is None:
            return sent
        if not position < received <= sent:
            raise TemporaryFailure("it took nothing of what was sent")
        return received

    def _patch(self, position: int, length: int) -> BaseHTTPResponse:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Content-Range": f"{position}-{position + length - 1}",
        }
        response, place = self._exchange("PATCH", self._place, headers, lambda: self._bytes(position, length), _ANSWERS)
        discard(response)
        if response.status not in _ANSWERS:
            self._place = self._location(response, place)
        return response

    def _stand(self) -> int:
        """How many bytes the registry holds of this upload."""

        def attempt() -> int:
            response, place = self._exchange("GET", self._place, allowed=frozenset({404, 405, 416}))
            discard(response)
            if response.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT):
                raise _Lost
            with suppress(RegistryFailure):
                self._place = self._location(response, place)
            return self._received(response) or 0

        position = self._client.repeat(attempt, self._what)
        if position > self._blob.size:
            raise _Lost
        return position

    def _commit(self) -> None:
        """Say that this was all. When the answer is lost, the blob may be there."""
        while True:
            try:
                response, _ = self._exchange("PUT", self._final(), {"Content-Length": "0"}, None, frozenset({400, 404, 416}), _COMMIT_TIMEOUT_S)
                discard(response)
                if response.status < HTTPStatus.BAD_REQUEST or self._exists():
                    return
                raise _Refused(response.status)
            except TemporaryFailure as failure:
                self._wait(failure)
                if self._exists():
                    return

    def _put_all(self) -> None:
        """Everything in one request."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(self._blob.size)}
        response, _ = self._exchange("PUT", self._final(), headers, lambda: self._bytes(0, self._blob.size), _ANSWERS, _COMMIT_TIMEOUT_S)
        discard(response)
        if response.status in _ANSWERS and not self._exists():
            raise _Refused(response.status)

    def _final(self) -> str:
        parts = urlsplit(self._place)
        digest = f"digest={quote(str(self._blob.digest))}"
        return parts._replace(query=f"{parts.query}&{digest}" if parts.query else digest).geturl()

    def _bytes(self, position: int, length: int) -> Iterator[bytes]:
        """A part of the blob, reported as it goes. Raises BulleError where the file is shorter than it should be."""
        with self._blob.open() as file:
            file.seek(position)
            end = position + length
            while position < end:
                chunk = file.read(min(CHUNK_BYTES, end - position))
                if not chunk:
                    raise BulleError(f"cannot push {self._what}", f"the blob {self._blob.digest.short} is shorter than {self._blob.size} bytes")
                self._configuration.check_stopped()
                yield chunk
                position += len(chunk)
                self._report(Progress("upload", str(self._blob.digest), position, self._blob.size))

    def _exchange(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        body: Callable[[], Iterator[bytes]] | None = None,
        allowed: frozenset[int] = frozenset(),
        timeout_s: float = 0.0,
    ) -> tuple[BaseHTTPResponse, str]:
        return self._client.exchange(
            method, url, scope=self._scope, headers=headers or {}, what=self._what, body=body, allowed=allowed, timeout_s=timeout_s
        )

    def _location(self, response: BaseHTTPResponse, place: str) -> str:
        """Where the upload goes on. Raises RegistryFailure where the answer names no place or one that may not be followed."""
        location = response.headers.get("Location")
        if not location:
            raise RegistryFailure(f"cannot push {self._what}", f"{self._client.host} does not say where a blob is to be sent")
        return self._client.onward(place, location)

    def _received(self, response: BaseHTTPResponse) -> int | None:
        """How many bytes an answer says that there are, None where it does not."""
        found = _RANGE.fullmatch(response.headers.get("Range", ""))
        # An upload without any bytes is called 0-0, as one with a single byte is: what has one byte is sent once more.
        return None if found is None else 0 if found[1] == "0" else int(found[1]) + 1

    def _wait(self, failure: TemporaryFailure) -> None:
        self._failures += 1
        self._client.wait(failure, self._failures, self._what)
