"""The packages in an image, from what package managers leave there: dpkg, apk, rpm, pip and npm.

:func:`find_packages` asks a view on the image's files and changes nothing; :mod:`bulle.build.sbom` writes the list down. Nothing is executed, and a
database that cannot be read counts as none, for an image may hold whatever its maker likes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

from bulle.build.package_metadata import dpkg_license, fields_of, node_package, os_release, python_package
from bulle.build.rpm_database import rpm_packages

_DPKG, _DPKG_DIRECTORY = "var/lib/dpkg/status", "var/lib/dpkg/status.d"
_APK = ("usr/lib/apk/db/installed", "lib/apk/db/installed")
_RPM = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite")
# Where nobody installs packages, and where there is no end.
_SKIPPED = frozenset({"proc", "sys", "dev", "run", "tmp"})
_DEEPEST = 40


class Files(Protocol):
    """A view on the files of an image. Paths are relative to its root, without a slash at the begin; links on the way are the view's to follow."""

    def read(self, path: str) -> bytes | None:
        """The content of a regular file; None where there is none."""
        ...

    def list(self, path: str) -> Iterable[str]:
        """The names in a directory (the root is empty), those of directories with a slash at their end; none where there is no such directory."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One installed package. ``kind`` is the type of its purl (deb, apk, rpm, pypi, npm), ``license`` the text that it has itself.

    ``location`` is the file in the image that tells of it, ``source`` the source package that it was built from.
    """

    kind: str
    name: str
    version: str
    purl: str
    license: str = ""
    location: str = ""
    supplier: str = ""
    source: str = ""
    homepage: str = field(default="", compare=False)


def find_packages(files: Files) -> tuple[Package, ...]:
    """All packages, in an order that depends on nothing but them."""
    system = os_release(files.read("etc/os-release") or files.read("usr/lib/os-release") or b"")
    found = {*_dpkg(files, system), *_apk(files, system), *_rpm(files, system), *_languages(files)}
    return tuple(sorted(found))


def purl(kind: str, namespace: str, name: str, version: str, **qualifiers: str) -> str:
    """A package URL, such as ``pkg:deb/debian/bash@5.2.15-2?arch=amd64``."""
    parts = [quote(part, safe=":") for part in (*namespace.split("/"), name) if part]
    row = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(qualifiers.items()) if value)
    return f"pkg:{kind}/{'/'.join(parts)}" + (f"@{quote(version, safe=':')}" if version else "") + (f"?{row}" if row else "")


def _distribution(system: dict[str, str]) -> str:
    name, version = system.get("ID", ""), system.get("VERSION_ID", "")
    return f"{name}-{version}" if name and version else name


def _dpkg(files: Files, system: dict[str, str]) -> Iterator[Package]:
    places = [_DPKG, *(f"{_DPKG_DIRECTORY}/{name}" for name in files.list(_DPKG_DIRECTORY) if not name.endswith((".md5sums", "/")))]
    for place in places:
        for fields in fields_of(files.read(place) or b""):
            name, version = fields.get("Package", ""), fields.get("Version", "")
            # What was removed and left its configuration behind is no part of the image. Files of status.d have no such field.
            if not name or not version or not fields.get("Status", "install ok installed").endswith(" installed"):
                continue
            source = fields.get("Source", name).split(" ")[0]
            copyright_file = files.read(f"usr/share/doc/{name}/copyright")
            yield Package(
                "deb",
                name,
                version,
                purl("deb", system.get("ID", "debian"), name, version, arch=fields.get("Architecture", ""), distro=_distribution(system)),
                dpkg_license(copyright_file or b""),
                place,
                fields.get("Maintainer", ""),
                source,
                fields.get("Homepage", ""),
            )


def _apk(files: Files, system: dict[str, str]) -> Iterator[Package]:
    for place in _APK:
        for fields in fields_of(files.read(place) or b""):
            name, version = fields.get("P", ""), fields.get("V", "")
            if not name or not version:
                continue
            yield Package(
                "apk",
                name,
                version,
                purl("apk", system.get("ID", "alpine"), name, version, arch=fields.get("A", ""), distro=_distribution(system)),
                fields.get("L", ""),
                place,
                fields.get("m", ""),
                fields.get("o", ""),
                fields.get("U", ""),
            )


def _rpm(files: Files, system: dict[str, str]) -> Iterator[Package]:
    for place in _RPM:
        for rpm in rpm_packages(files.read(place) or b""):
            version = f"{rpm.version}-{rpm.release}"
            namespace, distribution = system.get("ID", ""), _distribution(system)
            address = purl("rpm", namespace, rpm.name, version, arch=rpm.architecture, epoch=rpm.epoch, distro=distribution)
            full = f"{rpm.epoch}:{version}" if rpm.epoch else version
            yield Package("rpm", rpm.name, full, address, rpm.license, place, rpm.vendor, rpm.source, rpm.homepage)


def _languages(files: Files) -> Iterator[Package]:
    """Packages of pip and npm, wherever they stand."""
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        below_modules = "node_modules" in directory.split("/")
        for entry in files.list(directory):
            name = entry.rstrip("/")
            path = f"{directory}/{name}" if directory else name
            if entry.endswith("/"):
                yield from _python(files, path, name)
                if path not in _SKIPPED and path.count("/") < _DEEPEST:
                    waiting.append(path)
            elif name.endswith(".egg-info"):
                yield from _python_file(files, path)
            elif name == "package.json" and below_modules:
                yield from _node(files, path)


def _python(files: Files, path: str, name: str) -> Iterator[Package]:
    if name.endswith(".dist-info"):
        yield from _python_file(files, f"{path}/METADATA")
    elif name.endswith(".egg-info"):
        yield from _python_file(files, f"{path}/PKG-INFO")


def _python_file(files: Files, path: str) -> Iterator[Package]:
    found = python_package(files.read(path) or b"")
    if found is not None:
        address = purl("pypi", "", found.name.lower().replace("_", "-"), found.version)
        yield Package("pypi", found.name, found.version, address, found.license, path, found.author, "", found.homepage)


def _node(files: Files, path: str) -> Iterator[Package]:
    # Only the directory right below node_modules (or below a @scope there) is a package; others are its parts.
    parts = posixpath.dirname(path).split("/")
    above = parts[-2] if len(parts) > 1 else ""
    scoped = above.startswith("@") and len(parts) > 2 and parts[-3] == "node_modules"
    if above != "node_modules" and not scoped:
        return
    found = node_package(files.read(path) or b"")
    if found is not None:
        namespace, _, name = found.name.rpartition("/")
        address = purl("npm", namespace, name, found.version)
        yield Package("npm", found.name, found.version, address, found.license, path, found.author, "", found.homepage)
