"""``exec``: one more process in a running container, watched by the process that runs this: a monitor of its own, or a child of the container's for a
health check."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from bulle.engine.drivers import driver_for
from bulle.engine.starting import Order, as_error, no_stdio, owner_of_streams
from bulle.errors import BulleError
from bulle.monitor import supervisor
from bulle.monitor.frames import Hello, event
from bulle.monitor.stdio import Streams, close_stdio, make_pipes
from bulle.records.events import publish_container


def execute(order: Order, caller: socket.socket) -> None:
    """Run what the order's ``execute`` says until it ends; ``caller`` gets its streams and its end as events. See :mod:`bulle.monitor.frames`."""
    plan, wanted = order.plan, order.execute
    assert wanted is not None
    driver = driver_for(plan.isolation, Path(order.home))
    try:
        streams, stdio = (Streams(), no_stdio()) if wanted.terminal else make_pipes(owner_of_streams(plan), order.interactive)
        try:
            workload = driver.execute(plan, order.pid, wanted, stdio)
        finally:
            close_stdio(stdio)
    except (BulleError, OSError) as error:
        send(caller, event("error", error=error if isinstance(error, BulleError) else as_error(error)))
        return
    if workload.terminal >= 0:
        os.set_blocking(workload.terminal, False)
    send(caller, event("started", pid=workload.pid, notes=tuple(workload.notes)))
    watch = supervisor.Supervisor(workload.pidfd, streams, workload.terminal, None)
    watch.add_client(caller, Hello(order.attach, order.interactive), bound=order.bound)
    code = supervisor.exit_code(watch.run())
    if order.exec_id:
        publish_container(plan.state_host_path, "exec_die", execID=order.exec_id, exitCode=str(code))
    watch.finish_clients(event("exited", exit_code=code))


def send(caller: socket.socket, data: bytes) -> None:
    """Tell who asked, if it is still there."""
    with suppress(OSError):  # the client went away; the container goes on
        caller.sendall(data)
