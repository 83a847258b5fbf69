"""The third way: the layer extracted to a directory, where neither EROFS nor loop devices can be had (old kernels, ordinary users)."""

from __future__ import annotations

from bulle.model.run_plan import LayerMount
from bulle.store.backend import Kind, LayerBackend, LayerFiles, LayerProbe


class DirectoryBackend(LayerBackend):
    """Extraction, once for each variant of a layer."""

    kind: Kind = "directory"

    def probe(self, trial: LayerFiles) -> LayerProbe:
        """Extract the trial layer."""
        return LayerProbe(False, "not written yet")

    def plan(self, files: LayerFiles) -> LayerMount:
        """The directory as a value; extracts it when it is not there."""
        return LayerMount(self.kind, str(files.diff_id), str(files.tree))

    def mount(self, layer: LayerMount) -> None:
        """Nothing to mount."""
