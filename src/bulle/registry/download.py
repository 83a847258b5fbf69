"""A file of the web as a stream: what ``import URL`` and ADD read. Redirects are followed, certificates verified, nothing is sent but the request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bulle.errors import NotFound, RegistryFailure
from bulle.registry.answers import reason

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_TIMEOUT_S = 30.0


@contextmanager
def download(url: str) -> Iterator[BaseHTTPResponse]:
    """The content behind an http or https address. Raises NotFound, RegistryFailure."""
    import urllib3

    with urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=urllib3.Retry(3, redirect=5)) as pools:
        try:
            response = pools.request("GET", url, preload_content=False, headers={"Accept-Encoding": "identity"})
        except urllib3.exceptions.HTTPError as error:
            raise RegistryFailure(f"{shown(url)} could not be fetched", reason(error), "check the address and the network") from None
        try:
            if response.status == 404:
                raise NotFound(f"{shown(url)} is not there", "the server answered 404", "check the address")
            if response.status != 200:
                raise RegistryFailure(f"{shown(url)} could not be fetched", f"the server answered {response.status}")
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise RegistryFailure(f"{shown(url)} could not be fetched to its end", reason(error), "try again") from None
        finally:
            response.release_conn()
            response.close()


def shown(address: str) -> str:
    """An address without the password that may stand in it."""
    scheme, separator, rest = address.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}" if separator else address
