"""The store: images, their layers and blobs, below one ``BULLE_HOME``."""

from bulle.store.artifacts import Artifact
from bulle.store.images import Image, ImageStore
from bulle.store.indexes import ImageIndex
from bulle.store.layers import Layer, LayerStore
from bulle.store.limits import Limits
from bulle.store.store import Store

__all__ = ["Artifact", "Image", "ImageIndex", "ImageStore", "Layer", "LayerStore", "Limits", "Store"]
