"""Which path is answered by what: the whole table."""

from __future__ import annotations

from bulle.api import builds, container_files, container_streams, containers, exec_requests, images, metrics, networks, system, volumes
from bulle.api.routing import Route

ROUTES: tuple[Route, ...] = (
    *system.ROUTES,
    *containers.ROUTES,
    *container_streams.ROUTES,
    *container_files.ROUTES,
    *exec_requests.ROUTES,
    *images.ROUTES,
    *builds.ROUTES,
    *networks.ROUTES,
    *volumes.ROUTES,
    *metrics.ROUTES,
)
