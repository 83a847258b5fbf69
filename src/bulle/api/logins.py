"""Logins that come with a request, in its headers: used for that request and kept nowhere."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec

from bulle.api.call import Call
from bulle.api.failures import ApiError

_NO_TOKENS = "identity tokens are not supported: log in with a password"
Document = TypeVar("Document")


class _Login(msgspec.Struct):
    username: str = ""
    password: str = ""
    identitytoken: str = ""


def login_of(call: Call) -> dict[str, str] | None:
    """``X-Registry-Auth``: for the registry that the request is about; None where there is none. Raises ApiError."""
    given = _header(call, "X-Registry-Auth", _Login)
    if given is None or not (given.username or given.identitytoken):
        return None
    if given.identitytoken:
        raise ApiError(501, _NO_TOKENS)
    return {"username": given.username, "password": given.password}


def logins_of(call: Call) -> dict[str, tuple[str, str]]:
    """``X-Registry-Config``: for each registry that a build may need. Those with tokens are left out. Raises ApiError."""
    given = _header(call, "X-Registry-Config", dict[str, _Login]) or {}
    return {server: (one.username, one.password) for server, one in given.items() if one.username and not one.identitytoken}


def _header(call: Call, name: str, kind: type[Document]) -> Document | None:
    text = call.headers.get(name.lower(), "")
    if not text:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) or b"null", type=kind | None)
    except (binascii.Error, msgspec.MsgspecError) as error:
        raise ApiError(400, f"invalid {name} header: {error}") from None
