"""The HTTP side of the distribution specification: requests to one registry, with login, redirects, retries and bounds.

``remote`` uses it to pull, ``uploads`` and ``destination`` to push. One client talks to one registry and may be used from several threads. It
returns bytes and headers and judges neither manifests nor digests. What it holds to: credentials go to the registry's own scheme, host and port and
to its token service, nowhere else; every address is checked (``destinations``), also those that an upload is sent on to; every body is bounded;
nothing is retried that could not succeed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import SplitResult, urlsplit

from bulle.errors import AuthenticationFailed, CorruptImage, NotFound, RegistryFailure
from bulle.registry import authentication
from bulle.registry.answers import TEMPORARY, TemporaryFailure, check_length, chunks, discard, error_words, reason, retry_after, status_words
from bulle.registry.destinations import Reach, follow, is_loopback_name
from bulle.registry.progress import Progress
from bulle.registry.transport import SourceConfiguration, Trust

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, ProxyManager

_Result = TypeVar("_Result")
Body = Callable[[], bytes | Iterable[bytes]]
"""What a request carries, made anew for each attempt."""

_UPLOADING = frozenset({"PATCH", "PUT"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPS_METHOD = frozenset({307, 308})
_REDIRECT_LIMIT = 5
_GOOD = frozenset({200, 201, 202, 204, 206})
_TOKEN_LIMIT_BYTES = 1 << 20
_WAIT_LIMIT_S = 30.0
_USER_AGENT = "bulle"


@dataclass
class _Login:
    """The Authorization values found so far, one for each scope."""

    by_scope: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """Requests to one registry (``host`` with its port); ``doing`` is the verb of its errors."""

    def __init__(self, host: str, configuration: SourceConfiguration, doing: str = "fetch") -> None:
        self.host = host
        self._doing = doing
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
                body = b"".join(chunks(response, limit, what))
                check_length(response, len(body))
                return body, response.headers
            finally:
                discard(response)

        return self.repeat(attempt, what)

    def stream(self, path: str, *, scope: str, what: str, size: int) -> Iterator[bytes]:
        """A large answer of ``size`` bytes in chunks; a broken connection is taken up again where it broke. Raises as :meth:`read` does."""
        position = 0
        failures = 0
        while position < size or size == 0:
            try:
                for chunk in self._part(path, scope, what, position):
                    self._configuration.check_stopped()
                    position += len(chunk)
                    failures = 0
                    yield chunk
                return
            except TemporaryFailure as error:
                failures += 1
                self.wait(error, failures, what)

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
            for chunk in chunks(response, -1, what):
                received += len(chunk)
                if skip:
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                if chunk:
                    yield chunk
            check_length(response, received)
        finally:
            discard(response)

    def request(self, method: str, path: str, *, scope: str, headers: Mapping[str, str], what: str) -> BaseHTTPResponse:
        """One request without a body (with login and redirects, without retries); the caller reads and releases the answer.

        ``path`` is below ``/v2/``; ``scope`` is what a token is asked for. Raises NotFound, AuthenticationFailed, RegistryFailure, TemporaryFailure.
        """
        return self.exchange(method, self.address(path), scope=scope, headers=headers, what=what)[0]

    def address(self, path: str) -> str:
        """The URL of what is below ``/v2/`` of the registry."""
        return f"{self._find_base().geturl()}/v2/{path}"

    def exchange(
        self,
        method: str,
        url: str,
        *,
        scope: str,
        headers: Mapping[str, str],
        what: str,
        body: Body | None = None,
        allowed: frozenset[int] = frozenset(),
        timeout_s: float = 0.0,
    ) -> tuple[BaseHTTPResponse, str]:
        """As :meth:`request`, with a whole URL (an upload's place may be anywhere) and a body; returns the answer and where it came from.

        Statuses of failure that are ``allowed`` are answers as well. ``timeout_s`` is for an answer that takes long.
        """
        for last in (False, True):
            with self._login.lock:
                authorization = self._login.by_scope.get(scope, "")
            sent = {**headers, **({"Authorization": authorization} if authorization else {})}
            response, place, own = self._follow(method, url, sent, what, body, timeout_s)
            # Only the registry itself may ask who we are: a place that it sends us to could name a token service of its own.
            if response.status != HTTPStatus.UNAUTHORIZED or last or not own:
                break
            header = response.headers.get("WWW-Authenticate", "")
            discard(response)
            with self._login.lock:
                if self._login.by_scope.get(scope, "") == authorization:
                    self._login.by_scope[scope] = self._log_in(header, scope)
        if response.status in _GOOD or response.status in allowed:
            return response, place
        try:
            self._refuse(response, what)
        finally:
            discard(response)

    def onward(self, place: str, location: str) -> str:
        """Where an upload goes on that ``place`` answered about. Raises RegistryFailure for an address that may not be followed.

        The registry may name any place that a redirect could; any other place only itself, or the world could lead back into a private network.
        """
        target = follow(place, location)
        if _origin(urlsplit(place)) not in (_origin(self._find_base()), _origin(target)):
            details = f"{urlsplit(place).netloc}, which the registry named, names {target.netloc}"
            raise RegistryFailure("refusing to follow an upload further", details)
        return target.geturl()

    def _follow(
        self, method: str, url: str, headers: dict[str, str], what: str, body: Body | None, timeout_s: float
    ) -> tuple[BaseHTTPResponse, str, bool]:
        """Send a request and go where the answers lead, as far as that is allowed; Authorization stays at the registry.

        Returns the last answer, its address and whether it came from the registry itself.
        """
        origin = _origin(self._find_base())
        least = self._reach
        keeps = _REDIRECTS if method in ("GET", "HEAD") else _KEEPS_METHOD
        for _ in range(_REDIRECT_LIMIT + 1):
            parts = urlsplit(url)
            own = _origin(parts) == origin
            sent = headers if own else {name: value for name, value in headers.items() if name != "Authorization"}
            response = self._send(method, parts, sent, self._reach if own else least, body, timeout_s)
            location = response.headers.get("Location")
            if response.status not in keeps or not location:
                return response, url, own
            discard(response)
            url = follow(url, location).geturl()
            # Each step may only lead further out than the one before.
            least = max(least, self._measure_reach(parts))
        raise RegistryFailure(f"cannot {self._doing} {what}", f"{self.host} redirects more than {_REDIRECT_LIMIT} times")

    def _send(
        self, method: str, parts: SplitResult, headers: Mapping[str, str], least: Reach, body: Body | None = None, timeout_s: float = 0.0
    ) -> BaseHTTPResponse:
        """One exchange with one host. Raises TemporaryFailure, RegistryFailure."""
        from ssl import SSLCertVerificationError

        from urllib3 import ProxyManager
        from urllib3.exceptions import HTTPError, NameResolutionError, SSLError

        host = parts.hostname or ""
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        try:
            pool = self._pool(parts, least)
            # A pool knows its host, a proxy must be told.
            target = parts.geturl() if isinstance(pool, ProxyManager) else (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            data = body() if body is not None else None
            timeout = timeout_s or self._configuration.timeout_s
            return pool.request(
                method, target, body=data, headers=sent, redirect=False, preload_content=False, retries=False, timeout=timeout
            )
        except SSLError as error:
            if isinstance(error.args[0] if error.args else None, SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
                mend = f"name its authority with `ca` in registries.toml, under [registry.{parts.netloc!r}]"
                raise RegistryFailure(f"cannot talk to {parts.netloc} securely", reason(error), mend) from None
            if method in _UPLOADING:
                raise TemporaryFailure(f"{parts.netloc}: {reason(error)}") from None  # a connection that broke while TLS was written to
            mend = f"if it speaks plain http, say `insecure = true` in registries.toml, under [registry.{parts.netloc!r}]"
            raise RegistryFailure(f"cannot talk to {parts.netloc} securely", reason(error), mend if "WRONG_VERSION" in str(error) else "") from None
        except NameResolutionError as error:
            raise RegistryFailure(f"cannot find {host}", reason(error), "check the name and this machine's network") from None
        except (HTTPError, OSError) as error:
            raise TemporaryFailure(f"{parts.netloc}: {reason(error)}") from None
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
                timeout_s, trust = self._configuration.timeout_s, self._trust(parts.netloc)
                self._pools[key] = (
                    connection.make_proxy(proxy, host, least, timeout_s, trust)
                    if proxy
                    else connection.make_pool(*key, timeout_s, trust, self._configuration.stopped)
                )
            return self._pools[key]

    def _trust(self, netloc: str) -> Trust:
        """What makes a host believed: what the user said of it, no more for the places that it sends us to."""
        name = self.host if netloc == self._address else netloc  # docker.io has another address than its name
        trust = self._configuration.trust(name)
        return replace(trust, verify=False) if name in self._configuration.insecure_registries else trust

    def _find_base(self) -> SplitResult:
        """The registry's address: https, or plain http where that is allowed and https does not answer."""
        with self._lock:
            if self._base is None:
                secure = urlsplit(f"https://{self._address}")
                self._reach = self._measure_reach(secure)
                self._base = self._plain_or_secure(secure) if self._plain_allowed else secure
            return self._base

    def _plain_or_secure(self, secure: SplitResult) -> SplitResult:
        """Which of the two speaks: a TLS server that is spoken to plainly answers too, but not as a registry does."""
        probe = secure._replace(path="/v2/")
        try:
            discard(self._send("GET", probe, {}, self._reach))
        except (TemporaryFailure, RegistryFailure) as error:
            with suppress(TemporaryFailure, RegistryFailure):
                response = self._send("GET", probe._replace(scheme="http"), {}, self._reach)
                discard(response)
                if response.status in (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
                    return secure._replace(scheme="http")
            if isinstance(error, TemporaryFailure):
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
                raise AuthenticationFailed(f"{self.host} wants a login", "no credentials are known for it", f"log in with `bulle login {self.host}`")
            return authentication.basic(credentials)
        base = self._find_base().geturl()
        service = follow(base, challenge.realm)
        if credentials and service.scheme == "http" and not (is_loopback_name(service.hostname or "") or _origin(service) == _origin(urlsplit(base))):
            raise AuthenticationFailed(f"cannot log in to {self.host}", "its token service wants the password over plain http")
        method, url, headers, body = authentication.token_request(service, challenge, scope, credentials)

        def attempt() -> bytes:
            response = self._send(method, url, headers, self._reach, body)
            try:
                if response.status in TEMPORARY:
                    raise TemporaryFailure(f"its token service answers {response.status}", retry_after(response))
                if response.status != HTTPStatus.OK:
                    raise AuthenticationFailed(f"cannot log in to {self.host}", f"its token service answers {status_words(response.status)}")
                return b"".join(chunks(response, _TOKEN_LIMIT_BYTES, f"the token of {self.host}"))
            finally:
                discard(response)

        return f"Bearer {authentication.parse_token(self.repeat(attempt, self.host), self.host)}"

    def _refuse(self, response: BaseHTTPResponse, what: str) -> NoReturn:
        """Raise what an error answer means."""
        status = response.status
        words = error_words(response) or status_words(status)
        if status in TEMPORARY:
            raise TemporaryFailure(f"{self.host} answers: {words}", retry_after(response))
        if status == HTTPStatus.NOT_FOUND and self._doing == "fetch":
            raise NotFound(f"no such image: {what}", f"{self.host}: {words}")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            details = f"{self.host}: {words}"
            mend = f"log in with `bulle login {self.host}`"
            mend = mend if self._doing == "push" else f"it may not exist, or a login is needed: {mend}"
            raise AuthenticationFailed(f"no access to {what}", details, mend)
        raise RegistryFailure(f"cannot {self._doing} {what}", f"{self.host} answers: {words}")

    def repeat(self, attempt: Callable[[], _Result], what: str) -> _Result:
        """What ``attempt`` returns, tried again after each TemporaryFailure as often as is configured. Raises RegistryFailure."""
        failures = 0
        while True:
            try:
                return attempt()
            except TemporaryFailure as error:
                failures += 1
                self.wait(error, failures, what)

    def wait(self, error: TemporaryFailure, failures: int, what: str) -> None:
        """Wait before the next attempt, longer each time; RegistryFailure when there were enough."""
        if failures > self._configuration.retries:
            raise RegistryFailure(f"cannot {self._doing} {what}", str(error), "try again later") from None
        self._configuration.progress(Progress("retry", what, failures, self._configuration.retries, str(error)))
        pause_s = self._configuration.backoff_s * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
        self._configuration.stopped.wait(min(max(pause_s, error.after_s), _WAIT_LIMIT_S))
        self._configuration.check_stopped()


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
