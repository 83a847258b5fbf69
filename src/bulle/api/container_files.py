"""Files of containers: copied in and out as tars, exported whole; each by a job, since the engine forks for it."""

from __future__ import annotations

import base64
import stat

import msgspec

from bulle.api.call import TAR, Call
from bulle.api.failures import ApiError
from bulle.api.job_streams import feed, stream_out
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine.copy_ends import FileStatus
from bulle.monitor.logs import timestamp

# Go's os.FileMode, which stands in the header: kinds and special bits are other ones than those of stat(2).
_KINDS = {
    stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFBLK: 1 << 26, stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25, stat.S_IFSOCK: 1 << 24,
}  # fmt: skip
_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


class ArchiveQuery(msgspec.Struct):
    """A path in the container."""

    path: str = ""


class UnpackQuery(msgspec.Struct, rename={"owners": "copyUIDGID"}):
    """A directory in the container, and whether files belong to whom the archive says, or else nobody gets them."""

    path: str = ""
    owners: bool = False


def _path(call: Call) -> str:
    path = call.parameters(ArchiveQuery).path
    if not path or "\0" in path:
        raise ApiError(400, "Bad parameter: path cannot be empty, and has no zero byte")
    return path


def _header(status: FileStatus) -> tuple[str, str]:
    """The header that says what is at a path."""
    mode = status.mode & 0o777 | _KINDS.get(stat.S_IFMT(status.mode), 0)
    for bit, shown in _BITS.items():
        mode |= shown if status.mode & bit else 0
    document = {
        "name": status.name, "size": status.size_bytes, "mode": mode, "mtime": timestamp(status.modified_ns), "linkTarget": status.target,
    }  # fmt: skip
    return "X-Docker-Container-Path-Stat", base64.b64encode(msgspec.json.encode(document)).decode()


async def status_of(service: Service, call: Call, name: str) -> None:
    """Say what is at a path of a container."""
    path = _path(call)
    container = await service.container(name)
    async with service.job("file_status", name=container.id, path=path) as job:
        found = msgspec.convert(await job.done(), FileStatus)
    await call.answer_text("", headers=[_header(found)])


async def read(service: Service, call: Call, name: str) -> None:
    """Send what is at a path of a container as a tar."""
    path = _path(call)
    container = await service.container(name)
    async with service.job("read_archive", name=container.id, path=path) as job:
        await stream_out(call, job, TAR, lambda found: [_header(msgspec.convert(found, FileStatus))])


async def write(service: Service, call: Call, name: str) -> None:
    """Unpack a tar in a directory of a container."""
    path, owners = _path(call), call.parameters(UnpackQuery).owners
    container = await service.container(name)
    async with service.job("write_archive", name=container.id, path=path, owners=owners) as job:
        await feed(job, call)
    await call.answer_text("")


async def export(service: Service, call: Call, name: str) -> None:
    """Send a container's whole root as a tar."""
    container = await service.container(name)
    async with service.job("export", name=container.id) as job:
        await stream_out(call, job, TAR)


ROUTES = (
    Route("HEAD", "/containers/{name}/archive", status_of, ArchiveQuery),
    Route("GET", "/containers/{name}/archive", read, ArchiveQuery),
    Route("PUT", "/containers/{name}/archive", write, UnpackQuery),
    Route("GET", "/containers/{name}/export", export),
)
