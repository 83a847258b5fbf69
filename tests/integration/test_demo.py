"""``make demo``'s program ends with a real run for everyone: root, an ordinary user, root inside an unprivileged container.

The machine of each is real: the ordinary user has no subordinate ids, and the container is Docker's default one (no user namespaces, no mounts).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bulle_testing import places, tiers
from bulle_testing.peers import Docker

DEMO = places.SOURCE / "demo/demo.py"


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.debian_mirror
@pytest.mark.machines
@pytest.mark.programs("mmdebstrap", "qemu-system-x86_64")
def test_root_gets_containers_with_limits(installation: Path, home: Path) -> None:
    done = subprocess.run([str(installation / "bin/python"), str(DEMO)], env=places.environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host: a container with a memory limit\n" in done.stdout
    assert "deb:bookworm: a container with a memory limit\n" in done.stdout
    for line in ("my process id:   1\n", "my hostname:     bubble\n", "my memory limit: 268435456\n", "my network:      lo"):
        assert done.stdout.count(line) == 2
    assert "deb:bookworm: a virtual machine (" in done.stdout.partition("What ran:")[2], done.stdout
    assert "it ran in a virtual machine, " in done.stdout


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.user_namespaces
@pytest.mark.debian_mirror
@pytest.mark.machines
@pytest.mark.programs("setpriv", "qemu-system-x86_64")
def test_ordinary_user_gets_a_real_run(installation: Path, run_directory: Path, home: Path) -> None:
    user = 54321
    shutil.copy(DEMO, home.parent / "demo.py")
    home.chmod(0o700)
    os.chown(home, user, user)
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]
    command += [str(installation / "bin/python"), str(home.parent / "demo.py")]
    settings = places.environment(home) | {"HOME": str(home), "XDG_RUNTIME_DIR": ""}
    settings.pop("BULLE_KERNEL", None)  # which is in a cache of root's
    done = subprocess.run(command, env=settings, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host: " in done.stdout.partition("What ran:")[2]
    assert "host: a virtual machine (tcg)" in done.stdout.partition("What ran:")[2], done.stdout
    assert "refused: a container with a memory limit: " in done.stdout


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.debian_mirror
@pytest.mark.programs("dockerd")
def test_root_in_an_unprivileged_container_gets_a_real_run(installation: Path, dockerd: Docker, debian_tar_with: object, run_directory: Path) -> None:
    assert callable(debian_tar_with)
    tar = debian_tar_with("python3")
    dockerd("import", str(tar), "demo-machine:latest")
    shutil.copy(DEMO, run_directory / "demo.py")
    binds = ["--volume", f"{installation}:{installation}:ro", "--volume", f"{run_directory}/demo.py:/demo.py:ro"]
    done = dockerd("run", "--rm", "--network", "none", *binds, "demo-machine:latest", str(installation / "bin/python"), "/demo.py", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host: " in done.stdout.partition("What ran:")[2]
    assert "refused: a container with a memory limit: " in done.stdout


def test_nothing_ran_is_a_failure(home: Path, tmp_path: Path) -> None:
    # A `bulle` that always refuses, where the demo looks for the command: beside the interpreter's scripts.
    fake = tmp_path / "bulle"
    fake.write_text("#!/bin/sh\necho 'bulle: this machine refuses' >&2\nexit 125\n")
    fake.chmod(0o755)
    program = f"import runpy, sysconfig; sysconfig.get_path = lambda name: {str(tmp_path)!r}; runpy.run_path({str(DEMO)!r}, run_name='__main__')"
    done = subprocess.run([tiers.program("python3") or "python3", "-c", program], env=places.environment(home), capture_output=True, text=True)
    assert done.returncode == 1
    assert "refused: a private root (chroot): bulle: this machine refuses" in done.stdout
    assert "refused: a virtual machine: bulle: this machine refuses" in done.stdout
    assert "Nothing could run on this machine" in done.stdout
