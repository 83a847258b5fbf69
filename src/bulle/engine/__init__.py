"""Use cases and the public Python interface."""

from bulle.engine.container import Container
from bulle.engine.containers import Containers
from bulle.engine.doctor import Finding
from bulle.engine.engine import Engine
from bulle.engine.images import Images
from bulle.store import Image

__all__ = ["Container", "Containers", "Engine", "Finding", "Image", "Images"]
