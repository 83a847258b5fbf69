"""A list of packages as a document: SPDX 2.3 and CycloneDX 1.5, both as JSON.

The same image and time give the same bytes; identifiers that must be unique are made from what they name. The time is the caller's (the build's
SOURCE_DATE_EPOCH). Licences that are no expression of SPDX stand in the documents as the texts that they are (:mod:`bulle.build.licenses`).
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from bulle.build.licenses import IDENTIFIERS, expression
from bulle.build.packages import Package
from bulle.version import VERSION

_NOT_IN_IDENTIFIER = re.compile(r"[^A-Za-z0-9.-]+")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?(?:#[A-Za-z0-9._~/?%=&-]*)?")
_PERSON = re.compile(r"\s*([^<>()]*[^<>()\s])\s*(?:<([^<>()\s]+@[^<>()\s]+)>)?")
_NAMESPACE = uuid.UUID("6c1f1a52-5f0e-5b86-9e0a-3f0f6a0d3c11")
_NOTHING = "NOASSERTION"

Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class Subject:
    """What the packages are in: the image's name, its digest (``sha256:…``), and the time of the document in seconds since 1970."""

    name: str
    digest: str
    created_s: int


def spdx(subject: Subject, packages: Iterable[Package]) -> bytes:
    """The document in SPDX 2.3."""
    listed = _sorted(packages)
    described = [_spdx_package(package) for package in listed]
    texts = sorted({package.license for package in listed if package.license and not expression(package.license)})
    contents = [{"spdxElementId": "SPDXRef-Image", "relationshipType": "CONTAINS", "relatedSpdxElement": each["SPDXID"]} for each in described]
    root = {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-Image"}
    document: Document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": _text(subject.name),
        "documentNamespace": f"https://spdx.org/spdxdocs/{_identifier(subject.name)}-{_unique(subject, listed)}",
        "creationInfo": {"created": _time(subject.created_s), "creators": [f"Tool: bulle-{VERSION}"]},
        "packages": [_spdx_image(subject), *described],
        "relationships": [root, *contents],
    }
    if texts:
        document["hasExtractedLicensingInfos"] = [
            {"licenseId": _license_reference(text), "name": _text(text), "extractedText": _text(text)} for text in texts
        ]
    return _encoded(document)


def cyclonedx(subject: Subject, packages: Iterable[Package]) -> bytes:
    """The document in CycloneDX 1.5."""
    listed = _sorted(packages)
    image: Document = {"bom-ref": "image", "type": "container", "name": _text(subject.name)}
    if subject.digest:
        image["version"] = subject.digest
        image["hashes"] = [{"alg": "SHA-256", "content": subject.digest.removeprefix("sha256:")}]
    return _encoded(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "serialNumber": f"urn:uuid:{_unique(subject, listed)}",
            "version": 1,
            "metadata": {
                "timestamp": _time(subject.created_s),
                "tools": {"components": [{"type": "application", "name": "bulle", "version": VERSION}]},
                "component": image,
            },
            "components": [_cyclonedx_component(package) for package in listed],
        }
    )


def _spdx_image(subject: Subject) -> Document:
    image: Document = {
        "SPDXID": "SPDXRef-Image",
        "name": _text(subject.name),
        "downloadLocation": _NOTHING,
        "filesAnalyzed": False,
        "primaryPackagePurpose": "CONTAINER",
        "licenseConcluded": _NOTHING,
        "licenseDeclared": _NOTHING,
        "copyrightText": _NOTHING,
    }
    if subject.digest:
        image["versionInfo"] = subject.digest
        image["checksums"] = [{"algorithm": "SHA256", "checksumValue": subject.digest.removeprefix("sha256:")}]
    return image


def _spdx_package(package: Package) -> Document:
    described: Document = {
        "SPDXID": f"SPDXRef-Package-{_reference(package)}",
        "name": _text(package.name),
        "versionInfo": _text(package.version),
        "supplier": _spdx_supplier(package.supplier),
        "downloadLocation": _NOTHING,
        "filesAnalyzed": False,
        "sourceInfo": f"found in {_text(package.location)}" + (f", built from {_text(package.source)}" if package.source else ""),
        "licenseConcluded": _NOTHING,
        "licenseDeclared": (expression(package.license) or _license_reference(package.license)) if package.license else _NOTHING,
        "copyrightText": _NOTHING,
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": package.purl}],
    }
    if _ADDRESS.fullmatch(package.homepage):
        described["homepage"] = package.homepage
    return described


def _spdx_supplier(supplier: str) -> str:
    match = _PERSON.match(_text(supplier))
    if match is None:
        return _NOTHING
    # Who maintains a package is mostly a team, and nobody can tell.
    return f"Organization: {match[1]}" + (f" ({match[2]})" if match[2] else "")


def _cyclonedx_component(package: Package) -> Document:
    component: Document = {
        "bom-ref": _reference(package),
        "type": "library",
        "name": _text(package.name),
        "version": _text(package.version),
        "purl": package.purl,
        "properties": [{"name": "bulle:location", "value": _text(package.location)}],
    }
    if package.supplier:
        component["supplier"] = {"name": _text(package.supplier)}
    if package.license:
        known = expression(package.license)
        if known in IDENTIFIERS:
            component["licenses"] = [{"license": {"id": known}}]
        elif known:
            component["licenses"] = [{"expression": known}]
        else:
            component["licenses"] = [{"license": {"name": _text(package.license)}}]
    if _ADDRESS.fullmatch(package.homepage):
        component["externalReferences"] = [{"type": "website", "url": package.homepage}]
    return component


def _sorted(packages: Iterable[Package]) -> list[Package]:
    return sorted(set(packages))


def _reference(package: Package) -> str:
    """A name within the document; two packages of the same name and version may stand in two places."""
    unique = hashlib.sha256(_text(f"{package.purl}\n{package.location}").encode()).hexdigest()[:12]
    return f"{package.kind}-{_identifier(package.name)}-{unique}"


def _license_reference(text: str) -> str:
    unique = hashlib.sha256(_text(text).encode()).hexdigest()[:8]
    return f"LicenseRef-{_identifier(text)}-{unique}"


def _identifier(text: str) -> str:
    return _NOT_IN_IDENTIFIER.sub("-", text).strip("-")[:60] or "unnamed"


def _unique(subject: Subject, packages: Sequence[Package]) -> uuid.UUID:
    rows = [subject.name, subject.digest, str(subject.created_s), VERSION, *(repr(package) for package in packages)]
    return uuid.uuid5(_NAMESPACE, hashlib.sha256(_text("\n".join(rows)).encode()).hexdigest())


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _text(text: str) -> str:
    """A text that can stand in JSON: file names may be no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _encoded(document: Document) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
