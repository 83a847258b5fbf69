"""Removing a container: its row first, so that it is gone for everyone, then its directory."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from bulle.linux import user_namespace
from bulle.model.run_plan import RunPlan
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database


def forget(database: Database, plan: RunPlan) -> None:
    """Delete the row: name, id range and leases are free."""
    ContainerRecords(database).delete(plan.container_id)


def remove_directory(plan: RunPlan) -> None:
    """Remove the container's host directory; harmless to repeat, and done by gc for directories without a row."""
    directory = Path(plan.state_host_path)
    if os.geteuid() != 0:
        # Files of the container's other users belong to subordinate ids: only root of such a namespace may remove them.
        mappings = (plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings)
        if mappings[0]:
            user_namespace.call(*mappings, lambda: shutil.rmtree(directory, ignore_errors=True))
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
