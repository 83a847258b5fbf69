"""The digest by which a container is known to be as the file wants it (:data:`bulle.compose.labels.CONFIG_HASH`)."""

from __future__ import annotations

import hashlib

import msgspec

from bulle.compose.model import Service

_NOT_OF_A_CONTAINER = frozenset(
    {"build", "pull_policy", "scale", "depends_on", "profiles", "attach", "develop", "autoscale", "drain", "extensions"}
)
_NOT_OF_A_CONTAINER_DEPLOY = frozenset({"replicas", "update_config", "rollback_config", "placement", "mode", "endpoint_mode"})


def service_hash(service: Service) -> str:
    """Hexadecimal: the same for services whose containers would be the same, wherever and in whatever order the files say it.

    How many there are, how their image is built, what they wait for, and who is allowed to start them is no part of it.
    """
    fields = {key: getattr(service, key) for key in service.__struct_fields__ if key not in _NOT_OF_A_CONTAINER}
    if service.deploy is not None:
        deploy = service.deploy
        fields["deploy"] = {key: getattr(deploy, key) for key in deploy.__struct_fields__ if key not in _NOT_OF_A_CONTAINER_DEPLOY}
    return hashlib.sha256(msgspec.json.encode(fields, enc_hook=int, order="deterministic")).hexdigest()
