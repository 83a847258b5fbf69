"""Other programs and what they make, as fixtures: images to read, a registry and a dockerd of our own to compare with.

Every service lives in this run's directory, listens on a socket or loopback port of its own, and is ended by its pid at the end of the session.
Costly files (a Debian root) are kept in the cache of :func:`bulle_testing.places.cache_directory`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulle_testing import leaks, places, tiers

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534::/:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
tty:x:5:
audio:x:29:www-data
www-data:x:33:
nogroup:x:65534:
"""
REGISTRY_SETTINGS = """version: 0.1
storage:
  filesystem:
    rootdirectory: {directory}/data
  delete:
    enabled: true
http:
  addr: 127.0.0.1:{port}
"""
DIRECTORIES = ("bin", "sbin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var/log", "var/tmp", "opt", "mnt")


def static_busybox() -> str:
    """The statically linked busybox of Debian's busybox-static; a test that needs it does not run without."""
    tiers.need("busybox")
    path = tiers.program("busybox")
    assert path is not None
    if b"/ld-linux" in Path(path).read_bytes()[:8192]:
        tiers.give_up("programs", "the installed busybox is not static: Debian's package busybox-static is needed (`make packages` as root)")
    return path


def make_busybox_rootfs(target: Path) -> None:
    """Fill a directory with a small root: every applet of busybox, users and groups."""
    busybox = static_busybox()
    for name in DIRECTORIES:
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (target / name).chmod(0o1777)
    shutil.copy(busybox, target / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (target / "bin" / applet).symlink_to("busybox")
    for name in ("env", "id", "head", "tail", "sort", "wc", "tr", "stat", "timeout"):
        (target / "usr/bin" / name).symlink_to("../../bin/busybox")
    (target / "etc/passwd").write_text(PASSWD)
    (target / "etc/group").write_text(GROUP)
    (target / "etc/os-release").write_text('ID=busybox\nPRETTY_NAME="busybox for tests"\n')


def pack(directory: Path, *, epoch_s: int = 1_700_000_000) -> bytes:
    """A directory as a layer: an uncompressed tar with sorted names, owned by root, the same bytes every time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            member = archive.gettarinfo(path, arcname=str(path.relative_to(directory)))
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = epoch_s
            with path.open("rb") if member.isreg() else io.BytesIO() as content:
                archive.addfile(member, content if member.isreg() else None)
    return out.getvalue()


def docker_archive(
    target: Path, layers: list[bytes], *, tags: list[str], config: dict[str, object] | None = None, platform: dict[str, str] | None = None
) -> str:
    """Write what ``docker save`` would: the given tars as layers. Returns the image's id (the digest of its configuration).

    ``platform`` replaces this machine's os, architecture and variant.
    """
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    whole = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        **(platform or {}),
        "created": "2023-11-14T22:13:20Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": f"layer {number}"} for number in range(len(layers))],
    }
    raw = json.dumps(whole).encode()
    config_digest = hashlib.sha256(raw).hexdigest()
    manifest = [{"Config": f"{config_digest}.json", "RepoTags": tags, "Layers": [f"{digest}/layer.tar" for digest in digests]}]
    files = {f"{config_digest}.json": raw, **{f"{d}/layer.tar": layer for d, layer in zip(digests, layers, strict=True)}}
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(target, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"sha256:{config_digest}"


@pytest.fixture(scope="session")
def busybox_rootfs(run_directory: Path) -> Path:
    """A root directory of busybox; read-only for tests (copy it to change it)."""
    target = run_directory / "busybox-rootfs"
    target.mkdir()
    make_busybox_rootfs(target)
    return target


@pytest.fixture(scope="session")
def busybox_image(run_directory: Path, busybox_rootfs: Path) -> Path:
    """A docker-archive of busybox, tagged ``busybox:latest``, one layer, made without any other program."""
    target = run_directory / "busybox.tar"
    docker_archive(target, [pack(busybox_rootfs)], tags=["busybox:latest"])
    return target


@pytest.fixture(scope="session")
def busybox_layout(run_directory: Path, busybox_rootfs: Path) -> Path:
    """An OCI layout made by umoci: ``v1`` has one gzip layer, ``v2`` a second that deletes ``/del`` and changes the owner of ``/opt``."""
    tiers.need("umoci")
    umoci = str(tiers.program("umoci"))
    layout, bundle = run_directory / "busybox-layout", run_directory / "busybox-bundle"
    rootless = [] if tiers.root_missing() == "" else ["--rootless"]
    run = functools.partial(subprocess.run, check=True, capture_output=True)
    run([umoci, "init", "--layout", str(layout)])
    run([umoci, "new", "--image", f"{layout}:v1"])
    run([umoci, "unpack", *rootless, "--image", f"{layout}:v1", str(bundle)])
    shutil.copytree(busybox_rootfs, bundle / "rootfs", symlinks=True, dirs_exist_ok=True)
    (bundle / "rootfs/del").mkdir()
    (bundle / "rootfs/del/file").write_text("1")
    run([umoci, "repack", "--image", f"{layout}:v1", str(bundle)])
    run([umoci, "config", "--image", f"{layout}:v1", "--config.cmd", "/bin/sh", "--config.env", "PATH=/bin:/sbin:/usr/bin", "--config.label", "a=b"])
    places.remove_tree(bundle)
    run([umoci, "unpack", *rootless, "--image", f"{layout}:v1", str(bundle)])
    shutil.rmtree(bundle / "rootfs/del")
    if not rootless:
        os.chown(bundle / "rootfs/opt", 5, 6)
    run([umoci, "repack", "--image", f"{layout}:v2", str(bundle)])
    places.remove_tree(bundle)
    return layout


@functools.cache
def debian_root(suite: str = "bookworm", packages: tuple[str, ...] = ()) -> Path:
    """The tar of a minimal Debian root with these packages, made once by mmdebstrap and kept in the cache; a test that needs it names its tiers."""
    name = hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()[:12] if packages else "minimal"
    target = places.cache_directory() / f"debian-{suite}-{name}.tar"
    with one_at_a_time():
        if not target.exists():
            make_debian_root(target, suite, packages)
    return target


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let no other test process make something for the cache: it may be the same thing."""
    directory = os.open(places.cache_directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def make_debian_root(target: Path, suite: str, packages: tuple[str, ...]) -> None:
    """Make such a tar, which appears when it is whole."""
    tiers.need("mmdebstrap")
    if cause := tiers.debian_mirror_missing():
        tiers.give_up("debian_mirror", cause)
    part = target.with_suffix(f".{os.getpid()}.tar")
    mode = "root" if tiers.root_missing() == "" else "unshare"
    command = ["mmdebstrap", f"--mode={mode}", "--variant=minbase", "--quiet"]
    command += [f"--include={','.join(packages)}"] if packages else []
    try:
        environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000", "PATH": tiers.SEARCH_PATH}
        done = subprocess.run([*command, suite, str(part)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """The tar of a minimal Debian 12 root."""
    return debian_root()


@pytest.fixture(scope="session")
def debian_tar_with() -> Callable[..., Path]:
    """``debian_tar_with("nginx")``: the tar of a minimal Debian 12 root with these packages."""
    return lambda *packages: debian_root("bookworm", packages)


@pytest.fixture(scope="session")
def installation(run_directory: Path) -> Path:
    """A virtual environment where every user may look, with Bulle installed from this checkout as ``pip install .`` does it, not as a link to it."""
    if cause := tiers.package_index_missing():
        tiers.give_up("package_index", cause)
    target = run_directory / "installed"
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True, capture_output=True)
    done = subprocess.run([str(target / "bin/pip"), "install", "--quiet", str(places.SOURCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def service(command: list[str], log: Path, ready: Callable[[], bool], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the block lasts; it is ready when ``ready`` says so, and ended by its pid."""
    if setpriv := tiers.program("setpriv"):
        # So that it ends with this run even when this run is killed.
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not become ready (exit code {process.returncode}):\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Registry:
    """Debian's docker-registry on a port of 127.0.0.1, without authentication."""

    port: int
    directory: Path

    @property
    def address(self) -> str:
        """What stands before the slash of a reference."""
        return f"127.0.0.1:{self.port}"

    def push(self, source: str, repository: str, *options: str) -> None:
        """Copy an image (a transport of skopeo's, such as ``oci:DIR:TAG``) into this registry."""
        tiers.need("skopeo")
        command = [str(tiers.program("skopeo")), "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *options]
        subprocess.run([*command, source, f"docker://{self.address}/{repository}"], check=True, capture_output=True)


def http_answers(url: str) -> bool:
    """Whether something speaks HTTP there."""
    with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


@pytest.fixture(scope="session")
def registry(run_directory: Path) -> Iterator[Registry]:
    """A private registry for this session."""
    tiers.need("docker-registry")
    directory = run_directory / "registry"
    leaks.session_places.add(str(directory))
    with private_registry(directory) as registry:
        yield registry


@contextmanager
def private_registry(directory: Path) -> Iterator[Registry]:
    """A registry with everything below ``directory``, for as long as the block lasts."""
    directory.mkdir()
    port = free_port()
    settings = directory / "config.yml"
    settings.write_text(REGISTRY_SETTINGS.format(directory=directory, port=port))
    command = [str(tiers.program("docker-registry")), "serve", str(settings)]
    with service(command, directory / "log", lambda: http_answers(f"http://127.0.0.1:{port}/v2/")):
        yield Registry(port, directory)


@dataclass(frozen=True)
class Docker:
    """A private dockerd, without bridge and firewall rules, and its command."""

    socket_path: Path

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the docker command against it."""
        command = [str(tiers.program("docker")), "--host", f"unix://{self.socket_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
        if check:
            assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout} {done.stderr}"
        return done


@contextmanager
def private_docker(directory: Path, enter: Sequence[str] = (), *, networks: bool = False) -> Iterator[Docker]:
    """A dockerd with everything below ``directory``, for as long as the block lasts. Needs root.

    With ``networks`` it makes its bridge and firewall rules: only in a network namespace of its own, in which ``enter`` is a command that starts it.
    """
    directory.mkdir()
    docker = Docker(directory / "docker.sock")
    command = [str(tiers.program("dockerd")), "--host", f"unix://{docker.socket_path}", "--data-root", f"{directory}/data"]
    command += ["--exec-root", f"{directory}/exec", "--pidfile", f"{directory}/pid", "--config-file", f"{directory}/daemon.json"]
    command += [] if networks or enter else ["--iptables=false", "--ip6tables=false", "--bridge=none"]
    command = [*enter, *command, "--storage-driver=overlay2", "--log-level=warn"]
    (directory / "daemon.json").write_text("{}")
    environment = os.environ | {"PATH": tiers.SEARCH_PATH}
    try:
        with service(command, directory / "log", lambda: docker("version", check=False).returncode == 0, environment):
            try:
                yield docker
            finally:
                names = docker("ps", "-aq", check=False).stdout.split()
                if names:
                    docker("rm", "-f", *names, check=False)
    finally:
        places.remove_tree(directory)


@pytest.fixture(scope="session")
def dockerd(run_directory: Path) -> Iterator[Docker]:
    """A private dockerd for this session, to compare with: ``dockerd("run", "--rm", "--network", "none", image, ...)``."""
    tiers.need("dockerd", "docker", "containerd", "runc")
    if cause := tiers.root_missing():
        tiers.give_up("root", cause)
    directory = run_directory / "docker"
    leaks.session_places.add(str(directory))
    with private_docker(directory) as docker:
        yield docker
