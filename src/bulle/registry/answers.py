"""Reading a registry's answers: bounded bodies, short ones noticed, its error documents made into words.

Called by ``client`` and by what speaks through it. Nothing is requested here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from bulle.errors import CorruptImage
from bulle.registry.compression import CHUNK_BYTES

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
_ERROR_LIMIT_BYTES = 64 << 10


class TemporaryFailure(Exception):
    """A failure that may pass; ``after_s`` is what the server asked for."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


def chunks(response: BaseHTTPResponse, limit: int, what: str) -> Iterator[bytes]:
    """The body of an answer, at most ``limit`` bytes (-1: the caller counts). Raises CorruptImage, TemporaryFailure."""
    from urllib3.exceptions import HTTPError

    received = 0
    while True:
        try:
            chunk = response.read(CHUNK_BYTES, decode_content=False)
        except (HTTPError, OSError) as error:
            raise TemporaryFailure(f"the connection broke: {reason(error)}") from None
        if not chunk:
            return
        received += len(chunk)
        if 0 <= limit < received:
            raise CorruptImage(f"{what} cannot be used", f"the registry sent more than {limit} bytes where a small document was asked for")
        yield chunk


def check_length(response: BaseHTTPResponse, received: int) -> None:
    """urllib3 minds a short body only when asked; asked or not, it is worth another attempt. Raises TemporaryFailure."""
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and len(length) < 20 and received < int(length):
        raise TemporaryFailure(f"the connection broke after {received} of {length} bytes")


def discard(response: BaseHTTPResponse) -> None:
    """Give the connection back after a small answer, else close it: an unread body may be endless. Never raises: something else is on its way."""
    with suppress(Exception):
        left = response.length_remaining  # 0 where there is no body: HEAD, 204
        if left is not None and left <= _ERROR_LIMIT_BYTES:
            response.read(_ERROR_LIMIT_BYTES, decode_content=False)
        response.close()
        response.release_conn()


def retry_after(response: BaseHTTPResponse) -> float:
    """After how many seconds the server wants to be asked again."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def status_words(status: int) -> str:
    """A status with its name."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def error_words(response: BaseHTTPResponse) -> str:
    """The messages of an error body (distribution specification, "error codes"), made fit for a terminal."""
    import msgspec

    try:
        body = msgspec.json.decode(b"".join(chunks(response, _ERROR_LIMIT_BYTES, "the error")))
        words = "; ".join(str(item.get("message") or item.get("code")) for item in body["errors"][:3])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError, CorruptImage, TemporaryFailure):
        return ""
    return "".join(character for character in words if character.isprintable())[:300]


def reason(error: Exception) -> str:
    """The innermost cause of a failed exchange in plain words."""
    inner: BaseException = error
    while inner.__cause__ is not None or getattr(inner, "reason", None).__class__.__mro__.count(BaseException):
        following = inner.__cause__ or inner.reason  # type: ignore[attr-defined]
        if following is inner:
            break
        inner = following
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    text = str(inner)
    return text.rpartition("object at 0x")[2].partition(">: ")[2] or text
