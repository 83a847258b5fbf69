"""Where the server listens: unix sockets, TCP with TLS and certificates of clients, or what systemd hands over.

A unix socket is 0660: whoever may write to it is root of the machine's containers. sd_listen_fds(3)
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bulle.errors import Conflict, InvalidInput, NotFound, Unavailable

SOCKET_NAME = "docker.sock"
_FIRST_HANDED_OVER = 3

Listener = tuple[socket.socket, ssl.SSLContext | None]


@dataclass(frozen=True)
class Certificates:
    """Host paths: of the authority that signs clients' certificates, and of the server's own certificate and key."""

    authority: Path
    certificate: Path
    key: Path


def default_path() -> Path:
    """Where the socket is if nobody says otherwise: /run/bulle for root, the user's runtime directory for others. Raises Unavailable."""
    if os.geteuid() == 0:
        return Path("/run/bulle") / SOCKET_NAME
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise Unavailable("there is no place for the socket", "XDG_RUNTIME_DIR is not set", "say where with --host unix:///PATH")
    return Path(runtime) / "bulle" / SOCKET_NAME


def handed_over(environment: Mapping[str, str]) -> list[Listener]:
    """The sockets that systemd opened for this process; none where it did not."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    found: list[Listener] = []
    for number in range(_FIRST_HANDED_OVER, _FIRST_HANDED_OVER + int(count)):
        os.set_inheritable(number, False)
        listener = socket.socket(fileno=number)
        if listener.family != socket.AF_UNIX:
            raise InvalidInput("systemd handed over a socket that is no unix socket", "it would be open to everybody", "use ListenStream=/PATH")
        found.append((listener, None))
    return found


def open_listener(address: str, group: str = "", certificates: Certificates | None = None) -> Listener:
    """Listen at ``unix:///PATH`` or ``tcp://ADDRESS:PORT``. Raises InvalidInput, Conflict, Unavailable."""
    kind, separator, place = address.partition("://")
    if separator and kind == "unix" and place.startswith("/"):
        return _unix(Path(place), group), None
    if separator and kind == "tcp":
        if certificates is None:
            why = "whoever reaches it would be root of this machine"
            raise InvalidInput(f"{address} is not served without TLS", why, "give --tlscacert, --tlscert and --tlskey, or use a unix socket")
        return _tcp(place, address), _context(certificates)
    raise InvalidInput(f"invalid address {address!r}", "", "write unix:///PATH or tcp://ADDRESS:PORT")


def _unix(path: Path, group: str) -> socket.socket:
    owner = _group_id(group) if group else -1
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_living(path)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary.name, dir_fd=directory)
            # Nobody else gets in between the two steps; by descriptor, because a path to a socket has 108 bytes at most.
            before = os.umask(0o177)
            try:
                listener.bind(f"/proc/self/fd/{directory}/{temporary.name}")
            finally:
                os.umask(before)
            if owner >= 0:
                os.chown(temporary.name, -1, owner, dir_fd=directory)
            os.chmod(temporary.name, 0o660, dir_fd=directory)
            os.rename(temporary.name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)
        listener.listen(512)
    except BaseException as error:
        listener.close()
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise Unavailable(f"the socket {path} cannot be made", error.strerror or str(error), "say where with --host") from error
        raise
    return listener


def _refuse_living(path: Path) -> None:
    """A socket on which somebody listens is left alone, as is what is no socket at all."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise Conflict(f"{path} is there already", "it is no socket", "choose another path with --host")
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError:
            return  # of a server that was killed
        finally:
            os.close(directory)
    raise Conflict(f"somebody listens on {path} already", "", "end that first, or choose another path with --host")


def _group_id(name: str) -> int:
    import grp

    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise NotFound(f"there is no group {name!r}", "", "name one of /etc/group, or leave --group out") from None


def _tcp(place: str, address: str) -> socket.socket:
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(f"invalid address {address!r}", "", "write tcp://ADDRESS:PORT")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=512)
    except OSError as error:
        raise Unavailable(f"nothing can listen at {address}", error.strerror or str(error), "choose another address or port") from error


def _context(certificates: Certificates) -> ssl.SSLContext:
    """Only who has a certificate of the authority gets in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(certificates.authority)
        context.load_cert_chain(certificates.certificate, certificates.key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("the certificates cannot be used", str(error), "check --tlscacert, --tlscert and --tlskey") from error
    return context
