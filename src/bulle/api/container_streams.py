"""Streams of containers: attach, exec, logs, stats, and waiting for an end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from bulle.api.call import MULTIPLEXED_STREAM, RAW_STREAM, Call
from bulle.api.carrying import Carrier, Viewer
from bulle.api.failures import ApiError
from bulle.api.journal import Subscription
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.api.web_socket import WebSocket
from bulle.engine.container_log import ContainerLog
from bulle.engine.inspection import UNKNOWN_EXIT_CODE
from bulle.engine.measuring import StatisticsDocuments
from bulle.errors import Conflict, NotFound
from bulle.model.moments import parse_time_ns
from bulle.monitor.frames import HEADER
from bulle.monitor.local import detach_keys
from bulle.monitor.log_reading import Choice

if TYPE_CHECKING:
    from bulle.engine import Container

_LOOK_EVERY_S = 2.0
_STATS_EVERY_S = 1.0


class AttachQuery(msgspec.Struct, rename="camel"):
    """Which streams, and which keys leave them."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    stream: bool = False
    logs: bool = False
    detach_keys: str | None = None


async def attach(service: Service, call: Call, name: str) -> None:
    """Attach to a container's streams, also before it is started."""
    await _attach(service, call, name, as_web_socket=False)


async def attach_web_socket(service: Service, call: Call, name: str) -> None:
    """Attach to a container's streams by WebSocket."""
    await _attach(service, call, name, as_web_socket=True)


async def _attach(service: Service, call: Call, name: str, *, as_web_socket: bool) -> None:
    query = call.parameters(AttachQuery)
    keys = detach_keys(query.detach_keys or None)
    container = await service.container(name)
    terminal = container.options.terminal
    state = await service.run(container.state)
    if container.is_paused():
        raise ApiError(409, f"container {name} is paused, unpause the container before attach")
    stdin = query.stdin and container.options.interactive
    attachment = None
    if state.status == "running" and query.stream:
        attachment = await service.run(lambda: container.attach(output=query.stdout or query.stderr, stdin=stdin))
    with service.journal.subscribe() as events:
        try:
            stream = await call.before_hijack()
            face = WebSocket(stream) if as_web_socket else stream
            viewer = Viewer(face, terminal or as_web_socket, stdin, query.stdout, query.stderr, keys if terminal else b"")
            if query.stream and attachment is None:  # before the client is answered, which starts the container then
                service.waiting.add(container.id, viewer)
            try:
                await (call.become_web_socket() if as_web_socket else call.hijack(terminal=terminal))
                if query.logs:
                    await _show_log(service, container, viewer)
                if attachment is not None:
                    await Carrier(attachment, [viewer]).run()
                elif query.stream:
                    await _until_started(service, container, viewer, events)
            finally:
                service.waiting.take_one(container.id, viewer)
        except BaseException:
            if attachment is not None:
                attachment.close()
            raise
    viewer.end()


async def _show_log(service: Service, container: Container, viewer: Viewer) -> None:
    loop = asyncio.get_running_loop()
    left = False

    def show() -> None:
        for kind, text in container.log.text(Choice()):
            if left:
                return
            asyncio.run_coroutine_threadsafe(viewer.show(2 if kind == "stderr" else 1, text), loop).result()  # piece by piece: a log may be large

    try:
        await service.follow(show)
    finally:
        left = True


async def _until_started(service: Service, container: Container, viewer: Viewer, events: Subscription) -> None:
    """Wait for the start; whoever starts it here takes the viewer along, what somebody else starts is attached to then."""
    gone = asyncio.ensure_future(viewer.stream.until_gone())
    try:
        while not viewer.done.is_set() and not gone.done():
            event = await events.next(_LOOK_EVERY_S)
            if event is None or event.kind != "container" or event.actor.identifier != container.id:
                continue
            if event.action == "start" and service.waiting.take_one(container.id, viewer):
                attachment = await service.run(lambda: container.attach(stdin=viewer.stdin))
                await Carrier(attachment, [viewer]).run()
            elif event.action == "destroy":
                return
    except Conflict:
        return  # it has ended already
    finally:
        gone.cancel()


class ResizeQuery(msgspec.Struct):
    """Rows and columns."""

    h: int = 0
    w: int = 0


def wanted_size(call: Call) -> tuple[int, int]:
    """Rows and columns. Raises ApiError."""
    query = call.parameters(ResizeQuery)
    if not (0 <= query.h < 65536 and 0 <= query.w < 65536):
        raise ApiError(400, f"invalid size of a terminal: {query.h} rows, {query.w} columns")
    return query.h, query.w


async def resize(service: Service, call: Call, name: str) -> None:
    """Give a container's terminal a size."""
    rows, columns = wanted_size(call)
    await service.run(lambda: service.engine.containers.get(name).resize(rows, columns))
    await call.answer_text("")


class WaitQuery(msgspec.Struct):
    """What is waited for."""

    condition: str = "not-running"


async def wait(service: Service, call: Call, name: str) -> None:
    """Wait until a container does not run, until its next exit, or until it is removed."""
    condition = call.parameters(WaitQuery).condition or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise ApiError(400, f'invalid condition: "{condition}"')
    with service.journal.subscribe() as events:
        container = await service.container(name)
        state = await service.run(container.state)
        await call.begin()  # who starts it next wants to know that it is waited for
        code = state.exit_code if state.finished_at_ns else 0
        error = ""
        while not (condition == "not-running" and not state.active):
            event = await events.next(_LOOK_EVERY_S)
            mine = event is not None and event.kind == "container" and event.actor.identifier == container.id
            if event is not None and not mine:
                continue
            if event is not None and event.action == "die":
                code = int(event.actor.attributes.get("exitCode", UNKNOWN_EXIT_CODE))
                if condition == "next-exit" or (condition == "not-running" and container.options.auto_remove):
                    break
            if event is not None and event.action == "destroy":
                error = "" if condition == "removed" else "the container was removed"
                break
            before = state
            try:
                state = await service.run(lambda: service.engine.containers.get(container.id).state())
            except NotFound:
                break
            if state.finished_at_ns > before.finished_at_ns:
                code = state.exit_code
                if condition == "next-exit":
                    break
    code = UNKNOWN_EXIT_CODE if code < 0 else code
    said = {"Error": {"Message": error} if error else None}
    await call.write_document({"StatusCode": code} | (said if error or call.version < (1, 42) else {}))
    await call.finish()


class LogsQuery(msgspec.Struct):
    """Which lines, and whether those to come."""

    follow: bool = False
    stdout: bool = False
    stderr: bool = False
    since: str = ""
    until: str = ""
    timestamps: bool = False
    details: bool = False
    tail: str = "all"


async def logs(service: Service, call: Call, name: str) -> None:
    """Show what a container wrote."""
    query = call.parameters(LogsQuery)
    if not (query.stdout or query.stderr):
        raise ApiError(400, "Bad parameters: you must choose at least one stream")
    since, until = (parse_time_ns(text) if text not in ("", "0") else 0 for text in (query.since, query.until))
    choice = Choice(int(query.tail) if query.tail.isdecimal() else None, since, until)
    container = await service.container(name)
    terminal = container.options.terminal
    left = False
    log = ContainerLog(container.plan, container.name, lambda: not left and container.state().active)
    wanted = {kind for kind, asked in (("stdout", query.stdout), ("stderr", query.stderr)) if asked}
    await call.begin(MULTIPLEXED_STREAM if call.version >= (1, 42) and not terminal else RAW_STREAM)
    loop = asyncio.get_running_loop()

    def show() -> None:
        for stream, text in log.text(choice, follow=query.follow, timestamps=query.timestamps, details=query.details):
            if left:
                return
            if stream in wanted:
                data = text if terminal else b"".join(_framed(2 if stream == "stderr" else 1, text))
                asyncio.run_coroutine_threadsafe(call.write(data), loop).result()  # a slow reader makes this thread wait, and nobody else

    try:
        await (service.follow if query.follow else service.run)(show)
    finally:
        left = True
    await call.finish()


def _framed(kind: int, text: bytes) -> list[bytes]:
    """Each line in a frame of its own, as clients expect that show a line for each."""
    return [HEADER.pack(kind, len(line)) + line for line in text.splitlines(keepends=True)]


class StatsQuery(msgspec.Struct, rename="kebab"):
    """Again and again, or once; at once, or after two looks."""

    stream: bool = True
    one_shot: bool = False


async def stats(service: Service, call: Call, name: str) -> None:
    """Show what a container uses."""
    query = call.parameters(StatsQuery)
    container = await service.container(name)
    documents = StatisticsDocuments(service.engine.home)
    document = await service.run(lambda: documents.look(container))
    await call.begin()
    if not query.one_shot:
        await asyncio.sleep(_STATS_EVERY_S)
        document = await service.run(lambda: documents.look(container))
    await call.write_document(document)
    while query.stream and not query.one_shot:
        await asyncio.sleep(_STATS_EVERY_S)
        try:
            await call.write_document(await service.run(lambda: documents.look(service.engine.containers.get(container.id))))
        except NotFound:
            break
    await call.finish()


ROUTES = (
    Route("POST", "/containers/{name}/attach", attach, AttachQuery),
    Route("GET", "/containers/{name}/attach/ws", attach_web_socket, AttachQuery),
    Route("POST", "/containers/{name}/resize", resize, ResizeQuery),
    Route("POST", "/containers/{name}/wait", wait, WaitQuery),
    Route("GET", "/containers/{name}/logs", logs, LogsQuery),
    Route("GET", "/containers/{name}/stats", stats, StatsQuery),
)
