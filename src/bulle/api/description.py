"""What is served, as an OpenAPI 3.1 description: from the table of routes and the structs that queries and bodies are read into."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from bulle.api.routes import ROUTES
from bulle.api.routing import NEWEST, Route, shown
from bulle.version import VERSION

_REFERENCE = "#/components/schemas/{name}"


def openapi_text() -> str:
    """The description as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(openapi()), indent=2).decode() + "\n"


def openapi() -> dict[str, Any]:
    """The description of the newest version."""
    bodies = list(dict.fromkeys(route.body for route in ROUTES if route.body is not None))
    schemas, components = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
    schema_of = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path.replace("...}", "}"), {})[route.method.lower()] = _operation(route, schema_of)
    components["Error"] = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Docker Engine API, as Bulle serves it", "version": shown(NEWEST), "x-bulle-version": VERSION},
        "servers": [{"url": f"/v{shown(NEWEST)}"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: Route, schema_of: dict[type[Any], Any]) -> dict[str, Any]:
    kind, name = route.handler.__module__.rpartition(".")[2], route.handler.__name__
    found: dict[str, Any] = {
        "operationId": f"{kind}.{name}.{route.method.lower()}.{re.sub('[^a-z]+', '-', route.path.lower()).strip('-')}",
        "summary": (route.handler.__doc__ or "").strip().partition("\n")[0],
        "parameters": [*_of_path(route), *_of_query(route)],
        "responses": _answers(route),
    }
    if route.body is not None:
        found["requestBody"] = {"content": {"application/json": {"schema": schema_of[route.body]}}}
    return found


def _answers(route: Route) -> dict[str, Any]:
    """Of what succeeds only that it may be anything; what fails always has the same document, unless it has no body at all."""
    failure: dict[str, Any] = {"description": "an error"}
    if route.method != "HEAD":
        failure["content"] = {"application/json": {"schema": {"$ref": _REFERENCE.format(name="Error")}}}
    return {"4XX": failure, "5XX": failure, "default": {"description": "the answer"}}


def _of_path(route: Route) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"\{(\w+)", route.path)]


def _of_query(route: Route) -> list[dict[str, Any]]:
    filters = [{"name": "filters", "in": "query", "required": False, "schema": {"type": "string"}}] if route.filters else []
    if route.query is None:
        return filters
    (_reference,), components = msgspec.json.schema_components([route.query], ref_template=_REFERENCE)
    fields: dict[str, Any] = components[route.query.__name__]["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()] + filters
