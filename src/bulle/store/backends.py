"""Which of the three ways to show a layer works here: found out by trying, remembered for as long as the machine and the user stay the same.

Called by the layer store before it plans. The answer is kept in ``cache/layer-backend`` with everything that it depends on: the boot, the user
namespace, the effective user and capabilities, and the file system that holds the store. Kernel versions are never compared.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

import msgspec

from bulle.errors import Unavailable
from bulle.store.backend import Kind, LayerBackend, LayerFiles, LayerProbe
from bulle.store.directory import DirectoryBackend
from bulle.store.erofs import write_index
from bulle.store.failures import storage_errors
from bulle.store.mounting import TRIAL_CONTENT, TRIAL_NAME, ErofsBackend, LoopBackend
from bulle.store.tar import Entry
from bulle.store.tree import Tree
from bulle.store.workspace import Workspace

BACKENDS: dict[Kind, LayerBackend] = {backend.kind: backend for backend in (ErofsBackend(), LoopBackend(), DirectoryBackend())}
"""In order of preference."""

_chosen: dict[tuple[str, str], Kind] = {}


class _Remembered(msgspec.Struct):
    circumstances: str
    chosen: Kind
    reasons: dict[str, str]


def choose_backend(home: Path, workspace: Workspace) -> LayerBackend:
    """The best way that works for this user on this home. Raises Unavailable when none does."""
    key = (str(home), _circumstances(home))
    kind = _chosen.get(key)
    if kind is None:
        kind = _chosen[key] = _remembered(home, workspace, key[1]).chosen
    return BACKENDS[kind]


def probe_backends(home: Path, workspace: Workspace) -> dict[Kind, LayerProbe]:
    """What a trial of each way gives now, the first that works last; ways after it are not tried. For doctor."""
    with storage_errors(f"the store in {home} could not be written"):
        directory = workspace.directory()
        try:
            trial = _make_trial(directory)
            found: dict[Kind, LayerProbe] = {}
            for kind, backend in BACKENDS.items():
                found[kind] = backend.probe(trial)
                if found[kind].usable:
                    break
            return found
        finally:
            shutil.rmtree(directory)


def _remembered(home: Path, workspace: Workspace, circumstances: str) -> _Remembered:
    path = home / "cache" / "layer-backend"
    try:
        remembered = msgspec.json.decode(path.read_bytes(), type=_Remembered)
        if remembered.circumstances == circumstances:
            return remembered
    except (OSError, msgspec.DecodeError):
        pass
    found = probe_backends(home, workspace)
    chosen = next((kind for kind, probe in found.items() if probe.usable), None)
    reasons = {str(kind): probe.reason for kind, probe in found.items() if not probe.usable}
    if chosen is None:
        why = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items())
        raise Unavailable("layers cannot be shown on this machine", why, "see `bulle doctor`")
    remembered = _Remembered(circumstances, chosen, reasons)
    with storage_errors(f"the store in {home} could not be written"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = workspace.directory() / "layer-backend"
        temporary.write_bytes(msgspec.json.encode(remembered))
        temporary.replace(path)
        temporary.parent.rmdir()
    return remembered


def _make_trial(directory: Path) -> LayerFiles:
    files = LayerFiles("sha256:trial", directory / "tar", directory / "plain")
    files.mount_point.mkdir(parents=True)
    content = TRIAL_CONTENT.ljust(1024, b"\0")
    files.tar.write_bytes(bytes(512) + content)
    tree = Tree()
    tree.add(Entry(b"0", TRIAL_NAME.encode(), b"", 0o644, 0, 0, len(TRIAL_CONTENT), 512, 0, 0, (0, 0), None, None))
    with files.index.open("xb") as index:
        write_index(tree, bytes(512) + content, index)
    return files


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _circumstances(home: Path) -> str:
    try:
        device = (home / "layers").stat().st_dev
    except FileNotFoundError:
        device = home.stat().st_dev
    return f"{_boot_id()} {os.stat('/proc/self/ns/user').st_ino} {os.geteuid()} {_capabilities()} {device}"


def _capabilities() -> str:
    with Path("/proc/self/status").open() as status:
        return next((line.split()[1] for line in status if line.startswith("CapEff:")), "")
