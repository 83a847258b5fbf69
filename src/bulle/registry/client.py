"""The HTTP side of the distribution specification: requests to one registry, with login, redirects, retries and bounds.

``remote`` uses it to pull; pushing will use :meth:`Client.request` the same way. One client talks to one registry and may be used from several
threads. It returns bytes and headers and judges neither manifests nor digests. What it holds to: credentials go to the registry's own scheme, host
and port and to its token service, nowhere else; every address is checked (``destinations``); every body is bounded; nothing is retried that could
not succeed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import SplitResult, urlsplit

from bulle.errors import AuthenticationFailed, CorruptImage, NotFound, RegistryFailure
from bulle.registry import authentication
from bulle.registry.compression import CHUNK_BYTES
from bulle.registry.destinations import Reach, follow, is_loopback_name
from bulle.registry.progress import Progress
from bulle.registry.transport import SourceConfiguration

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, ProxyManager

_Result = TypeVar("_Result")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT = 5
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOKEN_LIMIT_BYTES = 1 << 20
_ERROR_LIMIT_BYTES = 64 << 10
_WAIT_LIMIT_S = 30.0
_USER_AGENT = "bulle"


class _TemporaryError(Exception):
    """A failure that may pass; ``after_s`` is what the server asked for."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


@dataclass
class _Login:
    """The Authorization values found so far, one for each scope."""

    by_scope: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """Requests to one registry (``host`` with its port); a context manager."""

    def __init__(self, host: str, configuration: SourceConfiguration) -> None:
        self.host = host
        self._configuration = configuration
        self._address = "registry-1.docker.io" if host == "docker.io" else host
        name = urlsplit(f"//{self._address}").hostname or ""
        self._plain_allowed = is_loopback_name(name) or host in configuration.insecure_registries
        self._base: SplitResult | None = None
        self._reach = Reach.LOOPBACK
        self._login = _Login()
        self._pools: dict[tuple[str, str, int, Reach], HTTPConnectionPool | ProxyManager] = {}
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close every connection; harmless to repeat."""
        if not self._pools:
            return
        from bulle.registry.connection import close_pool

        with self._lock:
            for pool in self._pools.values():
                close_pool(pool)
            self._pools.clear()

    def read(self, path: str, *, scope: str, accept: str, limit: int, what: str) -> tuple[bytes, Mapping[str, str]]:
        """A small answer as a whole, with its headers. Raises NotFound, AuthenticationFailed, RegistryFailure, CorruptImage (too large)."""

        def attempt() -> tuple[bytes, Mapping[str, str]]:
            response = self.request("GET", path, scope=scope, headers={"Accept": accept}, what=what)
            try:
                body = b"".join(_chunks(response, limit, what))
                _check_length(response, len(body))
                return body, response.headers
            finally:
                _discard(response)

        return self._repeat(attempt, what)

    def stream(self, path: str, *, scope: str, what: str, size: int) -> Iterator[bytes]:
        """A large answer of ``size`` bytes in chunks; a broken connection is taken up again where it broke. Raises as :meth:`read` does."""
        position = 0
        failures = 0
        while position < size or size == 0:
            try:
                for chunk in self._part(path, scope, what, position):
                    position += len(chunk)
                    failures = 0
                    yield chunk
                return
            except _TemporaryError as error:
                failures += 1
                self._wait(error, failures, what)

    def _part(self, path: str, scope: str, what: str, position: int) -> Iterator[bytes]:
        """The rest of an answer from ``position`` on; a server that knows no ranges sends all, of which the start is dropped."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        response = self.request("GET", path, scope=scope, headers=headers, what=what)
        try:
            skip = position
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {position}-"):
                    raise CorruptImage(f"{what} cannot be fetched", "the registry sent another part than it was asked for")
                skip = 0
            received = 0
            for chunk in _chunks(response, -1, what):
                received += len(chunk)
                if skip:
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                if chunk:
                    yield chunk
            _check_length(response, received)
        finally:
            _discard(response)

    def request(self, method: str, path: str, *, scope: str, headers: Mapping[str, str], what: str) -> BaseHTTPResponse:
        """One request (with login and redirects, without retries); the caller reads and releases the answer.

        ``path`` is below ``/v2/``; ``scope`` is what a token is asked for. Raises NotFound, AuthenticationFailed, RegistryFailure, _TemporaryError.
        """
        url = self._find_base()._replace(path=f"/v2/{path}").geturl()
        for last in (False, True):
            with self._login.lock:
                authorization = self._login.by_scope.get(scope, "")
            response, own = self._follow(method, url, {**headers, **({"Authorization": authorization} if authorization else {})}, what)
            # Only the registry itself may ask who we are: a place that it sends us to could name a token service of its own.
            if response.status != HTTPStatus.UNAUTHORIZED or last or not own:
                break
            header = response.headers.get("WWW-Authenticate", "")
            _discard(response)
            with self._login.lock:
                if self._login.by_scope.get(scope, "") == authorization:
                    self._login.by_scope[scope] = self._log_in(header, scope)
        if response.status in (200, 201, 202, 204, 206):
            return response
        try:
            self._refuse(response, what)
        finally:
            _discard(response)

    def _follow(self, method: str, url: str, headers: dict[str, str], what: str) -> tuple[BaseHTTPResponse, bool]:
        """Send a request and go where the answers lead, as far as that is allowed; Authorization stays at the registry.

        Returns the last answer and whether it came from the registry itself.
        """
        least = self._reach
        origin = _origin(urlsplit(url))
        for _ in range(_REDIRECT_LIMIT + 1):
            parts = urlsplit(url)
            own = _origin(parts) == origin
            sent = headers if own else {name: value for name, value in headers.items() if name != "Authorization"}
            response = self._send(method, parts, sent, self._reach if own else least)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response, own
            _discard(response)
            url = follow(url, location).geturl()
            # Each step may only lead further out than the one before.
            least = max(least, self._measure_reach(parts))
        raise RegistryFailure(f"cannot fetch {what}", f"{self.host} redirects more than {_REDIRECT_LIMIT} times")

    def _send(self, method: str, parts: SplitResult, headers: Mapping[str, str], least: Reach) -> BaseHTTPResponse:
        """One exchange with one host. Raises _TemporaryError, RegistryFailure."""
        from urllib3 import ProxyManager
        from urllib3.exceptions import HTTPError, NameResolutionError, SSLError

        host = parts.hostname or ""
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        try:
            pool = self._pool(parts, least)
            # A pool knows its host, a proxy must be told.
            target = parts.geturl() if isinstance(pool, ProxyManager) else (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            return pool.request(method, target, headers=sent, redirect=False, preload_content=False, retries=False)
        except SSLError as error:
            raise RegistryFailure(f"cannot talk to {parts.netloc} securely", _reason(error)) from None
        except NameResolutionError as error:
            raise RegistryFailure(f"cannot find {host}", _reason(error), "check the name and this machine's network") from None
        except (HTTPError, OSError) as error:
            raise _TemporaryError(f"{parts.netloc}: {_reason(error)}") from None
        except ValueError as error:
            raise RegistryFailure(f"cannot talk to {host}", str(error)) from None

    def _pool(self, parts: SplitResult, least: Reach) -> HTTPConnectionPool | ProxyManager:
        from bulle.registry import connection

        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        key = (parts.scheme, host, port, least)
        with self._lock:
            if key not in self._pools:
                proxy = connection.proxy_for(parts.scheme, host)
                timeout_s = self._configuration.timeout_s
                self._pools[key] = connection.make_proxy(proxy, host, least, timeout_s) if proxy else connection.make_pool(*key, timeout_s)
            return self._pools[key]

    def _find_base(self) -> SplitResult:
        """The registry's address: https, or plain http where that is allowed and https does not answer."""
        with self._lock:
            if self._base is None:
                secure = urlsplit(f"https://{self._address}")
                self._reach = self._measure_reach(secure)
                self._base = secure
                if self._plain_allowed:
                    self._base = self._plain_or_secure(secure)
            return self._base

    def _plain_or_secure(self, secure: SplitResult) -> SplitResult:
        """Which of the two speaks: a TLS server that is spoken to plainly answers too, but not as a registry does."""
        probe = secure._replace(path="/v2/")
        try:
            _discard(self._send("GET", probe, {}, self._reach))
        except (_TemporaryError, RegistryFailure) as error:
            with suppress(_TemporaryError, RegistryFailure):
                response = self._send("GET", probe._replace(scheme="http"), {}, self._reach)
                _discard(response)
                if response.status in (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
                    return secure._replace(scheme="http")
            if isinstance(error, _TemporaryError):
                raise RegistryFailure(f"cannot reach the registry {self.host}", str(error), "check its name and that it runs") from None
            raise
        return secure

    def _measure_reach(self, base: SplitResult) -> Reach:
        """How far out the registry itself lies: what it answers may not lead further in."""
        from bulle.registry.connection import proxy_for
        from bulle.registry.destinations import resolve

        host = base.hostname or ""
        if proxy_for("https", host):
            return Reach.PUBLIC
        return min(distance for _, _, distance in resolve(host, base.port or 443, Reach.LOOPBACK))

    def _log_in(self, header: str, scope: str) -> str:
        """The Authorization that answers a challenge: with the user's credentials where there are any, else anonymously."""
        challenge = authentication.parse_challenge(header, self.host)
        credentials = self._configuration.credentials(self.host)
        if challenge.scheme == "basic":
            if credentials is None:
                raise AuthenticationFailed(f"{self.host} wants a login", "no credentials are known for it", f"log in to {self.host} first")
            return authentication.basic(credentials)
        base = self._find_base().geturl()
        service = follow(base, challenge.realm)
        query = "&".join(part for part in (service.query, authentication.token_query(challenge, scope)) if part)
        if credentials and service.scheme == "http" and not (is_loopback_name(service.hostname or "") or _origin(service) == _origin(urlsplit(base))):
            raise AuthenticationFailed(f"cannot log in to {self.host}", "its token service wants the password over plain http")
        headers = {"Authorization": authentication.basic(credentials)} if credentials else {}

        def attempt() -> bytes:
            response = self._send("GET", service._replace(query=query), headers, self._reach)
            try:
                if response.status in _TEMPORARY:
                    raise _TemporaryError(f"its token service answers {response.status}", _retry_after(response))
                if response.status != HTTPStatus.OK:
                    raise AuthenticationFailed(f"cannot log in to {self.host}", f"its token service answers {_status_words(response.status)}")
                return b"".join(_chunks(response, _TOKEN_LIMIT_BYTES, f"the token of {self.host}"))
            finally:
                _discard(response)

        return f"Bearer {authentication.parse_token(self._repeat(attempt, self.host), self.host)}"

    def _refuse(self, response: BaseHTTPResponse, what: str) -> NoReturn:
        """Raise what an error answer means."""
        status = response.status
        reason = _error_words(response) or _status_words(status)
        if status in _TEMPORARY:
            raise _TemporaryError(f"{self.host} answers: {reason}", _retry_after(response))
        if status == HTTPStatus.NOT_FOUND:
            raise NotFound(f"no such image: {what}", f"{self.host}: {reason}")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            details = f"{self.host}: {reason}"
            raise AuthenticationFailed(f"no access to {what}", details, "it may not exist, or a login is needed")
        raise RegistryFailure(f"cannot fetch {what}", f"{self.host} answers: {reason}")

    def _repeat(self, attempt: Callable[[], _Result], what: str) -> _Result:
        failures = 0
        while True:
            try:
                return attempt()
            except _TemporaryError as error:
                failures += 1
                self._wait(error, failures, what)

    def _wait(self, error: _TemporaryError, failures: int, what: str) -> None:
        """Wait before the next attempt, longer each time; RegistryFailure when there were enough."""
        if failures > self._configuration.retries:
            raise RegistryFailure(f"cannot fetch {what}", str(error), "try again later") from None
        self._configuration.progress(Progress("retry", what, failures, self._configuration.retries, str(error)))
        pause_s = self._configuration.backoff_s * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
        time.sleep(min(max(pause_s, error.after_s), _WAIT_LIMIT_S))


def _status_words(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _chunks(response: BaseHTTPResponse, limit: int, what: str) -> Iterator[bytes]:
    """The body of an answer, at most ``limit`` bytes (-1: the caller counts)."""
    from urllib3.exceptions import HTTPError

    received = 0
    while True:
        try:
            chunk = response.read(CHUNK_BYTES, decode_content=False)
        except (HTTPError, OSError) as error:
            raise _TemporaryError(f"the connection broke: {_reason(error)}") from None
        if not chunk:
            return
        received += len(chunk)
        if 0 <= limit < received:
            raise CorruptImage(f"{what} cannot be used", f"the registry sent more than {limit} bytes where a small document was asked for")
        yield chunk


def _check_length(response: BaseHTTPResponse, received: int) -> None:
    """urllib3 minds a short body only when asked; asked or not, it is worth another attempt."""
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and len(length) < 20 and received < int(length):
        raise _TemporaryError(f"the connection broke after {received} of {length} bytes")


def _discard(response: BaseHTTPResponse) -> None:
    """Give the connection back after a small answer, else close it: an unread body may be endless. Never raises: something else is on its way."""
    with suppress(Exception):
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and len(length) < 6:
            response.read(_ERROR_LIMIT_BYTES, decode_content=False)
        response.close()
        response.release_conn()


def _retry_after(response: BaseHTTPResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _error_words(response: BaseHTTPResponse) -> str:
    """The messages of an error body (distribution specification, "error codes"), made fit for a terminal."""
    import msgspec

    try:
        body = msgspec.json.decode(b"".join(_chunks(response, _ERROR_LIMIT_BYTES, "the error")))
        words = "; ".join(str(item.get("message") or item.get("code")) for item in body["errors"][:3])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError, CorruptImage, _TemporaryError):
        return ""
    return "".join(character for character in words if character.isprintable())[:300]


def _reason(error: Exception) -> str:
    """The innermost cause in plain words."""
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
