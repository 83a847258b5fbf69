"""Code that nobody trusts, run where it can do no harm."""

import bulle

PROGRAMS = {
    "computes": "print(sum(range(1_000_000)))",
    "never ends": "while True: pass",
    "takes all memory": "x = b'x' * (1 << 30)",
    "calls home": "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
}

for name, program in PROGRAMS.items():
    with bulle.sandbox("host", memory="64m", timeout=1) as box:
        done = box.run(["python3", "-c", program])
    said = done.stdout.decode().strip()
    words = "time was up" if done.timed_out else "out of memory" if done.out_of_memory else said or done.stderr.decode().strip().splitlines()[-1]
    print(f"{name}: {words}")
