"""Giving a container another name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine import keeping, names
from bulle.errors import InvalidInput, NotFound
from bulle.network.protocol import Rename
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database
from bulle.records.events import container_attributes, describe_container, publish_container

if TYPE_CHECKING:
    from bulle.engine.container import Container


def rename(home: Path, database: Database, container: Container, name: str) -> None:
    """See :meth:`~bulle.engine.container.Container.rename`; others find it by its new name at once."""
    names.check(name)
    if name == container.name:
        raise InvalidInput("Renaming a container with the same name as its current name", "", "choose another")
    records = ContainerRecords(database)
    records.rename(container.id, name)
    before, container.name = container.name, name
    attributes = container_attributes(container.directory)
    if attributes is not None:
        describe_container(container.directory, {**attributes, "name": name})
        publish_container(container.directory, "rename", oldName=f"/{before}")
    if container.plan.network.mode == "own":
        with suppress(NotFound):  # where it does not run
            keeping.tell(home, Rename(container.id, name))
