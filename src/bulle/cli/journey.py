"""A command line as it is said on another machine, with the files that go there and come back. Made by ``remote_files``, travelled by ``remote``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO

from bulle.errors import NotFound
from bulle.fleet.carrying import WHOLE, Keep, Upload


@dataclass
class Journey:
    """A command line as it is said there: in ``words`` NUL stands for the directory of what is carried.

    ``reads`` says whether standard input is the verb's; ``input_path`` and ``output_path`` are files here that take its place, and standard output's.
    """

    words: list[str] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    brought: dict[str, str] = field(default_factory=dict)
    reads: bool = False
    input_path: str = ""
    output_path: str = ""
    is_here: bool = False
    """Whether the verb only reads files of this machine, and so runs here."""

    def upload(self, path: str, name: str = "", keep: Keep | None = None) -> str:
        """Carry a file or directory of this machine; returns its path there."""
        if not os.path.lexists(path):
            raise NotFound(f"lstat {path}: no such file or directory")
        name = f"in/{len(self.uploads)}/{name or os.path.basename(os.path.abspath(path))}"
        self.uploads.append(Upload(name, os.path.abspath(path), keep=keep))
        return f"\0/{name}"

    def upload_text(self, lines: Sequence[str]) -> str:
        """Carry a file of these lines; returns its path there."""
        name = f"in/{len(self.uploads)}/lines"
        self.uploads.append(Upload(name, content=os.fsencode("".join(f"{line}\n" for line in lines))))
        return f"\0/{name}"

    def bring(self, path: str, *, directory: bool = False) -> str:
        """Bring a file or directory back when the verb has ended well; returns the path there that it writes to."""
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise NotFound(f"invalid output path: directory {os.path.dirname(path)!r} does not exist")
        number = str(len(self.uploads))
        self.brought[number] = os.path.abspath(path) + ("/" if directory else "")
        place = f"out/{number}/{WHOLE}" if directory else f"out/{number}"
        self.uploads.append(Upload(place))
        return f"\0/{place}" if directory else f"\0/{place}/{os.path.basename(os.path.abspath(path))}"

    def output(self) -> AbstractContextManager[BinaryIO]:
        """The file that takes standard output's place; it appears when it is whole."""
        from bulle.engine.output_file import output_file

        return output_file(self.output_path)


def path_and_tag(text: str) -> tuple[str, str, str]:
    """A transport's path, and what follows it: a path may hold colons, a name behind it too."""
    if os.path.exists(text):
        return text, "", ""
    path, colon, tag = text.partition(":")
    return path, colon, tag
