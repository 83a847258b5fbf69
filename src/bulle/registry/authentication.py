"""How a client becomes who it is for a registry: the challenge of a 401, and the answer to it.

Distribution specification, "token authentication": the registry names a token service, a service name and a scope; a token is fetched (anonymously,
or with the user's credentials) and sent along from then on. Pure: it parses and composes; ``client`` makes the requests, under the rules of
``destinations``, because the address of the token service comes from outside.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec

from bulle.errors import AuthenticationFailed
from bulle.registry.transport import Credentials

_PARAMETER = re.compile(r'([a-zA-Z][a-zA-Z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry wants: ``basic`` or ``bearer`` with the address of the token service."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def parse_challenge(header: str, registry: str) -> Challenge:
    """The challenge in a WWW-Authenticate header. Raises AuthenticationFailed for one that cannot be answered."""
    scheme, _, rest = header.strip().partition(" ")
    values = {name.lower(): (quoted or plain) for name, quoted, plain in _PARAMETER.findall(rest[:8192])}
    if scheme.lower() == "basic":
        return Challenge("basic")
    if scheme.lower() == "bearer" and values.get("realm"):
        return Challenge("bearer", values["realm"], values.get("service", ""), values.get("scope", ""))
    raise AuthenticationFailed(f"{registry} wants a login of a kind that is not known here", repr(header[:100]))


def token_query(challenge: Challenge, scope: str) -> str:
    """The query string for the token service; ``scope`` is used where the challenge names none."""
    fields = [("service", challenge.service)] if challenge.service else []
    fields += [("scope", part) for part in (challenge.scope or scope).split(" ") if part]
    return urlencode(fields)


def parse_token(body: bytes, registry: str) -> str:
    """The token in a token service's answer. Raises AuthenticationFailed."""
    try:
        answer = msgspec.json.decode(body, type=_TokenAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AuthenticationFailed(f"cannot log in to {registry}", "its token service answered nonsense") from None
    token = answer.token or answer.access_token
    if not _TOKEN.fullmatch(token):
        raise AuthenticationFailed(f"cannot log in to {registry}", "its token service gave no usable token")
    return token


def basic(credentials: Credentials) -> str:
    """The Authorization header of a user name and password."""
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
