"""A window that changes while input is being sent: frames of one connection never end up inside each other."""

from __future__ import annotations

import signal
import socket
import threading
import time

from bulle.monitor import Attachment
from bulle.monitor.frames import FrameReader, Kind


def test_resize_in_the_middle_of_a_long_input() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    attachment = Attachment(ours)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    frames: list[tuple[int, bytes]] = []

    def change_and_read() -> None:
        time.sleep(0.1)  # the sender is stuck now: nobody reads
        signal.pthread_kill(main_thread, signal.SIGWINCH)
        time.sleep(0.1)
        reader = FrameReader()
        while data := theirs.recv(65536):
            frames.extend(reader.feed(data))

    before = signal.signal(signal.SIGWINCH, lambda number, frame: attachment.resize(40, 120))
    other = threading.Thread(target=change_and_read)
    other.start()
    try:
        attachment.send_stdin(b"x" * 400_000)
    finally:
        signal.signal(signal.SIGWINCH, before)
        attachment.close()
        other.join()
        theirs.close()
    assert b"".join(data for kind, data in frames if kind == Kind.STDIN) == b"x" * 400_000
    assert [data for kind, data in frames if kind == Kind.RESIZE] == [b"\0\x28\0\x78"]
