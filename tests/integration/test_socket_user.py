"""The socket of an ordinary user: in the user's own directory, with the user's own containers; what needs root is refused or said."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.socket_clients import Served, wait_until_served

pytestmark = pytest.mark.slow

USER = 54322


@pytest.mark.root
@pytest.mark.user_namespaces
@pytest.mark.programs("setpriv", "docker")
def test_an_ordinary_user_is_served(installation: Path, home: Path, busybox_image: Path, tmp_path: Path) -> None:
    runtime, archive = home / "runtime", home / "busybox.tar"
    runtime.mkdir()
    archive.write_bytes(busybox_image.read_bytes())
    for path in (home, *home.rglob("*")):
        os.chown(path, USER, USER)
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]
    settings = places.environment(home / "bulle") | {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}
    served = Served(runtime / "bulle/docker.sock")
    line = [*command, str(installation / "bin/bulle"), "serve"]
    served.process = subprocess.Popen(line, env=settings, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until_served(served)
        status = served.path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o660, USER)
        served.docker("load", "-i", str(archive))
        run = served.docker("run", "--name", "one", "busybox", "sh", "-c", "id -u; touch /made")
        assert (run.stdout, "the container has no network" in run.stderr) == ("0\n", True)
        assert "A /made" in served.docker("diff", "one").stdout.splitlines()
        (tmp_path / "file").write_text("content")
        served.docker("cp", f"{tmp_path}/file", "one:/tmp/")
        served.docker("cp", "one:/tmp/file", f"{tmp_path}/back")
        assert (tmp_path / "back").read_text() == "content"
        served.docker("rm", "one")
        served.docker("volume", "create", "kept")
        served.docker("run", "--rm", "--network", "none", "-v", "kept:/v", "busybox", "touch", "/v/file")
        served.docker("volume", "rm", "kept")
        refused = served.docker("run", "-p", "8080:80", "busybox", "true", check=False)
        assert (refused.returncode, "ports cannot be published" in refused.stderr) == (125, True)
    finally:
        served.process.terminate()
        served.process.communicate(timeout=240)
        places.close_home(home / "bulle")
    assert served.process.returncode == 0
