"""System containers: a whole Debian with its own init, journal and services in a container, from boot to shutdown."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle.errors import InvalidInput, Unsupported
from bulle.isolation.driver import Feature
from bulle_testing import leaks, places
from bulle_testing.running import LEVELS, Machine, machine, usable, wait_for

pytestmark = [pytest.mark.root, pytest.mark.debian_mirror]

UNIT = """[Unit]
Description=A service of ours
[Service]
ExecStart=/bin/sh -c 'echo "a line of ours"; echo "$INVOCATION_ID" > /run/answer; exec sleep infinity'
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def module_machine(run_directory: Path, debian_tar_with: Callable[..., Path]) -> Iterator[Machine]:
    with machine(run_directory, "systems") as place:
        tar = debian_tar_with("systemd", "systemd-sysv", "cron", "nginx-light")
        done = place.command("import", "--change", 'CMD ["bash"]', tar, "system:latest", timeout_s=300)
        assert done.returncode == 0, done.stderr
        yield place


@pytest.fixture
def here(module_machine: Machine) -> Iterator[Machine]:
    if Feature.SYSTEM not in usable(LEVELS[0], module_machine.home):
        pytest.skip("no control group of version 2 to give away")
    yield module_machine
    module_machine.close_test()


@contextmanager
def booted(place: Machine, *flags: str) -> Iterator[bulle.Container]:
    done = place.command("create", "--systemd", *flags, "system")
    assert done.returncode == 0, done.stderr
    container = place.engine.containers.get(done.stdout.strip())
    try:
        yield container
    finally:
        container.remove(force=True)
        groups = [path for path in leaks._control_groups() if container.id in path]
        assert groups == []


def say(place: Machine, container: bulle.Container, *command: str) -> str:
    done = place.execute(container, *command)
    assert done.exit_code == 0, (command, done)
    return done.stdout.decode().strip()


def wait_running(place: Machine, container: bulle.Container) -> None:
    wait_for(lambda: place.execute(container, "systemctl", "is-system-running", "--wait").stdout.strip() in (b"running", b"degraded"), "a boot")
    assert say(place, container, "systemctl", "--failed", "--plain", "--no-legend") == ""
    assert say(place, container, "systemctl", "is-system-running") == "running"


def console(container: bulle.Container) -> bytes:
    return b"".join(entry.data for entry in container.logs())


def test_boot_services_journal_and_shutdown(here: Machine, tmp_path: Path) -> None:
    unit = tmp_path / "ours.service"
    unit.write_text(UNIT)
    with booted(here, "--memory=300m") as container:
        container.files.copy_in(str(unit), "/etc/systemd/system/ours.service")
        wants = tmp_path / "multi-user.target.wants"
        wants.mkdir()
        (wants / "ours.service").symlink_to("/etc/systemd/system/ours.service")
        container.files.copy_in(f"{wants}/.", "/etc/systemd/system/multi-user.target.wants")
        container.start()
        wait_running(here, container)

        assert len(say(here, container, "cat", "/run/answer")) == 32
        assert "a line of ours" in say(here, container, "journalctl", "-u", "ours", "-o", "cat", "--no-pager")
        assert say(here, container, "systemctl", "is-active", "cron", "nginx", "ours").split() == ["active"] * 3
        asked = "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; head -n 1 <&3"
        assert "200 OK" in say(here, container, "bash", "-c", asked)
        assert say(here, container, "cat", "/etc/machine-id") == container.id[:32]
        assert "container=bulle" in say(here, container, "sh", "-c", "tr '\\0' '\\n' < /proc/1/environ")
        assert b"A service of ours" in console(container)
        # Its own groups are its own, and no others are to be seen.
        assert "0::/init.scope" in say(here, container, "cat", "/proc/1/cgroup").splitlines()
        assert say(here, container, "sh", "-c", "cd /sys/fs/cgroup && mkdir mine && rmdir mine && ls -d *.slice") == "system.slice"
        assert here.execute(container, "sh", "-c", "echo 0 > /sys/fs/cgroup/cgroup.max.descendants").exit_code != 0

        began = time.monotonic()
        container.stop(timeout_s=100)
        assert time.monotonic() - began < 90, "it ended when it was asked to"
        assert (container.state().status, container.state().exit_code) == ("exited", 0)
        assert b"Stopped" in console(container)
        assert b"Exiting container" in console(container)

        container.start()
        wait_running(here, container)
        assert say(here, container, "systemctl", "is-active", "ours") == "active"


def test_two_of_one_image_are_two_machines_and_each_can_end_itself(here: Machine) -> None:
    with booted(here) as one, booted(here) as other:
        for container in (one, other):
            container.start()
        for container in (one, other):
            wait_running(here, container)
        assert say(here, one, "cat", "/etc/machine-id") != say(here, other, "cat", "/etc/machine-id")
        here.execute(one, "systemctl", "poweroff")
        assert one.wait() == 0
        assert say(here, other, "systemctl", "is-system-running") == "running"


def test_its_monitor_may_be_killed(here: Machine) -> None:
    with booted(here) as container:
        container.start()
        wait_running(here, container)
        os.kill(container.state().monitor_pid, 9)
        wait_for(lambda: container.state().status == "running" and say(here, container, "systemctl", "is-system-running") == "running", "it goes on")
        container.stop()
        assert container.state().exit_code == 0


@pytest.mark.parametrize(
    ("words", "command", "is_system"),
    [
        ((), ("/sbin/init",), True),
        ((), ("/lib/systemd/systemd",), True),
        ((), ("true",), False),
        ((), (), False),
        (("--systemd",), (), True),
        (("--systemd=always",), ("/my/init",), True),
        (("--systemd=true",), ("/my/init",), False),
        (("--systemd=false",), ("/sbin/init",), False),
        (("--init",), ("/sbin/init",), False),
        (("--isolation=chroot",), ("/sbin/init",), False),
    ],
)
def test_what_is_a_system(here: Machine, words: tuple[str, ...], command: tuple[str, ...], is_system: bool) -> None:
    done = here.command("run", "--dry-run", *words, "system", *command)
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    assert plan["systemd"] is is_system
    assert plan["stop_signal"] == ("SIGRTMIN+3" if is_system else "SIGTERM")
    assert {mount["container_path"] for mount in plan["mounts"]} == ({"/run", "/run/lock", "/tmp"} if is_system else set())
    if not command and is_system:
        assert plan["process"]["arguments"] == ["/lib/systemd/systemd"]


def test_what_the_user_says_goes_before(here: Machine) -> None:
    words = ("--systemd", "--stop-signal=SIGTERM", "--tmpfs=/run:size=1m,exec", "-e", "container=mine")
    plan = json.loads(here.command("run", "--dry-run", *words, "system").stdout)
    assert plan["stop_signal"] == "SIGTERM"
    assert [mount["options"] for mount in plan["mounts"] if mount["container_path"] == "/run"] == [["size=1m", "exec"]]
    assert [one for one in plan["process"]["environment"] if one.startswith("container=")] == ["container=mine"]


def test_where_it_cannot_be(here: Machine) -> None:
    with pytest.raises(Unsupported, match="chroot"):
        here.engine.containers.plan(bulle.ContainerOptions(image="system", systemd="always", isolation="chroot"))
    with pytest.raises(InvalidInput, match="exclude each other"):
        here.engine.containers.plan(bulle.ContainerOptions(image="system", systemd="always", init=True))
    done = here.command("run", "--systemd=perhaps", "system")
    assert done.returncode == 125
    assert "true, false, always" in done.stderr


VERSION_2_ALONE = """
set -e
mount --make-rprivate /
mkdir "$1"
mount --bind "$2" "$1"
umount -l /sys/fs/cgroup
mount --bind "$1" /sys/fs/cgroup
umount "$1"
shift 2
exec "$@"
"""


@pytest.mark.programs("unshare", "mount", "umount")
def test_on_a_machine_with_version_2_alone(here: Machine, home: Path, tmp_path: Path, debian_tar_with: Callable[..., Path]) -> None:
    """As this machine would be without version 1, in a mount namespace and with an engine of its own."""
    with open("/proc/self/mountinfo") as file:
        roots = [line.split()[4] for line in file if " - cgroup2 " in line]
    script = """
        "$0" import "$1" system:latest && "$0" run -d --name v2 --systemd system:latest || exit 1
        for i in $(seq 100); do case $("$0" exec v2 systemctl is-system-running --wait) in running) break;; esac; sleep 0.1; done
        "$0" exec v2 cat /proc/self/cgroup && "$0" exec v2 systemctl is-system-running && "$0" stop v2 > /dev/null
        "$0" ps -a --format '{{.Status}}'; "$0" rm -f v2
    """
    tar = debian_tar_with("systemd", "systemd-sysv", "cron", "nginx-light")
    inner = ["sh", "-c", script, *places.command_line(), str(tar)]
    command = ["unshare", "--mount", "sh", "-c", VERSION_2_ALONE, "sh", str(tmp_path / "groups"), roots[0], *inner]
    done = subprocess.run(command, env=places.environment(home), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "0::/bulle-exec" in said, done
    assert said[-3] == "running", done
    assert said[-2].startswith("Exited (0)"), done
