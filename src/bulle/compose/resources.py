"""What has to be true of single parts of a tree in long forms: secrets and configs with one source, external volumes, requests for devices."""

from __future__ import annotations

from bulle.compose.document import Tree, refusal
from bulle.compose.model import Place
from bulle.compose.relative_paths import trees

_NOWHERE = Place("", 0)


def check_resources(tree: Tree) -> None:
    """Raises InvalidFile."""
    for section, sources in (("secrets", ("file", "environment")), ("configs", ("file", "environment", "content"))):
        if isinstance(resources := tree.get(section), Tree):
            for name, one in resources.items():
                if isinstance(one, Tree):
                    _check_source(one, sources, f"{section}.{name}", resources.places.get(name, _NOWHERE))
    if isinstance(volumes := tree.get("volumes"), Tree):
        for name, one in volumes.items():
            if isinstance(one, Tree) and one.get("external") is True:
                for key in one:
                    if key not in ("name", "external") and not key.startswith("x-"):
                        raise refusal(
                            one.places.get(key, volumes.places.get(name, _NOWHERE)), f"volumes.{name} is external and says {key}", "",
                            "of what exists already only the name is said",
                        )  # fmt: skip
    for service in trees(tree.get("services")):
        _check_service(service)


def _check_source(one: Tree, sources: tuple[str, ...], what: str, place: Place) -> None:
    said = [key for key in sources if key in one]
    if len(said) > 1:
        raise refusal(one.places.get(said[1], place), f"{what} says {' and '.join(said)}", "", "say one of them")
    if not said and "driver" not in one and "external" not in one:
        raise refusal(place, f"{what} says none of {', '.join(sources)}", "", "say where it comes from, or external: true")


def _check_service(service: Tree) -> None:
    develop = service.get("develop")
    if isinstance(develop, Tree):
        for rule in trees(develop.get("watch")):
            if rule.get("path") == "":
                raise refusal(rule.places.get("path", _NOWHERE), "develop.watch: path is empty")
    deploy = service.get("deploy")
    for key in ("resources", "reservations"):
        deploy = deploy.get(key) if isinstance(deploy, Tree) else None
    for request in trees(service.get("gpus")) + trees(deploy.get("devices") if isinstance(deploy, Tree) else None):
        if "count" in request and "device_ids" in request:
            raise refusal(request.places.get("count", _NOWHERE), "a request for devices says count and device_ids", "", "say one of them")
