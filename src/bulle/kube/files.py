"""Files that an app brings along: configs, secrets and small files of this machine, as ConfigMaps and Secrets that pods mount."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from bulle.compose import labels as compose_labels
from bulle.compose.model import FileObject, Service
from bulle.compose.service_parts import FileReference, ServiceVolume
from bulle.kube.mounts import Mounts
from bulle.kube.names import dns_label
from bulle.kube.translation import Translation

MOST_BYTES = 1 << 20
"""What a ConfigMap or Secret may hold."""

_CONFIG_MODE = 0o444
_TOO_LARGE = "is larger than the 1 MiB that a cluster keeps for a file: put it into the image or a volume"


def file_key(name: str) -> str:
    """The key of a file in a ConfigMap or Secret."""
    return re.sub(r"[^-._a-zA-Z0-9]", "-", name)[:253] if name not in ("", ".", "..") else "file"


def mount_references(translation: Translation, service: Service, mounts: Mounts) -> None:
    """The configs and secrets of a service."""
    for section, references, objects, directory in (
        ("configs", service.configs, translation.project.configs, "/"),
        ("secrets", service.secrets, translation.project.secrets, "/run/secrets/"),
    ):
        for number, reference in enumerate(references):
            path = ("services", service.name, section, number)
            if (found := objects.get(reference.source)) is not None:
                name = _object(translation, section, reference.source, found)
                key = file_key(found.name or reference.source) if found.external else file_key(reference.source)
                target = reference.target or reference.source
                _mount(mounts, section, name, key, target if target.startswith("/") else directory + target, _mode(reference), path)


def _mode(reference: FileReference) -> int:
    return reference.mode if reference.mode is not None else _CONFIG_MODE


def _mount(mounts: Mounts, section: str, name: str, key: str, target: str, mode: int, path: tuple[str | int, ...]) -> None:
    inner: dict[str, object] = {"defaultMode": mode & 0o777, "items": [{"key": key, "path": key}]}
    volume = {"secret": {"secretName": name, **inner}} if section == "secrets" else {"configMap": {"name": name, **inner}}
    mounts.add(name, volume, {"mountPath": target, "subPath": key, "readOnly": True}, path)


def _object(translation: Translation, section: str, key: str, found: FileObject) -> str:
    """Make the ConfigMap or Secret, and say its name."""
    kind = "ConfigMap" if section == "configs" else "Secret"
    if found.external:
        return dns_label(found.name or key)
    content = _content(translation, section, key, found)
    more = translation.labelled(found.labels, section, key, "labels")
    metadata = translation.metadata("", (f"com.docker.compose.{section[:-1]}", key), more)
    return translation.file_object(kind, content, file_key(key), dns_label(f"{translation.project.name}-{key}"), metadata)


def _content(translation: Translation, section: str, key: str, found: FileObject) -> bytes:
    report = translation.report
    content = b""
    if found.content is not None:
        content = found.content.encode()
    elif found.environment:
        if (value := translation.project.environment.get(found.environment)) is None:
            report.refuse(f"the variable {found.environment} is not set: set it", section, key, "environment")
        content = (value or "").encode()
    elif found.file:
        content = _read(translation, Path(found.file), (section, key, "file"))
    if len(content) > MOST_BYTES:
        report.refuse(_TOO_LARGE, section, key)
    return content[: MOST_BYTES + 1]


def _read(translation: Translation, file: Path, path: tuple[str | int, ...]) -> bytes:
    """The content of a host file; what cannot be a file of a cluster is refused."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode):
            with file.open("rb") as opened:
                content = opened.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                translation.report.refuse(f"{file} {_TOO_LARGE}", *path)
            return content
        what = "a directory" if stat.S_ISDIR(mode) else "no ordinary file"
        translation.report.refuse(f"{file} is {what} of this machine: put it into the image or a volume, or name single files", *path)
    except OSError as error:
        translation.report.refuse(f"{file} cannot be read: {(error.strerror or str(error)).lower()}", *path)
    return b""


def mount_bind(translation: Translation, service: Service, volume: ServiceVolume, mounts: Mounts, path: tuple[str | int, ...]) -> None:
    """A small file of this machine as a ConfigMap."""
    file = Path(volume.source)
    refused = len(translation.report.refusals)
    content = _read(translation, file, path)
    if len(translation.report.refusals) > refused:
        return
    if not volume.read_only:
        translation.report.note("is mounted read-only, from a copy of the file: say `read_only: true`", *path)
    key = file_key(file.name)
    metadata = translation.metadata("", (compose_labels.PROJECT, translation.project.name))
    name = translation.file_object("ConfigMap", content, key, dns_label(f"{translation.names[service.name]}-{file.name}"), metadata)
    _mount(mounts, "configs", name, key, volume.target, 0o555 if file.stat().st_mode & 0o111 else _CONFIG_MODE, path)
