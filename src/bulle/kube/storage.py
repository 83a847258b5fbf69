"""Volumes of services: claims, memory, images and files of this machine, as volumes of pods."""

from __future__ import annotations

import re

from bulle.compose import labels as compose_labels
from bulle.compose.model import Project, Service, Volume
from bulle.compose.service_parts import ServiceVolume
from bulle.kube.files import mount_bind
from bulle.kube.mounts import Mounts
from bulle.kube.names import Document, dns_label, memory
from bulle.kube.translation import Translation

DEFAULT_SIZE = "1Gi"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)


def size_bytes(text: str) -> int | None:
    """A size such as ``64m``; None where it is none."""
    found = _SIZE.fullmatch(text.strip())
    return round(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ")) if found else None


def mount_volumes(translation: Translation, service: Service, mounts: Mounts) -> None:
    """Everything that a service mounts but configs and secrets."""
    report = translation.report
    for number, volume in enumerate(service.volumes):
        path = ("services", service.name, "volumes", number)
        match volume.type:
            case "bind":
                mount_bind(translation, service, volume, mounts, path)
            case "volume":
                _mount_volume(translation, volume, mounts, path)
            case "tmpfs":
                size = volume.tmpfs.size if volume.tmpfs is not None else 0
                mounts.add(f"tmpfs {volume.target}", _memory(size), _place(volume), path)
            case "image":
                report.note("needs Kubernetes 1.33 or newer", *path)
                if not volume.read_only:
                    report.note("an image is mounted read-only: say `read_only: true`", *path)
                subpath = {"subPath": volume.image.subpath} if volume.image is not None and volume.image.subpath else {}
                source = {"image": {"reference": volume.source}}
                mounts.add(f"image {volume.source}", source, {"mountPath": volume.target, "readOnly": True, **subpath}, path)
            case _:
                report.refuse(f"a mount of the type {volume.type} is for Windows or Swarm", *path)
    for number, tmpfs in enumerate(service.tmpfs):
        _mount_tmpfs(translation, tmpfs, mounts, ("services", service.name, "tmpfs", number))
    if service.shm_size:
        mounts.add("shm", _memory(service.shm_size), {"mountPath": "/dev/shm"}, ("services", service.name, "shm_size"))


def _memory(size: int) -> Document:
    return {"emptyDir": {"medium": "Memory", **({"sizeLimit": memory(size)} if size > 0 else {})}}


def _place(volume: ServiceVolume) -> Document:
    return {"mountPath": volume.target, **({"readOnly": True} if volume.read_only else {})}


def _mount_tmpfs(translation: Translation, tmpfs: str, mounts: Mounts, path: tuple[str | int, ...]) -> None:
    target, _, options = tmpfs.partition(":")
    size = 0
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key == "size" and (found := size_bytes(value)) is not None:
            size = found
        elif key != "rw":
            translation.report.note(f"the option {option} is not kept", *path)
    mounts.add(f"tmpfs {target}", _memory(size), {"mountPath": target}, path)


def _mount_volume(translation: Translation, mount: ServiceVolume, mounts: Mounts, path: tuple[str | int, ...]) -> None:
    place = _place(mount)
    if mount.volume is not None and mount.volume.subpath:
        place["subPath"] = mount.volume.subpath
    if not mount.source:
        translation.report.note("a volume without a name is empty in each new pod", *path)
        mounts.add(f"anonymous {mount.target}", {"emptyDir": {}}, place, path)
        return
    if (volume := translation.project.volumes.get(mount.source)) is not None:
        mounts.add(f"volume {mount.source}", _source(translation, mount.source, volume), place, path)


def _source(translation: Translation, key: str, volume: Volume) -> Document:
    """The volume of a pod for a named one; makes its claim."""
    options = dict(volume.driver_opts)
    if volume.external:
        return {"persistentVolumeClaim": {"claimName": dns_label(volume.name or key)}}
    if volume.driver not in ("", "local"):
        translation.report.refuse("a cluster has storage classes instead of drivers", "volumes", key, "driver")
    kind = options.get("type", "")
    if kind == "tmpfs" and set(options) <= {"type", "device", "o"}:
        size = re.search(r"(?:^|,)size=([^,]+)", options.get("o", ""))
        return _memory(size_bytes(size[1]) or 0 if size else 0)
    if kind.startswith("nfs") and (server := re.search(r"(?:^|,)addr=([^,]+)", options.get("o", ""))):
        read_only = "ro" in options["o"].split(",")
        return {"nfs": {"server": server[1], "path": options.get("device", "/").lstrip(":"), **({"readOnly": True} if read_only else {})}}
    size_said = options.pop("size", "")
    if options or (size_said and size_bytes(size_said) is None):
        translation.report.refuse("only `size`, a tmpfs or NFS can be had on a cluster", "volumes", key, "driver_opts")
    if not size_said:
        translation.report.note(f"asks for {DEFAULT_SIZE}: say another with `driver_opts: {{size: 10g}}`", "volumes", key)
    _claim(translation, key, volume, memory(size_bytes(size_said) or 0) if size_said else DEFAULT_SIZE)
    return {"persistentVolumeClaim": {"claimName": dns_label(volume.name or key)}}


def _claim(translation: Translation, key: str, volume: Volume, size: str) -> None:
    shared = many(translation.project, key)
    if shared:
        translation.report.note("several pods use it: the storage class has to offer ReadWriteMany", "volumes", key)
    more = translation.labelled(volume.labels, "volumes", key, "labels")
    translation.add(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": translation.metadata(dns_label(volume.name or key), (compose_labels.VOLUME, key), more),
            "spec": {"accessModes": ["ReadWriteMany" if shared else "ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
        }
    )


def many(project: Project, key: str) -> bool:
    """Whether more than one pod mounts the volume."""
    users = [service for service in project.services.values() if any(mount.type == "volume" and mount.source == key for mount in service.volumes)]
    return len(users) > 1 or any(is_many(service) for service in users)


def is_many(service: Service) -> bool:
    """Whether a service may have more than one pod."""
    everywhere = service.deploy is not None and service.deploy.mode == "global"
    return everywhere or service.autoscale is not None or service.replicas > 1


def owns_volume(project: Project, service: Service) -> bool:
    """Whether a service writes to a named volume."""
    return any(mount.type == "volume" and mount.source in project.volumes and not mount.read_only for mount in service.volumes)
