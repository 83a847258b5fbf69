"""What a container wrote, as a layer of the store: the step that ``commit`` and ``build`` share."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bulle.engine.upper_layer import upper_of
from bulle.errors import Unsupported
from bulle.isolation.root_filesystem import identity_files
from bulle.linux import user_namespace
from bulle.model.digest import Digest
from bulle.model.run_plan import RunPlan
from bulle.store import Layer, Store

NO_CHANGES = Digest.of(bytes(1024))
"""The layer that has no member."""

_CHUNK_BYTES = 1 << 20


def keep_changes(store: Store, plan: RunPlan, *, latest_ns: int | None = None) -> Layer:
    """Keep what the container of this plan changed in its root filesystem as a layer of ``store``, to stand on the plan's layers.

    No file's time is later than ``latest_ns``. Within :meth:`Store.receiving`. Raises Unsupported where the root is a copy, not an overlay.
    """
    from bulle.registry.changes import changes_stream  # only these verbs make layers

    if (Path(plan.root.writable_host_path) / "copy").exists():
        raise Unsupported("layers of its changes, since its root is a copy of the image here", plan.isolation, "use a user who may mount")
    with store.layers.view([Digest(layer.diff_id) for layer in plan.root.layers]) as below:
        node = below.lookup(())
    root = (stat.S_IMODE(node.mode), node.uid, node.gid) if node is not None else None
    if os.geteuid() == 0 or plan.guest is not None:
        with upper_of(store.home, plan) as shown:
            return store.layers.add(changes_stream(shown, stubs=stubs(plan), root=root, latest_ns=latest_ns))
    upper = Path(plan.root.writable_host_path) / "upper"
    # Files of the container's other users belong to subordinate ids, whose names inside only that user namespace knows.
    temporary = store.temporary_directory()
    target = temporary / "changes"
    try:
        with target.open("xb") as out:

            def write() -> None:
                for chunk in changes_stream(upper, stubs=stubs(plan), root=root, latest_ns=latest_ns):
                    out.write(chunk)
                out.flush()

            user_namespace.call(plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings, write)
        return store.layers.add(_chunks(target))
    finally:
        target.unlink(missing_ok=True)
        temporary.rmdir()


def stubs(plan: RunPlan) -> set[str]:
    """Container paths that only exist in the container's writable layer so that something could be mounted there."""
    places = {"dev", "proc", "sys", *(f"etc/{os.path.basename(path)}" for path in identity_files(plan))}
    return places | {path.strip("/") for path in (*(mount.container_path for mount in plan.mounts), *plan.root.host_binds)}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
