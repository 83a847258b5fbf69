"""The root filesystem of an ordinary user's container, made inside its own user namespace.

There the kernel allows overlay with ``userxattr`` over directories (no EROFS, no id-mapped mounts): layers were extracted with mapped ids, and
everything here happens as the namespace's root. Without overlay in user namespaces (kernels before 5.11) it says so. overlayfs documentation, "User
xattr"
"""

from __future__ import annotations

import os
from contextlib import suppress

from bulle.errors import InvalidInput, Unavailable
from bulle.isolation import host_mounts
from bulle.isolation.root_filesystem import DetachedMounts, identity_files, match_root
from bulle.linux import mount
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
    if not plan.root.layers:
        raise InvalidInput("the image has no layers", "an empty root filesystem holds nothing to run", "use an image with at least one layer")
    with suppress(PermissionError):  # an owner that is not mapped
        match_root(plan, f"{plan.root.writable_host_path}/upper")
    context = mount.fsopen("overlay")
    try:
        mount.fsconfig_set_string(context, "source", "overlay")
        # userxattr by itself means redirect_dir=nofollow and metacopy=off, and refuses to hear it differently.
        mount.fsconfig_set_flag(context, "userxattr")
        mount.fsconfig_set_string(context, "index", "off")
        lowers = plan.root.lower_host_paths
        upper, work = f"{plan.root.writable_host_path}/upper", f"{plan.root.writable_host_path}/work"
        try:
            for lower in lowers:
                mount.fsconfig_set_string(context, "lowerdir+", lower)
        except OSError:  # kernels before 6.7
            mount.fsconfig_set_string(context, "lowerdir", ":".join(path.replace(":", "\\:") for path in lowers))
        mount.fsconfig_set_string(context, "upperdir", upper)
        mount.fsconfig_set_string(context, "workdir", work)
        mount.fsconfig_create(context)
        return mount.fsmount(context)
    except OSError as error:
        raise Unavailable(
            "overlay cannot be mounted in a user namespace", os.strerror(error.errno or 0), "use --isolation chroot, or a kernel of 5.11 or newer"
        ) from error
    finally:
        os.close(context)
