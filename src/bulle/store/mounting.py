"""The two ways to mount a layer's index with its tar: file-backed, and through loop devices.

Called through the interface in :mod:`bulle.store.backend`. Options go through fsconfig(2), so a comma in a path is only a comma. The
superblock is made first and attached last: a failure leaves nothing. Kernel documentation, filesystems/erofs.rst.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from bulle.linux import loop_device
from bulle.linux.mount import MOUNT_ATTR_RDONLY, attach_mount, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen
from bulle.model.run_plan import LayerMount
from bulle.store.backend import Kind, LayerBackend, LayerFiles, LayerProbe

TRIAL_NAME = "trial"
TRIAL_CONTENT = b"bulle" * 200


class ErofsBackend(LayerBackend):
    """File-backed: the kernel reads index and tar as files."""

    kind: Kind = "erofs"

    def probe(self, trial: LayerFiles) -> LayerProbe:
        """Make a detached mount of the trial layer and read a file through it."""
        return _probe(self, trial)

    def plan(self, files: LayerFiles) -> LayerMount:
        """The mount as a value; prepares nothing."""
        return LayerMount(self.kind, str(files.diff_id), str(files.mount_point), str(files.index), str(files.tar))

    def mount(self, layer: LayerMount) -> None:
        """Mount it at ``host_path``."""
        with ExitStack() as cleanup:
            detached = self.detached(layer, cleanup)
            attach_mount(detached, layer.host_path)

    def detached(self, layer: LayerMount, cleanup: ExitStack) -> int:
        """A descriptor for the mount, not attached anywhere yet; closed by ``cleanup``."""
        return _detached(layer.index_path, layer.tar_path, cleanup)


class LoopBackend(ErofsBackend):
    """Through two loop devices, which the kernel frees with the mount: for older kernels, and for stores on tmpfs or overlayfs."""

    kind: Kind = "loop"

    def detached(self, layer: LayerMount, cleanup: ExitStack) -> int:
        """As for files, with the loop devices kept open until the mount holds them."""
        paths = []
        for path in (layer.index_path, layer.tar_path):
            fd, device = loop_device.attach(path)
            cleanup.callback(os.close, fd)
            paths.append(device)
        return _detached(paths[0], paths[1], cleanup)


def _detached(index: str, tar: str, cleanup: ExitStack) -> int:
    context = fsopen("erofs")
    cleanup.callback(os.close, context)
    try:
        fsconfig_set_flag(context, "ro")
        fsconfig_set_string(context, "source", index)
        fsconfig_set_string(context, "device", tar)
        fsconfig_create(context)
    except OSError as error:
        said = _messages(context)
        if said:
            raise OSError(error.errno, f"{error.strerror} ({said})", index) from error
        raise
    detached = fsmount(context, MOUNT_ATTR_RDONLY)
    cleanup.callback(os.close, detached)
    return detached


def _messages(context: int) -> str:
    """What the kernel logged into the context; its letter for the level is dropped."""
    said = []
    try:
        while line := os.read(context, 1024):
            said.append(line.decode(errors="replace")[2:].strip())
    except OSError:
        pass
    return "; ".join(said)


def _probe(backend: ErofsBackend, trial: LayerFiles) -> LayerProbe:
    try:
        with ExitStack() as cleanup:
            detached = backend.detached(backend.plan(trial), cleanup)
            fd = os.open(TRIAL_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=detached)
            cleanup.callback(os.close, fd)
            if os.read(fd, len(TRIAL_CONTENT) + 1) != TRIAL_CONTENT:
                return LayerProbe(False, "the kernel reads wrong bytes through the index")
    except OSError as error:
        return LayerProbe(False, error.strerror or str(error))
    return LayerProbe(True)


def is_mounted(path: Path | str, device: int) -> bool:
    """Whether something stands on the mount point ``path`` of a file system whose device number is ``device``."""
    return os.stat(path).st_dev != device
