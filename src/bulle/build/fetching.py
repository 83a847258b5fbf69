"""What a build fetches from elsewhere: files by http, repositories by git. Named by the user, so any address is allowed; what comes is bounded.

git(1) does its part with no prompt, no hooks and none but network protocols; a subdirectory is found below the checkout and nowhere else.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bulle.errors import BulleError, CorruptImage, InvalidInput, NotFound, Unavailable
from bulle.linux.process import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from bulle.registry.download import download as opened
from bulle.registry.download import shown
from bulle.store.failures import storage_errors

_CHUNK_BYTES = 1 << 20
_MOST_BYTES = 64 << 30
_GIT_PREFIXES = ("git://", "git@", "ssh://", "github.com/")
_GIT_SETTINGS = ("core.hooksPath=/dev/null", "protocol.file.allow=never", "protocol.ext.allow=never", "advice.detachedHead=false")
_GIT_KEPT = ("GIT_SSH", "GIT_SSL_", "GIT_ASKPASS", "GIT_PROXY", "GIT_CONFIG_GLOBAL")
_SCP_LIKE = re.compile(r"[\w.-]+@[\w.-]+:.+")


@dataclass(frozen=True, slots=True)
class Download:
    """A file that came by http: where it is now (host path), what it is called, its digest (``sha256:…``), and when it was changed (0: unknown)."""

    path: Path
    name: str
    digest: str
    modified_ns: int


@dataclass(frozen=True, slots=True)
class GitReference:
    """``address#reference:subdirectory``."""

    address: str
    reference: str
    subdirectory: str


def is_http(text: str) -> bool:
    """Whether a source or context is fetched by http."""
    return text.startswith(("http://", "https://"))


def git_reference(text: str) -> GitReference | None:
    """The repository that a text means, None where it means none. As in Docker, an http address is one when its path ends in ``.git``."""
    address, _, fragment = text.partition("#")
    path = urlsplit(address).path if is_http(address) else ""
    if not (path.endswith(".git") or address.startswith(_GIT_PREFIXES) or _SCP_LIKE.fullmatch(address)):
        return None
    reference, _, subdirectory = fragment.partition(":")
    if reference.startswith("-") or subdirectory.startswith("-"):
        raise InvalidInput(f"{text!r} is no git address", "a reference does not begin with a dash")
    return GitReference(f"https://{address}" if address.startswith("github.com/") else address, reference, subdirectory)


def download(address: str, directory: Path, progress: Callable[[str], None]) -> Download:
    """Fetch a file into an empty host directory. Raises RegistryFailure, NotFound, StorageFull."""
    target = directory / "download"
    checksum = hashlib.sha256()
    progress(f"downloading {shown(address)}")
    with opened(address) as response, storage_errors(f"{shown(address)} could not be stored"), target.open("xb") as out:
        while chunk := response.read(_CHUNK_BYTES):
            checksum.update(chunk)
            out.write(chunk)
            if out.tell() > _MOST_BYTES:
                raise CorruptImage(f"{shown(address)} is refused", f"it has more than {_MOST_BYTES} bytes")
        changed = response.headers.get("Last-Modified", "")
    try:
        modified_s = int(email.utils.parsedate_to_datetime(changed).timestamp()) if changed else 0
    except ValueError:
        modified_s = 0
    name = unquote(urlsplit(address).path.rstrip("/").rpartition("/")[2])
    return Download(target, name, f"sha256:{checksum.hexdigest()}", modified_s * 1_000_000_000)


def check(found: Download, expected: str, where: str) -> None:
    """Raise CorruptImage unless the file is what ``--checksum`` says."""
    algorithm, _, digits = expected.partition(":")
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise InvalidInput(f"{where}: --checksum={expected} is no digest", "", "write sha256: and hexadecimal digits")
    with found.path.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != digits.lower():
        raise CorruptImage(f"{where}: the download is not what was expected", f"its digest is {algorithm}:{actual} instead of {expected}")


def checkout(wanted: GitReference, directory: Path, progress: Callable[[str], None], *, keep_git: bool) -> tuple[Path, str]:
    """Check a repository out into an empty host directory; returns the directory that was asked for and the commit."""
    if shutil.which("git") is None:
        raise Unavailable(f"{shown(wanted.address)} cannot be fetched", "there is no git on this machine", "install git")
    progress(f"fetching {shown(wanted.address)}{f'#{wanted.reference}' if wanted.reference else ''}")
    work = directory / "checkout"
    work.mkdir()

    def git(*words: str) -> str:
        settings = [word for setting in _GIT_SETTINGS for word in ("-c", setting)]
        # The caller may stand in a repository of her own (hooks set GIT_DIR): it is not meant.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(_GIT_KEPT)}
        environment = {**kept, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
        line = ["git", *settings, *words]
        done = subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            words_of_git = done.stderr.replace(wanted.address, shown(wanted.address)).strip().splitlines()
            details = words_of_git[-1][:200] if words_of_git else "git failed"
            raise BulleError(f"{shown(wanted.address)} cannot be checked out", details, "check the address")
        return done.stdout.strip()

    git("init", "-q")
    git("fetch", "-q", "--depth", "1", "--", wanted.address, wanted.reference or "HEAD")
    git("checkout", "-q", "FETCH_HEAD")
    if (work / ".gitmodules").is_file():
        git("submodule", "update", "-q", "--init", "--recursive", "--depth", "1")
    commit = git("rev-parse", "HEAD")
    if not keep_git:
        for place in [work / ".git", *work.rglob(".git")]:
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
    return _inside(work, wanted), commit


def _inside(work: Path, wanted: GitReference) -> Path:
    """The subdirectory, resolved below the checkout: a symlink of the repository leads nowhere else."""
    root = os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = openat2(root, wanted.subdirectory.strip("/") or ".", os.O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        try:
            return Path(os.readlink(f"/proc/self/fd/{found}"))
        finally:
            os.close(found)
    except OSError as error:
        details = os.strerror(error.errno or 0)
        raise NotFound(f"{shown(wanted.address)} has no directory {wanted.subdirectory!r}", details, "check what follows the colon") from None
    finally:
        os.close(root)
