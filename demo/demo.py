"""The README's first minutes on this machine: a container from the machine's own /usr, one from a real Debian image, and a virtual machine.

Run by ``make demo``. Each command is printed before it runs, so that a reader can repeat it. Where the machine refuses a level of isolation, the
refusal and its reason are printed and the next weaker level is tried; the exit code is 0 only if something really ran.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

BULLE = str(Path(sysconfig.get_path("scripts")) / "bulle")

# What a process finds inside, with nothing but a shell and /proc, so that every level and every image can say it.
LOOK = r"""
echo "my process id:   $$"
echo "my hostname:     $(cat /proc/sys/kernel/hostname)"
echo "my user map:     $(tr -s ' ' </proc/self/uid_map | sed 's,^ ,,')   (id inside, id outside, how many)"
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null)
echo "my memory limit: ${limit:-not visible from here}"
echo "my network:      $(sed -n 's/^ *\([^:|]*\):.*/\1/p' /proc/net/dev | tr '\n' ' ')"
echo "my system:       $(sed -n 's/^PRETTY_NAME=//p' /etc/os-release /usr/lib/os-release 2>/dev/null | head -n 1)"
"""

# From the strongest to the weakest: words for a person, and the flags that ask for it.
ATTEMPTS = (
    ("a container with a memory limit", ["--memory", "256m", "--network", "none", "--hostname", "bubble"]),
    ("a container without limits", ["--network", "none", "--hostname", "bubble"]),
    ("a private root (chroot)", ["--isolation", "chroot", "--network", "host"]),
    ("a private root (chroot), as it comes", ["--isolation", "chroot"]),
)


def say(text: str = "") -> None:
    """Print at once, so that our words and the commands' own stay in order."""
    print(text, flush=True)


def command(*arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``bulle`` with these arguments, showing the command and what it printed."""
    if not quiet:
        shown = [argument if "\n" not in argument else "…" for argument in arguments]
        say(f"$ bulle {shlex.join(shown)}".replace("'…'", "'…'   # a few lines of shell that say what they see"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([BULLE, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if not quiet and done.stdout:
        say("\n".join(f"    {line}" for line in done.stdout.rstrip().splitlines()))
    return done


def run(image: str) -> str:
    """Run the look around in an image on the strongest level that works; returns its words, or nothing where none did."""
    for level, flags in ATTEMPTS:
        done = command("run", "--rm", *flags, image, "sh", "-c", LOOK)
        if done.returncode == 0:
            if done.stderr.strip():
                say("\n".join(f"  note: {line}" for line in done.stderr.strip().splitlines()))
            return level
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        say(f"  refused: {level}: {reason}")
        say()
    return ""


def machine(image: str) -> str:
    """The same image with a kernel of its own: start it, look at its kernel, and at what it runs on; returns words for the end, or nothing."""
    name = f"demo-{os.getpid()}"
    begun = time.monotonic()
    try:
        done = command("run", "-d", "--name", name, "--isolation", "vm", image, "sleep", "1000")
        if done.returncode != 0:
            say(f"  refused: a virtual machine: {(done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]}")
            return ""
        say(f"  (it runs after {time.monotonic() - begun:.1f} s)")
        command("exec", name, "uname", "-r")
        say(f"  (and this machine's own kernel is {os.uname().release})")
        command("inspect", "--format", "{{.State.Machine.Accelerator}}: {{.State.Machine.Hypervisor}}, {{.State.Machine.Memory}} bytes", name)
        obtained = command("inspect", "--format", "{{.State.Machine.Accelerator}}", name, quiet=True).stdout.strip()
        command("kill", name)
        command("wait", name)
        command("why", name)
        return f"a virtual machine ({obtained})"
    finally:
        command("rm", "-f", name, quiet=True)


def main() -> int:
    """The whole demonstration; returns the exit code."""
    started = time.monotonic()
    ran = []
    say(f"Bulle on this machine, as {'root' if os.geteuid() == 0 else 'an ordinary user'}\n")
    doctor = command("doctor")
    if doctor.returncode != 0 and doctor.stderr:
        say(f"  {doctor.stderr.strip()}")

    say("\n1. A container from this machine's own /usr: nothing to download.\n")
    if level := run("host"):
        ran.append(f"host: {level}")

    say("\n2. A real Debian image, built from Debian's packages.\n")
    if not command("images", "-q", "deb:bookworm", quiet=True).stdout.strip():
        pulled = command("pull", "deb:bookworm")
        if pulled.returncode != 0:
            say(f"  refused: {(pulled.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    if command("images", "-q", "deb:bookworm", quiet=True).stdout.strip() and (level := run("deb:bookworm")):
        ran.append(f"deb:bookworm: {level}")

    say("\n3. The same image in a virtual machine: a kernel of its own, by the same verbs.\n")
    image = "deb:bookworm" if any(text.startswith("deb:") for text in ran) else "host"
    if level := machine(image):
        ran.append(f"{image}: {level}")

    say(f"\nDone in {time.monotonic() - started:.1f} s.")
    if not ran:
        say("Nothing could run on this machine; `bulle doctor` above says why.")
        return 1
    say("What ran:  " + "\n           ".join(ran))
    say(f"Next:      {os.path.relpath(BULLE)} run --rm -it host bash")
    return 0


if __name__ == "__main__":
    sys.exit(main())
