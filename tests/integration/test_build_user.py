"""An ordinary user builds and runs, with one id alone: no range of subordinate ids, no right to mount, layers that are extracted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bulle_testing import peers, places

pytestmark = pytest.mark.slow

USER = 54321
CONTAINERFILE = """FROM base
RUN --network=none mkdir /made && echo made > /made/file && rm /bin/vi && chmod 700 /made
COPY --chmod=640 file /made/
RUN --network=none --mount=type=bind,source=/,target=/context --mount=type=cache,target=/cache \\
    cat /context/file > /cache/file && cp /cache/file /copied
WORKDIR /made/deep
CMD ["sh", "-c", "id -u; pwd; stat -c '%a %n' /made /made/file; cat /copied; test ! -e /bin/vi && echo gone"]
"""


@pytest.mark.root
@pytest.mark.user_namespaces
@pytest.mark.programs("setpriv", "busybox")
def test_a_build_of_an_ordinary_user(installation: Path, home: Path, busybox_rootfs: Path, tmp_path: Path) -> None:
    """Also where root is in several groups in the image's own files, as in many: there are no other groups to be in."""
    place = home / "work"
    place.mkdir()
    group = place / "group"
    group.write_text("root:x:0:root\nwheel:x:10:root\nvideo:x:27:root\n")
    (place / "context").mkdir()
    (place / "context/file").write_text("of the context\n")
    (place / "context/Containerfile").write_text(CONTAINERFILE)
    rootfs = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", busybox_rootfs, rootfs], check=True)
    (rootfs / "etc/group").write_text(group.read_text())
    peers.docker_archive(place / "base.tar", [peers.pack(rootfs)], tags=["base:latest"])
    for path in (home, *home.rglob("*")):
        os.chown(path, USER, USER)
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]
    settings = places.environment(home / "bulle") | {"HOME": str(home), "XDG_RUNTIME_DIR": ""}

    def bulle(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [*command, str(installation / "bin/bulle"), *arguments]
        return subprocess.run(line, env=settings, cwd="/", capture_output=True, text=True)

    try:
        assert bulle("load", "-i", f"{place}/base.tar").returncode == 0
        built = bulle("build", "-t", "mine:1", f"{place}/context")
        assert built.returncode == 0, built.stderr
        run = bulle("run", "--rm", "mine:1")
        assert run.stdout.splitlines() == ["0", "/made/deep", "700 /made", "640 /made/file", "of the context", "gone"], run.stderr
        again = bulle("build", "-t", "mine:2", f"{place}/context")
        assert again.stdout == built.stdout
        assert again.stderr.count("CACHED") == 4
        assert bulle("system", "prune", "-af").returncode == 0
    finally:
        places.close_home(home / "bulle")
