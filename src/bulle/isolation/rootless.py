"""The root filesystem of an ordinary user's container, made inside its own user namespace.

There the kernel allows overlay with ``userxattr`` over directories (no EROFS, no id-mapped mounts): layers were extracted with mapped ids, and
everything here happens as the namespace's root. Without overlay in user namespaces (kernels before 5.11) it says so. overlayfs documentation, "User
xattr"
"""

from __future__ import annotations

import os
from contextlib import suppress

from bulle.errors import Unavailable
from bulle.isolation import host_mounts, overlay
from bulle.isolation.root_filesystem import DetachedMounts, identity_files, match_root, require_layers
from bulle.model.run_plan import RunPlan


def detached_mounts(plan: RunPlan) -> DetachedMounts:
    """The same value as the driver's process makes for root, with nothing id-mapped."""
    mounts = DetachedMounts(root=_overlay(plan))
    for path in plan.root.host_binds:
        mounts.binds.append(host_mounts.bind(path, True, None, mounts.notes))
    for path in identity_files(plan):
        mounts.files.append(host_mounts.bind(path, False, None, mounts.notes))
    for wanted in plan.mounts:
        if wanted.kind != "tmpfs":
            mounts.volumes.append(host_mounts.detached(plan, wanted, None, mounts.notes, unprivileged=True))
    return mounts


def _overlay(plan: RunPlan) -> int:
    require_layers(plan.root.layers)
    with suppress(PermissionError):  # an owner that is not mapped
        match_root(plan, f"{plan.root.writable_host_path}/upper")
    writable = plan.root.writable_host_path
    try:
        directories = {"upperdir": f"{writable}/upper", "workdir": f"{writable}/work"}
        return overlay.from_paths(overlay.Kind(unprivileged=True), plan.root.lower_host_paths, directories)
    except OSError as error:
        raise Unavailable(
            "overlay cannot be mounted in a user namespace", os.strerror(error.errno or 0), "use --isolation chroot, or a kernel of 5.11 or newer"
        ) from error
