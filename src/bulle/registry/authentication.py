"""How a client becomes who it is for a registry: the challenge of a 401, and the answer to it.

Distribution specification, "token authentication": the registry names a token service, a service name and a scope; a token is fetched (anonymously,
or with the user's credentials) and sent along from then on. Pure: it parses and composes; ``client`` makes the requests, under the rules of
``destinations``, because the address of the token service comes from outside.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlencode

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


def token_request(
    service: SplitResult, challenge: Challenge, scope: str, credentials: Credentials | None
) -> tuple[str, SplitResult, dict[str, str], Callable[[], bytes] | None]:
    """The request for a token: method, address, headers and body.

    Anonymously or with a password it is a GET; an identity token (what single sign-on leaves behind) is exchanged by POST, as OAuth 2 has it.
    """
    fields = [("service", challenge.service)] if challenge.service else []
    scopes = wanted_scopes(challenge.scope, scope)
    if credentials is not None and credentials.identity_token:
        fields += [("grant_type", "refresh_token"), ("refresh_token", credentials.identity_token), ("client_id", "bulle")]
        form = urlencode([*fields, *([("scope", " ".join(scopes))] if scopes else [])]).encode()
        return "POST", service, {"Content-Type": "application/x-www-form-urlencoded"}, lambda: form
    query = "&".join(part for part in (service.query, urlencode([*fields, *(("scope", one) for one in scopes)])) if part)
    headers = {"Authorization": basic(credentials)} if credentials else {}
    return "GET", service._replace(query=query), headers, None


def wanted_scopes(challenged: str, ours: str) -> list[str]:
    """What a token is asked for: what the challenge names (a mirror may call things otherwise), and what we are going to push as well."""
    actions: dict[str, list[str]] = {}
    for one in (challenged or ours).split() + (ours.split() if "push" in ours else []):
        resource, _, verbs = one.rpartition(":")
        known = actions.setdefault(resource, [])
        known += [verb for verb in verbs.split(",") if verb not in known]
    return [f"{resource}:{','.join(sorted(verbs))}" for resource, verbs in actions.items()]  # registries name them in any order


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
