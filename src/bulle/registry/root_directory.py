"""``dir:DIR``: a directory of the host that holds a root file system, as an image of one layer.

The directory is read, never changed. The image is named after it, runs a shell, and is made for this machine's processor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bulle.errors import BulleError, CorruptImage, InvalidInput, NotFound
from bulle.model.image import ExecutionConfig
from bulle.registry.generated import DEFAULT_PATH, image_of_layer
from bulle.registry.oci_layout import name_from_path
from bulle.registry.transport import RemoteImage, Source, SourceRequest
from bulle.registry.tree import tar_stream


class RootDirectory(Source):
    """The one image of a directory. Raises NotFound, InvalidInput, CorruptImage (an empty directory)."""

    def __init__(self, request: SourceRequest) -> None:
        self._request = request
        self._path = Path(request.text)
        if not self._path.exists():
            raise NotFound(f"no such directory: {self._path}")
        if not self._path.is_dir():
            raise InvalidInput(f"{self._path} is not a directory", "", "archives have the prefix docker-archive: or oci-archive:")

    def images(self) -> Iterator[RemoteImage]:
        try:
            empty = not os.listdir(self._path)
        except OSError as error:
            raise BulleError(f"cannot read {self._path}", error.strerror or str(error)) from None
        if empty:
            raise CorruptImage(f"{self._path} is not a root directory", "it is empty")
        yield image_of_layer(
            partial(tar_stream, self._path),
            what=str(self._path),
            platform=self._request.platform,
            execution=ExecutionConfig(env=(DEFAULT_PATH,), cmd=(self._shell(),)),
            created=int(self._path.stat().st_mtime),
            created_by=f"dir:{self._path.absolute().name}",
            reference=name_from_path(self._path, ""),
            progress=self._request.configuration.progress,
        )

    def _shell(self) -> str:
        for shell in ("bin/bash", "usr/bin/bash"):
            if os.path.lexists(self._path / shell):
                return "/" + shell
        return "/bin/sh"
