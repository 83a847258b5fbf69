"""The engine tests itself in its own virtual machines: container tests in guests with Debian's kernels, control groups of version 2, and systemd.

    .venv/bin/python tools/test_guests.py [SUITE...] [--tests WORD]...      called by `make test-guests`, needs root; exit code 0 where all passed

This machine has one kernel, and most of what Bulle does in another way on other kernels would never run. Each guest is a container of
``--isolation vm`` with the kernel of a Debian suite, whose command becomes systemd; the repository and its ``.venv`` are layers of its image. All
guests run at once, one processor each. What they print comes here, each line behind the suite's name.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE / "tests"))

from bulle.isolation.microvm.modules import ModuleTree  # noqa: E402
from bulle_testing import peers, places, tiers, virtual_machines  # noqa: E402

# By suite: how the release of its kernel begins.
KERNELS = {"bookworm": "6.1.", "bookworm-backports": "6.12."}
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "python3", "kmod", "util-linux", "procps", "iproute2", "nftables",
    "uidmap", "e2fsprogs", "erofs-utils", "busybox-static", "libcap2-bin", "attr", "umoci", "strace",
)  # fmt: skip
MODULES = (
    "loop", "veth", "bridge", "br_netfilter", "tun", "dummy", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_chain_nat",
    "nft_fib_inet", "nft_log", "nft_reject_inet",
    "nft_limit", "nft_hash", "nft_numgen", "nft_socket", "nf_conntrack_netlink", "binfmt_misc", "fuse", "autofs4",
)  # fmt: skip
COPIED = (".venv", "src", "native", "tests", "pyproject.toml", "README.md", "hatch_build.py")
USER = "somebody"
MEMORY = "3g"
PATIENCE_S = 2700
# Making the image and booting; with less than this before the tests' time is over none of them would run.
LEAST_S = 600
# Left out: the levels with the users of the host and with a private root only, which no kernel makes otherwise and which the machine's own tests
# have, and an image for which a mirror of Debian is needed.
CHOSEN = ("-k", "not host-users and not chroot and not real_debian")
OF_BOTH = ("tests/guests", "tests/integration/test_overlay_by_path.py", "tests/integration/test_control_group_kernel.py")
# An emulated processor takes half an hour for all of them, so the two share: the older kernel, which has least of what this machine's has, runs
# whatever root can do; the newer one is the ordinary user's. By suite: of root, of the user. She may change no root: chroot(2) is root's.
TESTS = {
    "bookworm": (
        (*OF_BOTH, "tests/conformance/test_drivers.py", "tests/conformance/test_layers.py", "tests/conformance/test_volumes.py",
         "tests/conformance/test_storage.py", "tests/conformance/test_resources.py"),
        ("tests/guests",),
    ),
    "bookworm-backports": ((*OF_BOTH, "tests/conformance/test_resources.py"), ("tests/guests", "tests/conformance/test_drivers.py")),
}  # fmt: skip


class Host:
    """A ``BULLE_HOME`` on this machine with the image of the guests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir(mode=0o700)
        self.environment = places.environment(self.home)

    def command(self, *arguments: str | Path, timeout_s: float = 120, check: bool = True) -> str:
        """What the command printed; it must succeed."""
        line = [*places.command_line(), *map(str, arguments)]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise SystemExit(f"bulle {arguments[0]} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def make_image(self) -> None:
        """Debian with systemd, and the repository at its own path."""
        self.command("import", peers.debian_root("bookworm", PACKAGES), "guest:base", timeout_s=600)
        recipe = self.directory / "Containerfile"
        # What is below /tmp would be cleared by systemd; an ordinary user must get to the repository.
        opened = " ".join(str(path) for path in SOURCE.parents)
        recipe.write_text(
            f"FROM guest:base\nRUN useradd --create-home --shell /bin/bash {USER} && mkdir -p /var/lib/systemd/linger && "
            f"touch /var/lib/systemd/linger/{USER} && ln -s /dev/null /etc/tmpfiles.d/tmp.conf\n"
            + "".join(f"COPY {name} {SOURCE}/{name}\n" for name in COPIED)
            + f"RUN chmod a+x {opened}\n"
        )
        self.command("build", "-q", "-f", recipe, "-t", "guest:tests", SOURCE, timeout_s=600)


class Guest:
    """One guest, from boot to the end of its tests."""

    def __init__(self, host: Host, suite: str, tests: Sequence[str]) -> None:
        self.host, self.suite, self.passed = host, suite, False
        of_root, of_user = TESTS[suite]
        self.tests = ((*CHOSEN, *(tests or of_root)), (*CHOSEN, *(tests or of_user)))

    def say(self, line: str) -> None:
        """A line of this guest's."""
        print(f"[{self.suite}] {line}", flush=True)

    def run(self) -> None:
        """Boot, test, end."""
        start = time.monotonic()
        try:
            self._boot()
            self.say(f"booted in {time.monotonic() - start:.0f} s")
            self.passed = self._test()
        except (OSError, subprocess.SubprocessError, SystemExit) as error:
            self.say(str(error))
        if not self.passed:
            self._show_what_happened()
        self.host.command("rm", "-f", self.suite, check=False)
        self.say(f"{'passed' if self.passed else 'FAILED'} after {time.monotonic() - start:.0f} s")

    def _boot(self) -> None:
        kernel = virtual_machines.debian_kernel("x86_64", self.suite)
        assert kernel.modules is not None
        tree = ModuleTree(kernel.modules)
        given = self.host.directory / self.suite
        (given / "modules").mkdir(parents=True)
        for number, module in enumerate(tree.load_order(MODULES)):
            (given / "modules" / f"{number:03}-{module.name}.ko").write_bytes(module.content)
        directory = places.cache_directory() / f"kernels/debian-{self.suite}-x86_64"
        flags = ["--isolation", "vm", "--kernel", str(directory), "--privileged", "--network", "none", "--memory", MEMORY]
        self.host.command("run", "-d", "--name", self.suite, *flags, "-v", f"{given}:/given:ro", "guest:tests", f"{SOURCE}/tests/guests/boot.sh")
        deadline = time.monotonic() + 300
        while self.host.command("exec", self.suite, "systemctl", "is-system-running", check=False).strip() != "running":
            if time.monotonic() > deadline:
                raise SystemExit("systemd did not start")
            time.sleep(0.5)

    def _test(self) -> bool:
        inside = [f"{SOURCE}/tests/guests/inside.sh", str(SOURCE), USER, *self.tests[0], "--", *self.tests[1]]
        service = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "-E", "HOME=/root", "-E", f"BULLE_GUEST_KERNEL={KERNELS[self.suite]}",
                   "-E", f"BULLE_TESTS_UNTIL={tiers.UNTIL_S:.0f}"]  # fmt: skip
        line = [*places.command_line(), "exec", self.suite, *service, *inside]
        said = subprocess.Popen(
            line, env=self.host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        clock = threading.Timer(PATIENCE_S, said.kill)
        clock.start()
        last = ""
        assert said.stdout is not None
        for line_said in said.stdout:
            last = line_said.rstrip() or last
            self.say(line_said.rstrip())
        clock.cancel()
        return said.wait() == 0 and last == "== ended with 0 and 0"

    def _show_what_happened(self) -> None:
        for words in (("logs", "--tail", "50", self.suite), ("exec", self.suite, "journalctl", "--no-pager", "-p", "warning", "-n", "80")):
            try:
                for line in self.host.command(*words, check=False, timeout_s=30).splitlines():
                    self.say(line)
            except (OSError, subprocess.SubprocessError) as error:
                self.say(str(error))


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"one of {', '.join(KERNELS)}; all by default")
    parser.add_argument("--tests", action="append", default=[], metavar="WORD", help="words for pytest instead of the modules that are chosen")
    chosen = parser.parse_args()
    suites = chosen.suites or list(KERNELS)
    if unknown := {*suites} - {*KERNELS}:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if cause := tiers.root_missing() or ("" if os.uname().machine == "x86_64" else "this is no x86_64 machine"):
        print(f"The guests' tests cannot run: {cause}")
        return 1
    if tiers.UNTIL_S and time.time() > tiers.UNTIL_S - LEAST_S:
        print("guests: not booted, because the time was nearly over")
        return 0
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    directory = places.run_directory()
    directory.chmod(0o711)
    host = Host(directory)
    try:
        host.make_image()
        print(f"image made in {time.monotonic() - start:.0f} s", flush=True)
        guests = [Guest(host, suite, chosen.tests) for suite in suites]
        threads = [threading.Thread(target=guest.run) for guest in guests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        places.close_home(host.home)
        shutil.rmtree(directory, ignore_errors=True)
    failed = [guest.suite for guest in guests if not guest.passed]
    print(f"guests: {f'FAILED: {chr(44).join(failed)}' if failed else 'all passed'}, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
