"""What a tree in its long forms means without saying so: the default network, implied dependencies, names, defaults of ports and builds."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from bulle.compose.document import Tree
from bulle.compose.relative_paths import trees


def fill_in(tree: Tree) -> None:
    """Defaults of single keys, in place."""
    for service in trees(tree.get("services")):
        build = service.get("build")
        if isinstance(build, Tree):
            build.setdefault("context", ".")
        for secret in trees(service.get("secrets")):
            secret.setdefault("target", f"/run/secrets/{secret.get('source')}")
        for port in trees(service.get("ports")):
            port.setdefault("protocol", "tcp")
            port.setdefault("mode", "ingress")
        for device in _requests(service):
            if "count" not in device and "device_ids" not in device:
                device["count"] = "all"


def _requests(service: Tree) -> list[Tree]:
    """Everything that asks for devices of a kind."""
    node: Any = service
    for key in ("deploy", "resources", "reservations", "devices"):
        node = node.get(key) if isinstance(node, dict) else None
    return trees(service.get("gpus")) + trees(node)


def normalize(tree: Tree, project: str, environment: Mapping[str, str]) -> None:
    """What follows from the whole: networks, dependencies, names of resources, in place."""
    _default_network(tree)
    for service in trees(tree.get("services")):
        if service.get("pull_policy") == "if_not_present":
            service["pull_policy"] = "missing"
        if isinstance(build := service.get("build"), Tree):
            _build(build, environment)
        if (said := service.get("environment")) is not None:
            service["environment"] = _resolved(said, environment, keep=True)
        for volume in trees(service.get("volumes")):
            if isinstance(target := volume.get("target"), str):
                volume["target"] = posixpath.normpath(target) if target else "."
        _dependencies(service)
    for section in ("networks", "volumes", "configs", "secrets"):
        _name(tree, section, project)


def _default_network(tree: Tree) -> None:
    used = False
    for service in trees(tree.get("services")):
        if "network_mode" in service:
            continue
        if not service.get("networks"):
            service["networks"] = Tree({"default": None})
        used = used or "default" in service["networks"]
    if used:
        networks = tree.get("networks")
        tree["networks"] = networks if isinstance(networks, Tree) else Tree()
        tree["networks"].setdefault("default", None)


def _build(build: Tree, environment: Mapping[str, str]) -> None:
    if build.get("context") is None:
        build["context"] = "."
    if build.get("dockerfile") is None and build.get("dockerfile_inline") is None:
        build["dockerfile"] = "Dockerfile"
    if "args" in build:
        build["args"] = _resolved(build["args"], environment, keep=False)


def _resolved(said: Any, environment: Mapping[str, str], *, keep: bool) -> Any:
    """Variables without a value get the environment's; those that it has not are kept without one, or dropped."""
    if isinstance(said, Tree):
        found = Tree(places=said.places)
        for key, value in said.items():
            if value is not None or key in environment or keep:
                found[key] = environment.get(key) if value is None else value
        return found
    if isinstance(said, list):
        listed = []
        for one in said:
            if isinstance(one, str) and "=" not in one:
                if one in environment:
                    listed.append(f"{one}={environment[one]}")
                elif keep:
                    listed.append(one)
            else:
                listed.append(one)
        return listed
    return said


def _dependencies(service: Tree) -> None:
    said = service.get("depends_on")
    depends_on = said if isinstance(said, Tree) else Tree()

    def imply(name: str, *, restart: bool) -> None:
        depends_on.setdefault(name, Tree({"condition": "service_started", "restart": restart, "required": True}))

    for link in service.get("links") or ():
        parts = str(link).split(":")
        imply(parts[0] if len(parts) == 2 else str(link), restart=True)
    for key in ("network_mode", "ipc", "pid", "uts", "cgroup"):
        if isinstance(value := service.get(key), str) and value.startswith("service:"):
            imply(value.removeprefix("service:"), restart=True)
    for one in service.get("volumes_from") or ():
        if not str(one).startswith("container:"):
            imply(str(one).partition(":")[0], restart=False)
    if depends_on:
        service["depends_on"] = depends_on


def _name(tree: Tree, section: str, project: str) -> None:
    resources = tree.get(section)
    if not isinstance(resources, Tree):
        return
    for key, one in resources.items():
        resource = one if isinstance(one, Tree) else Tree()
        if resource.get("name") is None:
            resource["name"] = key if resource.get("external") in (True, "true") else f"{project}_{key}"
        resources[key] = resource


def resolve_environment(tree: Tree, environment: Mapping[str, str]) -> None:
    """Variables that a list of a service's environment only names get the values of this environment, which an included file may have to itself."""
    for service in trees(tree.get("services")):
        if isinstance(said := service.get("environment"), list):
            service["environment"] = [
                f"{one}={environment[one]}" if isinstance(one, str) and one in environment else one for one in said if isinstance(one, str)
            ]
