"""Times whole commands from a process of its own, so small that starting a program costs little and the same for everyone.

Reads one JSON object per line, ``{"command": [...], "environment": {...}}``, runs it with its output thrown away (but for the end of what an error
said), and answers ``{"ns": ..., "code": ..., "error": "..."}``. Started by bench/measuring.py; nothing but the standard library's smallest parts.
"""

import json
import os
import sys
import time

nowhere = os.open(os.devnull, os.O_RDWR)
for line in sys.stdin:
    request = json.loads(line)
    command = request["command"]
    errors = os.memfd_create("errors")
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, 0), (os.POSIX_SPAWN_DUP2, nowhere, 1), (os.POSIX_SPAWN_DUP2, errors, 2)]
    begin = time.perf_counter_ns()
    pid = os.posix_spawn(command[0], command, request["environment"], file_actions=actions)
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter_ns() - begin
    size = os.fstat(errors).st_size
    text = os.pread(errors, 2000, max(0, size - 2000)).decode(errors="replace")
    os.close(errors)
    sys.stdout.write(json.dumps({"ns": took, "code": os.waitstatus_to_exitcode(status), "error": text}) + "\n")
    sys.stdout.flush()
