"""The peers that other tests compare with do work here, and two of them read what our own image writer wrote."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bulle_testing.peers import Docker, Registry


@pytest.mark.programs("skopeo")
def test_skopeo_reads_the_busybox_archive(busybox_image: Path) -> None:
    read = subprocess.run(["skopeo", "--insecure-policy", "inspect", f"docker-archive:{busybox_image}"], capture_output=True, check=True)
    assert len(json.loads(read.stdout)["Layers"]) == 1


@pytest.mark.programs("umoci", "skopeo", "docker-registry")
def test_registry_takes_the_layout_of_umoci(registry: Registry, busybox_layout: Path) -> None:
    registry.push(f"oci:{busybox_layout}:v2", "library/busybox:v2")
    asked = ["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.address}/library/busybox:v2"]
    assert len(json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)["Layers"]) == 2


@pytest.mark.root
def test_private_dockerd_runs_busybox(dockerd: Docker, busybox_image: Path) -> None:
    dockerd("load", "-i", str(busybox_image))
    assert dockerd("run", "--rm", "--network", "none", "busybox:latest", "echo", "hello").stdout == "hello\n"
