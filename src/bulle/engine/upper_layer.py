"""What a container wrote, as a directory of this machine: the upper directory of its overlay, where it is one here, or a copy of a guest's."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bulle.engine import guest_files
from bulle.errors import BulleError, Unavailable, Unsupported
from bulle.isolation import sized_layer
from bulle.model.run_plan import RunPlan

_UPPER = "/scratch/upper"


@contextmanager
def upper_of(home: Path, plan: RunPlan) -> Iterator[Path]:
    """The host path of it, to be looked at while the block lasts. Raises Unsupported, Conflict."""
    if plan.guest is None:
        with sized_layer.upper(plan) as upper:
            yield upper
        return
    if os.geteuid() != 0:
        raise Unsupported("list of changes for an ordinary user", plan.isolation, "copy files with `bulle cp`, or run it as root")
    if (program := shutil.which("tar")) is None:
        raise Unavailable("the changes of a virtual machine cannot be read", "tar is not installed", "install it")
    # Nobody else gets in, whatever the guest put there; names that climb are tar's to refuse.
    with tempfile.TemporaryDirectory(dir=plan.state_host_path, prefix="upper-") as directory:
        line = [program, "--extract", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "--same-permissions"]
        with (
            guest_files.files_of(home, plan, plan.container_id[:12]) as files,
            files.tar_of(_UPPER, "", own_root=True, raw=True) as stream,
        ):
            done = subprocess.run([*line, "--directory", directory], stdin=stream, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise BulleError("the changes of the virtual machine could not be read", done.stderr.strip().splitlines()[-1][:200], "is the disk full?")
        yield Path(directory)
