"""urllib3 connections that open only to addresses that were checked a moment before, and the pools of them.

``client`` asks for a pool per (scheme, host, port, least reach); everything that leaves this room goes through such a connection, so the rules of
``destinations`` cannot be forgotten. Proxies are honoured as curl does (HTTPS_PROXY, NO_PROXY); behind one, names are resolved by the proxy.
"""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from bulle.errors import InvalidInput
from bulle.registry.destinations import Reach, judge, reach, resolve
from bulle.registry.transport import Stop, Trust


class _Checked:
    """The part of a connection that opens the socket: resolves, checks every address, connects to one that was checked."""

    least = Reach.LOOPBACK
    reached: Reach | None = None
    stop: Stop | None = None
    sock: socket.socket | None
    host: str
    port: int
    timeout: float | None

    def connect(self) -> None:
        """Connect, and let the connection break when the transfer is given up."""
        super().connect()  # type: ignore[misc]  # the other parent has it
        if self.stop is not None and self.sock is not None:
            self.stop.watch(self.sock)

    def _new_conn(self) -> socket.socket:
        last: OSError | None = None
        host = self.host.strip("[]")
        for address, family, distance in resolve(host, self.port, self.least):
            connection = socket.socket(socket.AddressFamily(family), socket.SOCK_STREAM)
            try:
                connection.settimeout(self.timeout if isinstance(self.timeout, (int, float)) else None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect((address, self.port))
            except OSError as error:
                connection.close()
                last = error
                continue
            self.reached = distance
            return connection
        raise NewConnectionError(self, last.strerror or str(last) if last else "no address") from last  # type: ignore[arg-type]


class _CheckedHttp(_Checked, HTTPConnection):
    pass


class _CheckedHttps(_Checked, HTTPSConnection):
    pass


class _Unverified(HTTPSConnectionPool):
    """A pool for a host that the user called insecure: urllib3 would warn of it at every request."""

    def _validate_conn(self, conn: HTTPSConnection) -> None:  # type: ignore[override]
        if conn.is_closed:
            conn.connect()


def make_pool(scheme: str, host: str, port: int, least: Reach, timeout_s: float, trust: Trust, stop: Stop) -> HTTPConnectionPool:
    """A pool of checked connections to one host; certificates are verified as ``trust`` says, and ``stop`` breaks them. Raises InvalidInput."""
    pool: HTTPConnectionPool
    timeout = Timeout(connect=timeout_s, read=timeout_s)
    name = "CheckedConnection"
    if scheme == "https":
        kind = HTTPSConnectionPool if trust.verify else _Unverified
        pool = kind(host, port, timeout=timeout, maxsize=4, retries=False, **_tls(trust))
        pool.ConnectionCls = type(name, (_CheckedHttps,), {"least": least, "stop": stop})
    else:
        pool = HTTPConnectionPool(host, port, timeout=timeout, maxsize=4, retries=False)
        pool.ConnectionCls = type(name, (_CheckedHttp,), {"least": least, "stop": stop})
    return pool


def _tls(trust: Trust) -> dict[str, Any]:
    """What urllib3 is told of TLS; nothing where its own choice is right."""
    if trust == Trust():
        return {}
    import ssl

    context = ssl.create_default_context()
    for path in trust.authorities:
        try:
            context.load_verify_locations(path)
        except OSError as error:  # an SSLError is one
            mend = "it must be a PEM file of certificates"
            raise InvalidInput(f"the authority {path} cannot be used", error.strerror or str(error), mend) from None
    if trust.client is not None:
        try:
            context.load_cert_chain(*trust.client)
        except OSError as error:
            raise InvalidInput(f"the client certificate {trust.client[0]} cannot be used", error.strerror or str(error)) from None
    if trust.verify:
        return {"ssl_context": context}
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return {"ssl_context": context, "cert_reqs": "CERT_NONE", "assert_hostname": False}


def proxy_for(scheme: str, host: str) -> str:
    """The address of the proxy that the environment names for this host; "" for none. This machine is never reached through one."""
    with contextlib.suppress(ValueError):
        if reach(host.strip("[]")) is Reach.LOOPBACK:
            return ""
    if host == "localhost" or urllib.request.proxy_bypass(host):
        return ""
    proxy = urllib.request.getproxies().get(scheme, "")
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def make_proxy(proxy: str, host: str, least: Reach, timeout_s: float, trust: Trust) -> ProxyManager:
    """Requests through a proxy. Only an address that is spelled out can be judged here. Raises RegistryFailure."""
    with contextlib.suppress(ValueError):
        judge(host, host.strip("[]"), least)
    return ProxyManager(proxy, timeout=Timeout(connect=timeout_s, read=timeout_s), retries=False, **_tls(trust))


def close_pool(pool: HTTPConnectionPool | ProxyManager) -> None:
    """Close the connections of either."""
    if isinstance(pool, ProxyManager):
        pool.clear()
    else:
        pool.close()
