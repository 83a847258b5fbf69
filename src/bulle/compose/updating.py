"""``update`` and ``rollback``: another image for the replicas of a service, or what they were before, exchanged without a pause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.compose import labels, record
from bulle.compose.actual import containers_of
from bulle.compose.app_images import Builder, ensure_images
from bulle.compose.checking import check_options
from bulle.compose.foundations import Report
from bulle.compose.hashing import service_hash
from bulle.compose.model import Service
from bulle.compose.replicas import Replicas, by_service
from bulle.compose.rollout import START_FIRST, RolledBack, Rollout, at_image
from bulle.compose.service_parts import UpdateConfig
from bulle.errors import Conflict, NotFound

if TYPE_CHECKING:
    from bulle.engine import Engine


def update(engine: Engine, app: record.App, name: str, image: str, report: Report, builder: Builder) -> None:
    """Give a service another image, replica after replica. Raises Conflict where that failed; the app is locked meanwhile."""
    old = _service(app, name)
    new = replace(old, image=image, build=None)
    config = (new.deploy and new.deploy.update_config) or START_FIRST
    choices = replace(app.choices, images={**app.choices.images, name: image})
    _exchange(engine, app, old, new, replace(app, choices=choices), config, report, builder)


def rollback(engine: Engine, app: record.App, names: Sequence[str], report: Report, builder: Builder) -> None:
    """Bring services (none: all that changed) back to what they were before their last change."""
    for name in names or sorted(app.previous):
        old = _service(app, name)
        if name not in app.previous:
            raise Conflict(f"service {name} cannot be rolled back", "it is as it was first started", "")
        new = app.previous[name]
        forward = (old.deploy and old.deploy.update_config) or START_FIRST
        config = (old.deploy and old.deploy.rollback_config) or replace(forward, failure_action="pause")
        images = {service: one for service, one in app.choices.images.items() if service != name}
        project = replace(app.project, services={**app.project.services, name: new})
        app = replace(app, project=project, choices=replace(app.choices, images=images))
        app = _exchange(engine, app, old, new, app, config, report, builder)


def _service(app: record.App, name: str) -> Service:
    if name not in app.project.services:
        raise NotFound(f"no such service: {name}", f"the app has {', '.join(sorted(app.project.services))}", "")
    return app.service(name)


def _exchange(
    engine: Engine, app: record.App, old: Service, new: Service, wanted: record.App, config: UpdateConfig, report: Report, builder: Builder
) -> record.App:
    """Exchange all replicas that are not as ``new`` says; ``wanted`` is kept first, and taken back with them."""
    name, project = new.name, wanted.project
    new = record.effective(new, replace(wanted.choices, images={}))
    found = by_service(containers_of(engine, project.name))
    before = {one.image_id for one in found.get(name, [])}
    images = ensure_images(engine, project, [new], report, builder=builder)
    replicas = Replicas(engine, project, report, images, found, from_record=True)
    check_options(replicas, [new])
    kept = replace(wanted, previous={**app.previous, name: old})
    record.write(engine, kept)
    digest = service_hash(new)
    outdated = [one for one in replicas.of(name) if one.options.labels.get(labels.CONFIG_HASH) != digest or one.image_id != images[name]]
    try:
        Rollout(replicas, new, config, at_image(replicas, old, before)).run(outdated)
    except RolledBack:
        record.write(engine, app)
        raise
    return kept
