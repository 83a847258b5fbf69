"""``/exec``: further commands in running containers, prepared, started, shown. Docker Engine API, ContainerExec and below."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec

from bulle.api.byte_stream import ByteStream, Gone
from bulle.api.call import Call
from bulle.api.carrying import Carrier, Viewer
from bulle.api.container_streams import ResizeQuery, wanted_size
from bulle.api.execs import Exec
from bulle.api.failures import FAILURES, ApiError, described
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine.inspection import UNKNOWN_EXIT_CODE
from bulle.errors import BulleError, CommandNotExecutable, InvalidInput, NotFound
from bulle.model.container import ExecOptions
from bulle.monitor import Attachment
from bulle.monitor.frames import HEADER, Kind
from bulle.monitor.local import detach_keys


class ExecRequest(msgspec.Struct, rename="pascal"):
    """A command to prepare."""

    cmd: list[str] | None = None
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str | None = None
    tty: bool = False
    env: list[str] | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""


async def create(service: Service, call: Call, name: str) -> None:
    """Prepare a command in a running container."""
    request = await call.document(ExecRequest)
    options = ExecOptions(
        command=tuple(request.cmd or ()),
        environment=tuple(one for one in request.env or () if "=" in one),
        working_directory=request.working_dir,
        user=request.user,
        terminal=request.tty,
        interactive=request.attach_stdin,
        privileged=request.privileged,
    )
    keys = detach_keys(request.detach_keys or None) if request.tty else b""
    container = await service.container(name)
    exec_id = await service.run(lambda: container.prepare_exec(options))
    service.execs.add(Exec(exec_id, container.id, options, keys, (request.attach_stdout, request.attach_stderr)))
    await call.answer({"Id": exec_id}, 201)


class StartRequest(msgspec.Struct, rename="pascal"):
    """How it is started."""

    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None


async def start(service: Service, call: Call, identifier: str) -> None:
    """Start a command that was prepared, and carry its streams."""
    command = service.execs.get(identifier)
    request = await call.document(StartRequest)
    if command.started:
        raise ApiError(409, f"Error: Exec command {identifier} has already run")
    if request.tty != command.options.terminal and not request.detach:
        raise ApiError(400, "the exec instance was prepared with another value for Tty")
    options = command.options
    if request.console_size and len(request.console_size) == 2:
        options = msgspec.structs.replace(options, rows=request.console_size[0], columns=request.console_size[1])
    command.started = True
    if request.detach:
        service.keep(_carry(command, await service.run(lambda: _execute(service, command, options)), None))
        await call.answer_text("")
        return
    try:
        stream = await call.hijack(terminal=options.terminal)
    except BaseException:
        command.end(UNKNOWN_EXIT_CODE)
        raise
    # It goes on when its client leaves: its exit code may be asked for.
    await asyncio.shield(service.keep(_run(service, command, options, stream)))


async def _run(service: Service, command: Exec, options: ExecOptions, stream: ByteStream) -> None:
    """Start it for a client that has been answered already, and so reads why it could not be started."""
    try:
        attachment = await service.run(lambda: _execute(service, command, options))
    except FAILURES as error:
        text = f"{described(error).message}\r\n".encode()
        with suppress(Gone):
            await stream.write(text if options.terminal else HEADER.pack(Kind.STDERR, len(text)) + text)
        stream.close()
    else:
        await _carry(command, attachment, stream)


def _execute(service: Service, command: Exec, options: ExecOptions) -> Attachment:
    try:
        container = service.engine.containers.get(command.container_id)
        try:
            attachment = container.execute(options, exec_id=command.id)
        except (InvalidInput, NotFound) as error:
            # The container is there and runs: what is wrong is the command's user or directory.
            raise CommandNotExecutable(*error.args) from error
    except BulleError as error:
        command.end(error.exit_code)
        raise
    assert attachment is not None
    command.pid = attachment.pid
    return attachment


async def _carry(command: Exec, attachment: Attachment, stream: ByteStream | None) -> None:
    stdout, stderr = command.output
    viewers = []
    if stream is not None:
        viewers.append(Viewer(stream, command.options.terminal, command.options.interactive, stdout, stderr, command.detach_keys))
    elif command.options.interactive:
        attachment.close_stdin()
    command.carrier = Carrier(attachment, viewers, stays=True)
    code: int | None = None
    try:
        code = await command.carrier.run()
    finally:
        command.end(-1 if code is None else code)


async def inspect(service: Service, call: Call, identifier: str) -> None:
    """Show a command that was prepared, and how it ended."""
    command = service.execs.get(identifier)
    options = command.options
    exit_code = 255 if command.exit_code is not None and command.exit_code < 0 else command.exit_code
    await call.answer(
        {
            "ID": command.id,
            "Running": command.running,
            "ExitCode": exit_code,
            "ProcessConfig": {
                "tty": options.terminal,
                "entrypoint": options.command[0],
                "arguments": list(options.command[1:]),
                "privileged": options.privileged,
                "user": options.user,
            },
            "OpenStdin": options.interactive,
            "OpenStdout": command.output[0],
            "OpenStderr": command.output[1],
            "CanRemove": command.exit_code is not None,
            "ContainerID": command.container_id,
            "DetachKeys": "",
            "Pid": command.pid,
        }
    )


async def resize(service: Service, call: Call, identifier: str) -> None:
    """Give a running command's terminal a size."""
    command = service.execs.get(identifier)
    rows, columns = wanted_size(call)
    if command.carrier is None:
        raise ApiError(409, f"exec {identifier} is not running")
    command.carrier.resize(rows, columns)
    await call.answer_text("")


ROUTES = (
    Route("POST", "/containers/{name}/exec", create, None, ExecRequest),
    Route("POST", "/exec/{identifier}/start", start, None, StartRequest),
    Route("GET", "/exec/{identifier}/json", inspect),
    Route("POST", "/exec/{identifier}/resize", resize, ResizeQuery),
)
