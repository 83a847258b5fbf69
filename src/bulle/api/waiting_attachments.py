"""Who is attached to a container that does not run yet: ``docker run`` attaches first, and then starts, so that it misses nothing."""

from __future__ import annotations

from bulle.api.carrying import Viewer


class WaitingAttachments:
    """Viewers by the container's id, until a start takes them."""

    def __init__(self) -> None:
        self._viewers: dict[str, list[Viewer]] = {}

    def add(self, container_id: str, viewer: Viewer) -> None:
        """Wait for the next start."""
        self._viewers.setdefault(container_id, []).append(viewer)

    def take(self, container_id: str) -> list[Viewer]:
        """All who wait for this one."""
        return self._viewers.pop(container_id, [])

    def take_one(self, container_id: str, viewer: Viewer) -> bool:
        """This one, unless a start has it already."""
        waiting = self._viewers.get(container_id, [])
        if viewer not in waiting:
            return False
        waiting.remove(viewer)
        if not waiting:
            del self._viewers[container_id]
        return True
