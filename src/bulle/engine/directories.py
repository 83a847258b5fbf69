"""A container's host directory as it is made: the writable layer, and the files for its /etc that are not the image's."""

from __future__ import annotations

import os
from pathlib import Path

from bulle.isolation.root_filesystem import identity_files
from bulle.model.run_plan import RunPlan

HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
"""/etc/hosts of a container without a network, as Docker writes it."""


def make_directory(plan: RunPlan) -> None:
    """The container's host directory: the writable layer's two directories and the files for its /etc."""
    directory = plan.state_host_path
    writable = plan.root.writable_host_path
    os.mkdir(directory, 0o700)
    os.mkdir(writable, 0o755)
    if plan.root.size_bytes:
        from bulle.isolation import sized_layer

        sized_layer.make(plan)
    else:
        for path in (f"{writable}/upper", f"{writable}/work"):
            os.mkdir(path, 0o755)
    for path in identity_files(plan):
        _write(path, _identity_text(os.path.basename(path), plan))


def _identity_text(name: str, plan: RunPlan) -> str:
    """What stands in the container's /etc/hostname, hosts or resolv.conf."""
    if name == "hostname":
        return plan.hostname + "\n"
    if plan.network.mode == "host":
        try:
            return Path(f"/etc/{name}").read_text()
        except OSError:
            return ""
    return HOSTS


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
