"""An image with many of Debian's programs: databases, web servers, Java. Made once, and kept in the cache for the next run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bulle_testing import places, tiers
from bulle_testing.running import Machine

PACKAGES = (
    "cron", "curl", "default-jre-headless", "etcd-client", "etcd-server", "iputils-ping", "libcap2-bin", "mariadb-server", "nginx-light",
    "postgresql", "procps", "redis-server", "rsync", "sudo",
)  # fmt: skip
IMAGE = "programs:1"


def load_programs(place: Machine) -> Path:
    """Have the image in a home; returns the archive that it was loaded from."""

    def bulle(*arguments: str, timeout_s: float = 300) -> str:
        done = place.command(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"bulle {arguments} ended with {done.returncode}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    name = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    saved = places.cache_directory() / f"programs-{name}.tar"
    if saved.exists():
        bulle("load", "-i", str(saved))
        return saved
    tiers.need("mmdebstrap")
    if cause := tiers.debian_mirror_missing():
        tiers.give_up("debian_mirror", cause)
    bulle("tag", bulle("pull", f"deb:bookworm+{','.join(PACKAGES)}", timeout_s=800), IMAGE)
    part = saved.with_suffix(f".{os.getpid()}.part")
    try:
        bulle("save", "-o", str(part), IMAGE)
        part.rename(saved)
    finally:
        part.unlink(missing_ok=True)
    return saved
