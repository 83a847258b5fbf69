"""Kernels of guests that images carry: ``--kernel image:NAME`` boots what an image has in /boot, with what it has in /lib/modules.

They are copied once into a directory of ours, named by the image's digest, which the driver takes as any other with a kernel and its modules.
"""

from __future__ import annotations

import os
from pathlib import Path

from bulle.engine import volume_files
from bulle.errors import InvalidInput, NotFound, StorageFull
from bulle.store import Store
from bulle.store.images import Image
from bulle.store.merged_view import MergedView, Place
from bulle.store.workspace import remove_tree

PREFIX = "image:"
_PLACES = (b"boot", b"lib/modules", b"usr/lib/modules")


def kept(home: Path, store: Store, image: Image, name: str) -> str:
    """The directory (host path) with an image's kernel and modules. Raises NotFound where it has no kernel, StorageFull."""
    directory = home / "cache" / "kernels" / f"image-{image.id.partition(':')[2]}"
    if directory.is_dir():
        return str(directory)
    staged = store.temporary_directory()
    try:
        with store.layers.view(image.layers) as view:
            # By where they are: /lib may be a link.
            found = {place.path: place for path in _PLACES if (place := _directory(view, path)) is not None}
            if not any(entry.path[-1].startswith(b"vmlinu") for place in found.values() for entry in view.children(place)):
                raise NotFound(f"image {name} has no kernel", "there is no /boot/vmlinuz-RELEASE in it", "name another image, or a file")
            for place in found.values():
                target = Path(os.fsdecode(b"/".join((os.fsencode(staged), *place.path))))
                target.mkdir(parents=True)
                _write(view, place, target)
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged.rename(directory)
    except OSError as error:
        if not directory.is_dir():  # somebody else was quicker
            raise StorageFull(f"the kernel of image {name} cannot be kept", os.strerror(error.errno or 0), "free some space") from error
    finally:
        if staged.exists():
            remove_tree(staged)
    return str(directory)


def _directory(view: MergedView, path: bytes) -> Place | None:
    try:
        place = view.resolve(path).place
    except InvalidInput:
        return None
    return place if place is not None and place.is_directory else None


def _write(view: MergedView, place: Place, target: Path) -> None:
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        volume_files.as_container_root(lambda: volume_files.write_image(view, place, descriptor))
    finally:
        os.close(descriptor)
