"""``bulle compose config``: what the files of an app come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.option_types import Suggestion, Text
from bulle.cli.session import note, printable, write
from bulle.cli.verb import verb
from bulle.errors import BulleError, InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.compose.loading import LoadRequest
    from bulle.compose.model import Project, Service


@verb("config", "[SERVICE...]")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("--format", type=Suggestion("string", "yaml", "json", "kubernetes"), default="yaml", help="Format the output (yaml, json, kubernetes)")
@click.option("--environment", is_flag=True, help="Print environment used for interpolation")
@click.option("--hash", type=Text(), help="Print the service config hash, one per line")
@click.option("--images", is_flag=True, help="Print the image names, one per line")
@click.option("--lock-image-digests", is_flag=True, help="Produces an override file with image digests")
@click.option("--networks", is_flag=True, help="Print the network names, one per line")
@click.option("--no-consistency", is_flag=True, help="Don't check model consistency")
@click.option("--no-env-resolution", is_flag=True, help="Don't resolve service env files")
@click.option("--no-interpolate", is_flag=True, help="Don't interpolate environment variables")
@click.option("--no-normalize", is_flag=True, help="Don't normalize compose model")
@click.option("--no-path-resolution", is_flag=True, help="Don't resolve file paths")
@click.option("-o", "--output", type=Text(), help="Save to file (default to stdout)")
@click.option("--profiles", is_flag=True, help="Print the profile names, one per line")
@click.option("-q", "--quiet", is_flag=True, help="Only validate the configuration, don't print anything")
@click.option("--resolve-image-digests", is_flag=True, help="Pin image tags to digests")
@click.option("--services", "service_names", is_flag=True, help="Print the service names, one per line")
@click.option("--variables", is_flag=True, help="Print model variables and default values")
@click.option("--volumes", is_flag=True, help="Print the volume names, one per line")
@pass_app
def config(app: App, services: Sequence[str], **flags: Any) -> int:
    """Parse, resolve and render compose file in canonical format."""
    request = _request(app, services, flags)
    if flags["variables"]:
        _print(_variables(request, as_json=flags["format"] == "json"), flags)
        return 0
    lists = _lists(app, flags)
    if lists is not None:
        _print("".join(f"{line}\n" for line in lists(_loaded(app, request), services)), flags)
        return 0
    _print(_rendered(app, request, services, flags), flags)
    return 0


def _request(app: App, services: Sequence[str], flags: dict[str, Any]) -> LoadRequest:
    from bulle.compose.loading import LoadRequest

    said = app.flags
    return LoadRequest(
        files=tuple(said.file), project_directory=said.project_directory, project_name=said.project_name, profiles=tuple(said.profile),
        env_files=tuple(said.env_file), services=tuple(services), no_interpolate=flags["no_interpolate"] or flags["variables"],
        no_normalize=flags["no_normalize"] or said.compatibility, no_path_resolution=flags["no_path_resolution"],
        no_env_resolution=flags["no_env_resolution"], no_consistency=flags["no_consistency"],
    )  # fmt: skip


def _loaded(app: App, request: LoadRequest) -> Project:
    from bulle.compose.loading import load

    project = load(request)
    for one in project.notes:
        note(f"WARNING: {printable(str(one))}")
    return project


def _print(text: str, flags: dict[str, Any]) -> None:
    if flags["quiet"]:
        return
    if not flags["output"]:
        write(text)
        return
    try:
        with open(flags["output"], "w", encoding="utf-8", errors="surrogateescape") as opened:
            opened.write(text)
    except OSError as error:
        raise BulleError(f"cannot write {flags['output']}", error.strerror or "") from None


def _variables(request: LoadRequest, *, as_json: bool) -> str:
    from bulle.cli.table import align
    from bulle.compose.interpolation import variables
    from bulle.compose.loading import load_tree

    _, tree = load_tree(request)
    found = {one.name: one for one in variables(tree)}
    if as_json:
        import json

        return json.dumps(
            {
                name: {"Name": name, "DefaultValue": one.default, "PresenceValue": one.alternate, "Required": one.required}
                for name, one in sorted(found.items())
            },
            indent=4,
        ) + "\n"  # fmt: skip
    rows = [(one.name, "true" if one.required else "false", one.default, one.alternate) for _, one in sorted(found.items())]
    return align([("NAME", "REQUIRED", "DEFAULT VALUE", "ALTERNATE VALUE"), *rows])


def _lists(app: App, flags: dict[str, Any]) -> Any:
    """What makes the lines of the list that a flag asks for, or None."""
    chosen = {
        "service_names": lambda project, _: _in_order(project),
        "networks": lambda project, _: sorted(_selected(app, project, ()).get("networks", ())),
        "volumes": lambda project, _: sorted(_selected(app, project, ()).get("volumes", ())),
        "hash": lambda project, _: _hashes(project, flags["hash"]),
        "profiles": lambda project, _: sorted({name for one in project.all_services() for name in one.profiles}),
        "images": lambda project, services: _images(app, project, services),
        "environment": lambda project, _: [f"{name}={value}" for name, value in sorted(project.environment.items())],
    }
    return next((lines for flag, lines in chosen.items() if flags[flag]), None)


def _in_order(project: Project) -> Iterable[str]:
    """Services by name, behind those that they need."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done and name in project.services:
            for other in sorted(project.services[name].depends_on):
                visit(other)
            done[name] = None

    for name in sorted(project.services):
        visit(name)
    return done


def _hashes(project: Project, wanted: str) -> Iterable[str]:
    from bulle.compose.hashing import service_hash

    names = sorted(project.services) if wanted == "*" else sorted(wanted.split(","))
    for name in names:
        if name not in project.services:
            raise NotFound(f"no service {name}", "", "the file has " + (", ".join(project.services) or "none"))
        yield f"{name} {service_hash(project.services[name])}"


def _image(project: Project, service: Service, separator: str) -> str:
    return service.image or f"{project.name}{separator}{service.name}"


def _images(app: App, project: Project, services: Sequence[str]) -> Iterable[str]:
    shown = _selected(app, project, services)["services"]
    return [_image(project, project.services[name], "_" if app.flags.compatibility else "-") for name in shown]


def _selected(app: App, project: Project, services: Sequence[str]) -> dict[str, Any]:
    from bulle.compose.rendering import selected

    return selected(project, services, all_resources=app.flags.all_resources)


def _rendered(app: App, request: LoadRequest, services: Sequence[str], flags: dict[str, Any]) -> str:
    from bulle.compose import rendering

    if flags["format"] == "kubernetes":
        return _kubernetes(_loaded(app, request))
    if flags["format"] not in ("yaml", "json"):
        raise InvalidInput(f"unsupported format {flags['format']!r}", "", "it is yaml, json or kubernetes")
    if request.no_interpolate:
        from bulle.compose.loading import load_tree

        name, tree = load_tree(request)
        document = dict(sorted(tree.items())) if request.no_normalize else dict(sorted({**tree, "name": name}.items()))
        document = rendering.ordered(document)
    else:
        document = rendering.shown(_selected(app, _loaded(app, request), services))
    if flags["resolve_image_digests"] or flags["lock_image_digests"]:
        document = _with_digests(app, document, only=flags["lock_image_digests"])
    if flags["format"] == "yaml":
        text = rendering.as_yaml(document)
    else:
        text = rendering.tree_as_json(document) if request.no_interpolate or flags["lock_image_digests"] else rendering.as_json(document)
    return text if request.no_interpolate else text.replace("$", "$$")


def _kubernetes(project: Project) -> str:
    from bulle.kube import render  # type: ignore[import-not-found, unused-ignore]

    return str(render(project))


def _with_digests(app: App, document: dict[str, Any], *, only: bool) -> dict[str, Any]:
    """The document with the digests that registries have for its images now; ``only``: nothing but these."""
    digests: dict[str, str] = {}
    services: dict[str, Any] = {}
    for name, service in document["services"].items():
        image = service.get("image")
        if image and "@" not in image and image not in digests:
            digests[image] = _pinned(app, image)
        pinned = digests.get(image, image)
        if not only:
            services[name] = {key: pinned if key == "image" else value for key, value in service.items()}
        elif pinned:
            services[name] = {"image": pinned}
    return {"services": services} if only else {**document, "services": services}


def _pinned(app: App, image: str) -> str:
    import hashlib

    from bulle.model.reference import Reference

    digest = hashlib.sha256(app.engine.indexes.inspect(f"docker://{image}")).hexdigest()
    return f"{Reference.parse(image).canonical}@sha256:{digest}"
