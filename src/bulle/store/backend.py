"""How a stored layer comes to stand at a path: the one interface behind the three ways.

``erofs`` mounts the index with the tar as its device straight from files; ``loop`` does the same through two loop devices; ``directory`` extracts the
layer once. Which one this machine and this user can have is found out by a real trial (:mod:`bulle.store.backends`). A backend keeps no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bulle.model.run_plan import LayerMount

Kind = Literal["erofs", "loop", "directory"]


@dataclass(frozen=True)
class LayerFiles:
    """Where one layer's files are (host paths). ``variant`` is the directory of its index, which depends on the layers below."""

    diff_id: str
    tar: Path
    variant: Path

    @property
    def index(self) -> Path:
        """The EROFS index."""
        return self.variant / "index"

    @property
    def mount_point(self) -> Path:
        """Where the index is mounted."""
        return self.variant / "root"

    @property
    def tree(self) -> Path:
        """Where the layer is extracted."""
        return self.variant / "tree"


@dataclass(frozen=True)
class LayerProbe:
    """Whether a way works here, and if not, why; data, never an exception."""

    usable: bool
    reason: str = ""


class LayerBackend(ABC):
    """One way to show a layer as a directory."""

    kind: Kind

    @abstractmethod
    def probe(self, trial: LayerFiles) -> LayerProbe:
        """Try it on a small real layer that lies where the store lies."""

    def is_ready(self, files: LayerFiles) -> bool:
        """Whether all that a mount needs is there already; asked on the path of ``run``."""
        return True

    def prepare(self, files: LayerFiles, temporary: Path) -> None:
        """Make what a mount needs, in ``temporary`` first (an empty directory of the same file system). Raises OSError, BulleError."""
        raise NotImplementedError(f"layers as {self.kind} are always ready")

    @abstractmethod
    def plan(self, files: LayerFiles) -> LayerMount:
        """The mount to perform, as a value."""

    @abstractmethod
    def mount(self, layer: LayerMount) -> None:
        """Perform it in the caller's mount namespace; the caller has made sure that it is not there yet. Raises OSError."""
