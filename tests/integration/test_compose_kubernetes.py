"""``bulle compose config --format kubernetes`` as a user sees it; what becomes of each key is in tests/unit/kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = """
services:
  web:
    image: {image}
    depends_on: [db]
    ports: ["80:80"]
  db: {{image: db}}
  other: {{image: other, restart: "no"}}
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A Compose file in a directory called ``shop``."""
    place = tmp_path / "shop"
    place.mkdir()
    (place / "compose.yaml").write_text(FILE.format(image="web"))
    return place / "compose.yaml"


def kubernetes(bulle: Any, file: Path, *arguments: str, **options: Any) -> Any:
    """The verb on a file."""
    return bulle("compose", "-f", str(file), "config", "--format", "kubernetes", *arguments, **options)


def names(printed: str) -> list[str]:
    """Kind and name of each document."""
    return [f"{one['kind']} {one['metadata']['name']}" for one in yaml.safe_load_all(printed)]


def test_documents_go_to_standard_output_and_losses_to_standard_error(bulle: Any, app: Path) -> None:
    done = kubernetes(bulle, app, check=True)
    (job,) = [name for name in names(done.stdout) if name.startswith("Job other-")]
    services = ["Service db", "Service other", "Service web"]
    assert names(done.stdout) == ["NetworkPolicy shop-default", *services, "Deployment db", job, "Deployment web"]
    assert done.stderr.splitlines() == [
        f"WARNING: {app}:6: services.web.ports.0: without an address it is published on loopback, so not outside of the cluster: "
        "write `0.0.0.0:` before it, or `127.0.0.1:`"
    ]
    assert kubernetes(bulle, app, check=True).stdout == done.stdout
    assert names(kubernetes(bulle, app, "web", check=True).stdout)[1:] == ["Service db", "Service web", "Deployment db", "Deployment web"]
    assert kubernetes(bulle, app, "-q", check=True).stdout == ""


def test_what_cannot_be_is_refused_with_file_and_line(bulle: Any, app: Path) -> None:
    strict = kubernetes(bulle, app, "--strict")
    assert (strict.returncode, strict.stdout) == (1, "") and strict.stderr.startswith(f"{app}:6: services.web.ports.0: ")
    with app.open("a") as file:
        file.write("  more:\n    image: more\n    devices: [/dev/fuse]\n    uts: host\n")
    done = kubernetes(bulle, app)
    assert done.returncode == 1 and done.stdout == ""
    *reasons, last = done.stderr.splitlines()
    assert [reason.split(": ")[1] for reason in reasons] == ["services.more.devices", "services.more.uts"]
    assert reasons[0].startswith(f"{app}:11: ") and reasons[1].startswith(f"{app}:12: ")
    assert last == "bulle: shop cannot be written for Kubernetes as it is, because of 2 keys; each is named above"
    assert "no service nobody" in kubernetes(bulle, app, "nobody").stderr


@pytest.mark.root
def test_the_health_check_of_an_image_that_is_here_is_a_probe(bulle: Any, app: Path, busybox_image: Path) -> None:
    bulle("load", "-q", "-i", busybox_image, check=True)
    (app.parent / "Containerfile").write_text("FROM busybox\nHEALTHCHECK --interval=7s CMD test -e /ready\n")
    bulle("build", "-q", "-t", "checked", str(app.parent), check=True)
    app.write_text(FILE.format(image="checked"))
    workloads = {one["metadata"]["name"]: one for one in yaml.safe_load_all(kubernetes(bulle, app, check=True).stdout) if one["kind"] == "Deployment"}
    probe = workloads["web"]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]
    assert probe == {"exec": {"command": ["/bin/sh", "-c", "test -e /ready"]}, "timeoutSeconds": 30, "periodSeconds": 7, "failureThreshold": 3}
    assert "readinessProbe" not in workloads["db"]["spec"]["template"]["spec"]["containers"][0]
