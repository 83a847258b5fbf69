"""The volumes of a pod and where its container mounts them."""

from __future__ import annotations

from bulle.kube.names import Document, dns_labels
from bulle.kube.report import Path, Report


class Mounts:
    """Collects them; a volume that is mounted twice is one volume."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._volumes: dict[str, Document] = {}
        self._mounts: list[tuple[str, Document]] = []

    def add(self, name: str, volume: Document, mount: Document, path: Path) -> None:
        """Mount the volume that is known by ``name`` in this pod; ``path`` is where the file says it."""
        target = mount["mountPath"]
        if ":" in target:
            self._report.refuse("Kubernetes mounts nothing on a path with a colon", *path)
        if any(other["mountPath"] == target for _, other in self._mounts):
            self._report.refuse(f"something else is mounted on {target} already", *path)
        if self._volumes.setdefault(name, volume) != volume:
            name = f"{name} {len(self._volumes)}"  # the same content with another mode
            self._volumes[name] = volume
        self._mounts.append((name, mount))

    def parts(self) -> tuple[list[Document], list[Document]]:
        """The pod's ``volumes`` and the container's ``volumeMounts``."""
        names = dns_labels(self._volumes)
        volumes = [{"name": names[name], **volume} for name, volume in self._volumes.items()]
        return volumes, [{"name": names[name], **mount} for name, mount in self._mounts]
