"""``deb:SUITE[+package,package]``: a Debian (or derived) root made on this machine by mmdebstrap, as an image of one layer.

The packages are verified by apt with the host's keyrings; mmdebstrap does the work. The result is reproducible for one state of the mirror: all times
are at most that of the suite's Release file. What mmdebstrap says becomes progress; what it complains about becomes one sentence. As root or, for an
ordinary user, in a user namespace. mmdebstrap(1).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

from bulle.errors import BulleError, InvalidInput, NotFound, RegistryFailure, StorageFull, Unavailable
from bulle.model.image import ExecutionConfig
from bulle.model.platform import is_native, this_platform
from bulle.model.reference import Reference
from bulle.registry.compression import CHUNK_BYTES
from bulle.registry.generated import DEFAULT_PATH, image_of_layer
from bulle.registry.progress import Progress
from bulle.registry.transport import RemoteImage, Source, SourceRequest

DEFAULT_MIRROR = "http://deb.debian.org/debian"
_SUITE = re.compile(r"[a-z][a-z0-9.-]*(?:/[a-z0-9.-]+)?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?(?:=[A-Za-z0-9.+~:-]+)?")
_ARCHITECTURES = {"386": "i386", "arm": "armhf", "ppc64le": "ppc64el"}
_RELEASE_LIMIT_BYTES = 4 << 20

_NOT_WORTH_SAYING = ("I: removing", "I: running --", "I: using /", "I: skipping", "I: done")

# A service that a package starts during its installation would run in nobody's container; Docker's Debian images have the same file.
_POLICY = """mkdir -p "$1/usr/sbin" && printf '#!/bin/sh\\nexit 101\\n' >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d\""""
_HOST_FILES = """rm -f "$1/etc/resolv.conf" "$1/etc/hostname" && : >"$1/etc/resolv.conf" && : >"$1/etc/hostname\""""
_SIMULATION = 'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet --quiet --simulate --no-install-recommends install'


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to install; ``reference`` is the name that the image gets."""

    suite: str
    packages: tuple[str, ...]
    reference: Reference


def parse_recipe(text: str) -> Recipe:
    """``SUITE[+package,package]``; order and repetition of packages do not matter. Raises InvalidInput."""
    suite, plus, rest = text.partition("+")
    if not _SUITE.fullmatch(suite):
        raise InvalidInput(f"{suite!r} is not the name of a Debian suite", "", "say for example deb:bookworm or deb:bookworm+vim,curl")
    packages = tuple(sorted({name for name in rest.split(",") if name}))
    for name in packages:
        if not _PACKAGE.fullmatch(name):
            raise InvalidInput(f"{name!r} is not the name of a Debian package")
    if plus and not packages:
        raise InvalidInput(f"'deb:{text}' names no package after the +")
    tag = "_".join((suite, *packages))
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", tag)
    if plain != tag or len(plain) > 100:
        # A tag cannot spell every package's name; the digest keeps different recipes apart.
        plain = f"{plain[:100]}-{hashlib.sha256(tag.encode()).hexdigest()[:8]}"
    return Recipe(suite, packages, Reference.parse(f"deb:{plain}"))


class DebianImage(Source):
    """The image of one recipe. Its temporary tar lives until the source is closed."""

    def __init__(self, request: SourceRequest) -> None:
        self._request = request
        self._recipe = parse_recipe(request.text)
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if shutil.which("mmdebstrap") is None:
            raise Unavailable("cannot make a Debian image", "the program mmdebstrap is not installed", "install it: apt-get install mmdebstrap")
        ours, wanted = this_platform(), request.platform
        if (wanted.os, wanted.architecture) != (ours.os, ours.architecture) and wanted.os != "linux":
            raise InvalidInput(f"there is no Debian for {wanted}")

    def close(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def images(self) -> Iterator[RemoteImage]:
        configuration = self._request.configuration
        moment = self._release_time()
        if configuration.temporary is not None:
            configuration.temporary.mkdir(parents=True, exist_ok=True)
        self._directory = tempfile.TemporaryDirectory(prefix="debian-", dir=configuration.temporary, ignore_cleanup_errors=True)
        tar = Path(self._directory.name) / "root.tar"
        self._make(tar, moment)
        recipe = self._recipe
        label = {"org.opencontainers.image.title": f"Debian {recipe.suite}", "bulle.deb.suite": recipe.suite}
        if recipe.packages:
            label["bulle.deb.packages"] = ",".join(recipe.packages)
        yield image_of_layer(
            lambda: _file(tar),
            what=f"deb:{self._request.text}",
            platform=self._request.platform,
            execution=ExecutionConfig(env=(DEFAULT_PATH,), cmd=("bash",), labels=label),
            created=moment,
            created_by=f"mmdebstrap --variant=minbase {recipe.suite} {' '.join(recipe.packages)}".strip(),
            reference=recipe.reference,
            progress=configuration.progress,
        )

    @property
    def _mirror(self) -> str:
        return self._request.configuration.debian_mirror or DEFAULT_MIRROR

    def _command(self, tar: Path, *, as_root: bool) -> list[str]:
        architecture = self._request.platform.architecture
        command = ["mmdebstrap", "--variant=minbase", f"--mode={'root' if as_root else 'unshare'}", "--format=tar"]
        if (architecture, "linux") != (this_platform().architecture, self._request.platform.os):
            # Whether its programs can be run is found out before.
            command += [f"--architectures={_ARCHITECTURES.get(architecture, architecture)}", "--skip=check/qemu"]
        if self._recipe.packages:
            command.append(f"--include={','.join(self._recipe.packages)}")
            # A wrong name is told once there is an index to look in, not after the base system is set up. (apt's words are known to `failure`.)
            command.append(f"--extract-hook={_SIMULATION} {shlex.join(self._recipe.packages)} >/dev/null")
        # Unless it is told to skip that, mmdebstrap takes the policy for its own and removes it at the end.
        command += ["--skip=chroot/policy-rc.d", f"--extract-hook={_POLICY}", f"--customize-hook={_HOST_FILES}", "--", self._recipe.suite, str(tar)]
        if self._request.configuration.debian_mirror:
            command.append(self._request.configuration.debian_mirror)
        return command

    def _make(self, tar: Path, moment: int) -> None:
        """Make the tar. As root, everything lies beside it, so that closing the source removes it all; the users that an ordinary user is given
        for the purpose cannot enter her private directories, so that her root is put together in a public place.
        """
        if os.geteuid() == 0:
            self._run(tar, moment, tar.parent)
            return
        with tempfile.TemporaryDirectory(prefix="bulle-debian-", dir="/var/tmp", ignore_cleanup_errors=True) as public:
            Path(public).chmod(0o711)
            self._run(tar, moment, Path(public))

    def _run(self, tar: Path, moment: int, workplace: Path) -> None:
        """Run mmdebstrap to its end."""
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name.lower().endswith("_proxy")}
        environment |= {"SOURCE_DATE_EPOCH": str(moment), "TMPDIR": str(workplace), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        for place in ("/usr/sbin", "/sbin"):
            environment["PATH"] = f"{environment.get('PATH', '/usr/bin:/bin')}:{place}"
        with self._emulated() as prepare:
            self._follow(self._command(tar, as_root=prepare is not None or os.geteuid() == 0), environment, prepare)

    @contextmanager
    def _emulated(self) -> Iterator[Callable[[], None] | None]:
        """What the child has to do before it becomes mmdebstrap, so that it can run another processor's programs; None where it can already."""
        if is_native(self._request.platform):
            yield None
            return
        from bulle.linux import emulators  # few images are of another processor
        from bulle.linux.emulated_namespace import emulating, join

        emulator = emulators.find(str(self._request.platform))
        if not emulator.entry.interpreter:
            yield None  # the machine's own table has one
            return
        with emulating(emulator) as pidfd:
            yield partial(join, pidfd)

    def _follow(self, command: list[str], environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            preexec_fn=prepare,
        )
        said: deque[str] = deque(maxlen=400)
        finished = False
        try:
            self._listen(process, said)
            finished = process.wait() == 0
        except BaseException:
            _end(process)
            raise
        finally:
            if process.stderr is not None:
                process.stderr.close()
        if not finished:
            raise failure(f"deb:{self._request.text}", self._recipe.suite, list(said))

    def _listen(self, process: subprocess.Popen[bytes], said: deque[str]) -> None:
        """Turn what the program says into steps; only whole sentences of its own are worth showing."""
        if process.stderr is None:
            return
        for raw in process.stderr:
            for line in raw.decode(errors="replace").replace("\r", "\n").splitlines():
                said.append(line.strip())
                if line.startswith("I: ") and not line.startswith(_NOT_WORTH_SAYING):
                    self._request.configuration.progress(Progress("step", f"deb:{self._request.text}", message=line[3:].strip()))

    def _release_time(self) -> int:
        """The date of the suite's Release file in seconds: the newest time in the image. It is not trusted with anything else.

        Raises NotFound where the mirror has no such suite, RegistryFailure where it does not answer.
        """
        fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
        if fixed.isdigit():
            return int(fixed)
        from urllib3 import PoolManager, Timeout
        from urllib3.exceptions import HTTPError

        address = f"{self._mirror.rstrip('/')}/dists/{self._recipe.suite}/Release"
        timeout_s = self._request.configuration.timeout_s
        try:
            with PoolManager(retries=3, timeout=Timeout(connect=timeout_s, read=timeout_s)) as pool:
                response = pool.request("GET", address, preload_content=False)
                try:
                    status, body = response.status, response.read(_RELEASE_LIMIT_BYTES)
                finally:
                    response.release_conn()
        except HTTPError as error:
            raise RegistryFailure(f"cannot reach the Debian mirror {self._mirror}", str(error), "check this machine's network") from None
        if status == 404:
            raise NotFound(f"no Debian suite named {self._recipe.suite!r}", f"{address} does not exist")
        if status != 200:
            raise RegistryFailure(f"the Debian mirror {self._mirror} refuses", f"{address} answers {status}")
        match = re.search(rb"^Date: (.{10,40})$", body, re.MULTILINE)
        with suppress(ValueError):
            if match:
                return max(0, int(parsedate_to_datetime(match[1].decode(errors="replace")).timestamp()))
        raise RegistryFailure(f"the Debian mirror {self._mirror} answered nonsense", f"{address} has no date")


def failure(what: str, suite: str, said: list[str]) -> BulleError:
    """The one sentence of a failed mmdebstrap, from what it printed."""
    complaints = [line.removeprefix("E: ") for line in said if line.startswith("E: ")]
    own = ("mmdebstrap failed", "run_chroot failed", "setup failed", "apt-get update", "exited with")
    reasons = [line for line in complaints if not any(word in line for word in own)] or complaints or [line for line in said if line][-1:]
    text = "\n".join(said)
    missing = re.search(r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation candidate", text)
    if missing:
        name = next(group for group in missing.groups() if group)
        return NotFound(f"no package {name} in Debian {suite}", "", f"look for it on packages.debian.org/{name}")
    if "No space left on device" in text:
        return StorageFull(f"cannot make {what}", "no space left on device", "free some space and try again")
    if re.search(r"Temporary failure resolving|Could not connect|Could not resolve|Failed to fetch|Connection failed", text):
        return RegistryFailure(f"cannot make {what}", reasons[0][:300], "check this machine's network")
    if re.search(r"newuidmap|newgidmap|subuid|unshare|clone failed|user namespace", text):
        return Unavailable(f"cannot make {what} as an ordinary user", reasons[0][:300], "run it as root, or see `bulle doctor`")
    return BulleError(f"cannot make {what}", (reasons[0] if reasons else "mmdebstrap said nothing")[:300])


def _file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _end(process: subprocess.Popen[bytes]) -> None:
    """End an abandoned mmdebstrap: it cleans up on TERM; what does not listen is killed after a while."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
