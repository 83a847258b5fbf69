"""Logins as Docker and podman keep them: ``config.json`` and ``auth.json``, and the programs ``docker-credential-*`` that keep secrets elsewhere.

``client`` asks for a login when a registry wants one, never before. Read from the first file that knows the registry: Docker's, then podman's;
written where Docker writes. A secret is spoken to a program on its standard input, never as an argument, and stands in no message.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bulle.errors import AuthenticationFailed, BulleError, InvalidInput, StorageFull
from bulle.registry.transport import Credentials

DOCKER_HUB = "https://index.docker.io/v1/"
"""Under which name Docker keeps the login of docker.io."""

_TOKEN_USER = "<token>"
_HELPER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HELPER_TIMEOUT_S = 120.0
_LIMIT_BYTES = 4 << 20
_NOT_FOUND = "credentials not found"


def server_key(host: str) -> str:
    """How Docker calls a registry in its file."""
    return DOCKER_HUB if host == "docker.io" else host


def server_name(text: str) -> str:
    """The registry's host that a user means by an address: ``https://registry.example/v1/`` is ``registry.example``. Raises InvalidInput."""
    host = re.sub(r"^https?://", "", text.strip()).partition("/")[0]
    if not host:
        return "docker.io"
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host):
        raise InvalidInput(f"{text!r} is not a registry", "expected a host, with its port if there is one")
    return "docker.io" if host in ("docker.io", "index.docker.io", "registry-1.docker.io") else host


def docker_file() -> Path:
    """Docker's file of this user (host path)."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def files() -> tuple[Path, ...]:
    """The files that may know a login, in the order in which they are asked (host paths)."""
    named, runtime, user = os.environ.get("REGISTRY_AUTH_FILE"), os.environ.get("XDG_RUNTIME_DIR"), os.geteuid()
    if not runtime and not user:
        return docker_file(), Path(named or "/run/containers/0/auth.json")
    return docker_file(), Path(named or f"{runtime or f'/run/user/{user}'}/containers/auth.json")


def find(host: str) -> Credentials | None:
    """The login for a registry, None where there is none. Raises InvalidInput (a file that is no JSON), AuthenticationFailed (a failed helper)."""
    for path in files():
        found = find_in(_read(path), host, path)
        if found is not None:
            return found
    return None


def find_in(document: dict[str, Any], host: str, path: Path) -> Credentials | None:
    """The login that one file's document has for a registry."""
    key = server_key(host)
    helper = _helper_of(document, host)
    if helper:
        found = _ask_helper(helper, key)
        if found is not None:
            return found
    entries = document.get("auths")
    if not isinstance(entries, dict):
        return None
    for name in (key, host, *(name for name in entries if _same_host(name, host))):
        entry = entries.get(name)
        if isinstance(entry, dict):
            found = _from_entry(entry, name, path)
            if found is not None:
                return found
    return None


def _helper_of(document: dict[str, Any], host: str) -> str:
    """The name of the program that keeps this registry's login, "" for none."""
    helpers = document.get("credHelpers")
    named = (helpers.get(host) or helpers.get(server_key(host)) if isinstance(helpers, dict) else "") or document.get("credsStore")
    return named if isinstance(named, str) else ""


def _same_host(name: str, host: str) -> bool:
    with suppress(InvalidInput):
        # A key with a path is podman's login for a part of a registry, except for Docker's own two.
        rest = re.sub(r"^https?://", "", name).partition("/")[2].strip("/")
        return rest in ("", "v1", "v2") and server_name(name) == host
    return False


def _from_entry(entry: dict[str, Any], name: str, path: Path) -> Credentials | None:
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    encoded = entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            user, colon, password = base64.b64decode(encoded, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            details = f"auths.{name!r}.auth is not base64 of USER:PASSWORD"
            raise InvalidInput(f"{path} cannot be used", details, f"log in anew with `bulle login {name}`")
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(user, "", token)
    return Credentials(user, password) if user else None


def store(host: str, credentials: Credentials) -> Path:
    """Keep a login; returns the file. Raises AuthenticationFailed (a failed helper), InvalidInput, StorageFull."""
    path, key = docker_file(), server_key(host)
    with _changing(path) as document:
        entries = document.setdefault("auths", {})
        helper = _helper_of(document, host)
        if helper:
            secret = credentials.identity_token or credentials.password
            user = _TOKEN_USER if credentials.identity_token else credentials.username
            _run_helper(helper, "store", json.dumps({"ServerURL": key, "Username": user, "Secret": secret}))
            entries[key] = {}
        else:
            entry = {"auth": base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()}
            entries[key] = entry | ({"identitytoken": credentials.identity_token} if credentials.identity_token else {})
    return path


def is_kept_by_helper(host: str) -> bool:
    """Whether a program keeps this registry's secret, and not the file itself."""
    return bool(_helper_of(_read(docker_file()), host))


def erase(host: str) -> bool:
    """Forget a login, in every file that may be read; False where there was none."""
    found = False
    for path in files():
        document = _read(path)
        helper = _helper_of(document, host)
        if helper and _ask_helper(helper, server_key(host)) is not None:
            _run_helper(helper, "erase", server_key(host))
            found = True
        entries = document.get("auths")
        if not isinstance(entries, dict) or not any(name == server_key(host) or _same_host(name, host) for name in entries):
            continue
        with _changing(path) as changed:
            kept = {name: entry for name, entry in changed.get("auths", {}).items() if name != server_key(host) and not _same_host(name, host)}
            changed["auths"] = kept
        found = True
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        if path == files()[1] and "REGISTRY_AUTH_FILE" not in os.environ:
            return {}  # a place that was only looked at in case there is something
        raise InvalidInput(f"cannot read {path}", error.strerror or str(error), "it belongs to somebody else: correct its owner") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", error.strerror or str(error)) from None
    if not raw.strip():
        return {}
    try:
        document = json.loads(raw) if len(raw) <= _LIMIT_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidInput(f"{path} cannot be used", "it is not a JSON object", "mend it, or move it aside and log in anew")
    return document


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """The document of a file, written back in one step with everything else that it had; another writer waits."""
    try:
        path = path.resolve()  # a link stays one
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = _read(path)
            yield document
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(document, file, indent="\t")
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        finally:
            os.close(lock)
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else BulleError
        raise kind(f"cannot write {path}", error.strerror or str(error)) from None


def _ask_helper(helper: str, server: str) -> Credentials | None:
    answer = _run_helper(helper, "get", server)
    if answer is None:
        return None
    try:
        document = json.loads(answer)
        user, secret = str(document["Username"]), str(document["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AuthenticationFailed(f"the credential helper {helper} cannot be used", "it answered nonsense") from None
    return Credentials(user, "", secret) if user == _TOKEN_USER else Credentials(user, secret)


def _run_helper(helper: str, action: str, words: str) -> str | None:
    """One conversation with docker-credential-HELPER; None where it has nothing. What it prints is never shown: it may be the secret."""
    brief = f"the credential helper {helper[:64]} cannot be used"
    program = shutil.which(f"docker-credential-{helper}") if _HELPER.fullmatch(helper) else None
    if program is None:
        raise AuthenticationFailed(brief, f"there is no program docker-credential-{helper[:64]} in PATH", "install it, or correct config.json")
    try:
        done = subprocess.run([program, action], input=words, capture_output=True, text=True, timeout=_HELPER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        why = "it gave no answer" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        raise AuthenticationFailed(brief, why) from None
    if done.returncode == 0:
        return done.stdout
    if _NOT_FOUND in done.stdout + done.stderr:
        return None
    raise AuthenticationFailed(brief, f"it ended with exit code {done.returncode} when it was to {action} a login")
