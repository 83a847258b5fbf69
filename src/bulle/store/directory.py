"""The third way: the layer extracted to a directory, where neither EROFS nor loop devices can be had (old kernels, ordinary users).

An ordinary user's layers are extracted inside a user namespace with her subordinate ids, so that owners are kept (33 becomes 100032 on the
disk); with one id alone, everything is hers. The containers that stand on them use the same map.
"""

from __future__ import annotations

import os
from pathlib import Path

from bulle.errors import BulleError
from bulle.linux import user_namespace
from bulle.linux.libc import check, libc
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.model.run_plan import LayerMount
from bulle.store.backend import Kind, LayerBackend, LayerFiles, LayerProbe
from bulle.store.extraction import Extraction
from bulle.store.failures import storage_errors
from bulle.store.mounting import TRIAL_CONTENT, TRIAL_NAME


class DirectoryBackend(LayerBackend):
    """Extraction, once for each variant of a layer."""

    kind: Kind = "directory"

    def probe(self, trial: LayerFiles) -> LayerProbe:
        """Extract the trial layer."""
        temporary = trial.variant / "trial"
        try:
            temporary.mkdir()
            self.prepare(trial, temporary)
            if (trial.tree / TRIAL_NAME).read_bytes() != TRIAL_CONTENT:
                return LayerProbe(False, "extracted files have the wrong content")
        except (BulleError, OSError) as error:
            return LayerProbe(False, str(error))
        return LayerProbe(True)

    def is_ready(self, files: LayerFiles) -> bool:
        """Whether the directory is there; it gets its name when it is complete."""
        return files.tree.exists()

    def prepare(self, files: LayerFiles, temporary: Path) -> None:
        """Extract the layer, unless somebody else has meanwhile."""
        target = temporary / "tree"
        target.mkdir(mode=0o700)
        users, groups = rootless_mappings()
        keep_owners = os.geteuid() == 0 or len(users) > 1

        def extract() -> None:
            with storage_errors(f"the layer {files.diff_id.partition(':')[2][:12]} could not be extracted"):
                Extraction(files.index, files.tar, target, keep_owners).run()
                _sync(target)
                try:
                    target.rename(files.tree)
                except OSError:
                    if not files.tree.exists():
                        raise

        if os.geteuid() == 0:
            extract()
        else:
            user_namespace.call(users, groups, extract)

    def plan(self, files: LayerFiles) -> LayerMount:
        """The directory as a value."""
        return LayerMount(self.kind, str(files.diff_id), str(files.tree))

    def mount(self, layer: LayerMount) -> None:
        """Nothing to mount."""


def _sync(directory: Path) -> None:
    """One syncfs(2) instead of an fsync for each of ten thousand files."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check(libc.syncfs(fd), "syncfs", directory)
    finally:
        os.close(fd)
