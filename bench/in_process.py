"""Calls ``bulle.run`` of ``true`` in one process: in_process.py ROUNDS IMAGE. Prints the nanoseconds of each call, one per line."""

import sys
import time

import bulle

rounds, image = int(sys.argv[1]), sys.argv[2]
for number in range(-3, rounds):
    begin = time.perf_counter_ns()
    done = bulle.run(image, ["true"], network="none")
    took = time.perf_counter_ns() - begin
    if done.exit_code != 0:
        raise SystemExit(f"true ended with {done.exit_code}: {done.stderr!r}")
    if number >= 0:
        print(took, flush=True)
