"""The server of a machine's volumes: a virtiofsd in the machine's sandbox. Called by :mod:`bulle.isolation.microvm.boot`."""

from __future__ import annotations

import os
import socket

from bulle.isolation.microvm import sandbox
from bulle.isolation.microvm.setup import Setup


def start(setup: Setup) -> tuple[int, socket.socket]:
    """A virtiofsd for the volumes; returns its pid and a connection to it for the hypervisor."""
    path = f"{sandbox.RUN}/volumes.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(1)
    line = setup.file_server_arguments(listener.fileno(), sandbox.VOLUMES)
    pid = sandbox.start_file_server(setup.file_server, line, [listener.fileno()], setup.output_fd)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.connect(path)
    listener.close()
    os.unlink(path)
    return pid, connection
