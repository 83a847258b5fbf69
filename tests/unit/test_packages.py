"""Packages found in an image, and the documents that list them, held against the schemas of SPDX and CycloneDX."""

from __future__ import annotations

import json
import lzma
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bulle.build.licenses import expression
from bulle.build.packages import Package, find_packages, purl
from bulle.build.sbom import Subject, cyclonedx, spdx
from bulle_testing import tiers

# Made by rpm 4.18 from two packages without files, hello 4:1.2-3 and second 1.2-3.
RPM = lzma.decompress((Path(__file__).parent / "packages/rpmdb.sqlite.xz").read_bytes())
OS_RELEASE = b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
DPKG = b"""\
Package: bash
Essential: yes
Status: install ok installed
Maintainer: Matthias Klose <doko@debian.org>
Architecture: amd64
Version: 5.2.15-2+b7
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter.
 .
 Package: not-one
Homepage: http://tiswww.case.edu/php/chet/bash/bashtop.html

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: libaudit1
Status: install ok installed
Architecture: arm64
Source: audit (1:3.0.9-1)
Version: 1:3.0.9-1
"""
COPYRIGHT = b"""\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
License: GPL-3+

Files: *
Copyright: 1999 Somebody
License: GPL-3+

Files: doc/*
License: Expat or GPL-2

License: Expat
 Permission is granted
"""
APK = b"""\
C:Q1abc=
P:musl
V:1.2.5-r0
A:x86_64
T:the musl c library
U:https://musl.libc.org/
L:MIT
o:musl
m:Timo <t@example.org>
F:lib
R:x

P:zlib
V:1.3-r2
L:Zlib
"""
METADATA = b"""\
Metadata-Version: 2.1
Name: Flask_Login
Version: 0.6.3
Author: Someone
License: UNKNOWN
Classifier: License :: OSI Approved :: MIT License

Name: not this
License: nor this
"""


class Tree:
    """Files of a mapping, as an image shows them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def list(self, path: str) -> set[str]:
        below = f"{path}/" if path else ""
        rests = (name.removeprefix(below) for name in self.files if name.startswith(below))
        return {rest.split("/")[0] + "/" * ("/" in rest) for rest in rests}


def found(files: dict[str, bytes]) -> dict[str, Package]:
    """The packages of an image by name."""
    return {package.name: package for package in find_packages(Tree(files))}


def test_dpkg() -> None:
    packages = found({"etc/os-release": OS_RELEASE, "var/lib/dpkg/status": DPKG, "usr/share/doc/bash/copyright": COPYRIGHT})
    assert list(packages) == ["bash", "libaudit1"]
    bash, audit = packages.values()
    assert bash.purl == "pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=debian-12"
    assert (bash.kind, bash.version, bash.supplier) == ("deb", "5.2.15-2+b7", "Matthias Klose <doko@debian.org>")
    assert bash.license == "(Expat OR GPL-2) AND GPL-3+" and bash.location == "var/lib/dpkg/status"
    assert expression(bash.license) == "(MIT OR GPL-2.0-only) AND GPL-3.0-or-later"
    assert (audit.version, audit.source, audit.license) == ("1:3.0.9-1", "audit", "")
    assert audit.purl == "pkg:deb/debian/libaudit1@1:3.0.9-1?arch=arm64&distro=debian-12"


def test_dpkg_of_images_without_a_package_manager() -> None:
    described = b"Package: tzdata\nVersion: 2024a\nArchitecture: all\n"
    packages = found({"var/lib/dpkg/status.d/tzdata": described, "var/lib/dpkg/status.d/tzdata.md5sums": b"x"})
    assert [package.purl for package in packages.values()] == ["pkg:deb/debian/tzdata@2024a?arch=all"]


@pytest.mark.parametrize("place", ["lib/apk/db/installed", "usr/lib/apk/db/installed"])
def test_apk(place: str) -> None:
    packages = found({"usr/lib/os-release": b"ID=alpine\nVERSION_ID=3.21.0\n", place: APK})
    musl, zlib = packages["musl"], packages["zlib"]
    assert musl == Package("apk", "musl", "1.2.5-r0", musl.purl, "MIT", place, "Timo <t@example.org>", "musl")
    assert musl.purl == "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.21.0"
    assert zlib.license == "Zlib" and musl.homepage == "https://musl.libc.org/"


@pytest.mark.parametrize("place", ["var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"])
def test_rpm(place: str) -> None:
    packages = found({"etc/os-release": b"ID='fedora'\nVERSION_ID=41\n", place: RPM})
    assert packages["hello"].purl == "pkg:rpm/fedora/hello@1.2-3?arch=noarch&distro=fedora-41&epoch=4"
    assert packages["hello"].version == "4:1.2-3" and packages["second"].version == "1.2-3"
    assert packages["second"].license == "MIT AND GPLv2+" and packages["second"].source == "second-1.2-3.src.rpm"


def test_pip() -> None:
    site = "opt/venv/lib/python3.12/site-packages"
    packages = found(
        {
            f"{site}/flask_login-0.6.3.dist-info/METADATA": METADATA,
            f"{site}/flask_login-0.6.3.dist-info/RECORD": b"",
            "usr/lib/python3/dist-packages/old.egg-info": b"Name: old\nVersion: 1\nLicense: BSD\n",
            "usr/lib/python3/dist-packages/dir.egg-info/PKG-INFO": b"Name: dir\r\nVersion: 2\r\nLicense-Expression: MIT OR ISC\r\n",
            "usr/lib/python3/dist-packages/broken.dist-info/METADATA": b"Name: broken\n",
        }
    )
    assert sorted(packages) == ["Flask_Login", "dir", "old"]
    assert packages["Flask_Login"].purl == "pkg:pypi/flask-login@0.6.3"
    assert [packages[name].license for name in ("Flask_Login", "dir", "old")] == ["MIT", "MIT OR ISC", "BSD"]


def test_npm() -> None:
    def document(**fields: object) -> bytes:
        return json.dumps(fields).encode()

    packages = found(
        {
            "app/package.json": document(name="the-application", version="1.0.0"),
            "app/node_modules/a/package.json": document(name="a", version="1.2.3", license="MIT", author={"name": "Some One"}),
            "app/node_modules/a/test/fixtures/package.json": document(name="fixture", version="1"),
            "app/node_modules/a/node_modules/b/package.json": document(name="b", version="2.0.0", licenses=[{"type": "MIT"}, {"type": "ISC"}]),
            "app/node_modules/@scope/c/package.json": document(name="@scope/c", version="3.0.0-rc.1+x", license={"type": "Zlib"}),
            "app/node_modules/broken/package.json": b"{",
            "app/node_modules/nameless/package.json": b'{"version": 1}',
        }
    )
    assert sorted(packages) == ["@scope/c", "a", "b"]
    assert packages["@scope/c"].purl == "pkg:npm/%40scope/c@3.0.0-rc.1%2Bx"
    assert [packages[name].license for name in sorted(packages)] == ["Zlib", "MIT", "MIT OR ISC"]
    assert packages["a"].supplier == "Some One"


def test_the_same_package_in_two_places_is_two() -> None:
    egg = b"Name: x\nVersion: 1\n"
    assert len(find_packages(Tree({"a/x.egg-info": egg, "b/x.egg-info": egg}))) == 2


def test_nothing_is_found_in_nothing() -> None:
    assert find_packages(Tree({})) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("GPL-2+ AND Expat", "GPL-2.0-or-later AND MIT"),
        ("(MIT OR Apache-2.0) and BSD-3-clause", "(MIT OR Apache-2.0) AND BSD-3-Clause"),
        ("GPL-2.0-only WITH Classpath-exception-2.0 OR MIT", "GPL-2.0-only WITH Classpath-exception-2.0 OR MIT"),
        *((text, "") for text in ("", "BSD", "see LICENSE", "MIT OR", "OR MIT", "(MIT", "MIT)", "()", "MIT ISC", "MIT WITH", "MIT WITH x", "a,b")),
        ("(" * 100 + "MIT" + ")" * 100, ""),
        ("MIT AND " * 200 + "MIT", ""),
    ],
)
def test_licenses(text: str, expected: str) -> None:
    assert expression(text) == expected


PACKAGES = (
    Package("deb", "bash", "5.2", purl("deb", "debian", "bash", "5.2", arch="amd64"), "GPL-3+", "s", "A Team <a@example.org>", "b", "http://x.org"),
    Package("deb", "odd", "1:2~3+4", purl("deb", "debian", "odd", "1:2~3+4"), "public-domain AND (x)", "a/b", 'Who? "Some" (One)', "", "no address"),
    Package("pypi", "Ünïcode name", "1 2", purl("pypi", "", "ünïcode name", "1 2"), "MIT OR ISC", "c", "\u200b<>"),
    Package("npm", "@s/n", "1.0.0", purl("npm", "@s", "n", "1.0.0"), "MIT", "d/\udcff/package.json"),
    Package("npm", "@s/n", "1.0.0", purl("npm", "@s", "n", "1.0.0"), "MIT", "e/package.json"),
)
SUBJECT = Subject("docker.io/library/app:1.0", "sha256:" + "ab" * 32, 1_700_000_000)


def test_documents_depend_on_nothing_but_their_content() -> None:
    for write in (spdx, cyclonedx):
        document = write(SUBJECT, PACKAGES)
        assert document == write(SUBJECT, reversed((*PACKAGES, PACKAGES[0])))
        assert document != write(SUBJECT, PACKAGES[1:])
        assert b"2023-11-14T22:13:20Z" in document


def test_what_spdx_says() -> None:
    document = json.loads(spdx(SUBJECT, PACKAGES))
    image, *packages = document["packages"]
    assert image["name"] == SUBJECT.name and image["checksums"] == [{"algorithm": "SHA256", "checksumValue": "ab" * 32}]
    bash = next(package for package in packages if package["name"] == "bash")
    assert bash["licenseDeclared"] == "GPL-3.0-or-later" and bash["supplier"] == "Organization: A Team (a@example.org)"
    assert bash["externalRefs"][0]["referenceLocator"] == "pkg:deb/debian/bash@5.2?arch=amd64"
    odd = next(package for package in packages if package["name"] == "odd")
    (text,) = document["hasExtractedLicensingInfos"]
    assert text["extractedText"] == "public-domain AND (x)" and odd["licenseDeclared"] == text["licenseId"] and "homepage" not in odd
    contained = {each["relatedSpdxElement"] for each in document["relationships"] if each["relationshipType"] == "CONTAINS"}
    assert contained == {package["SPDXID"] for package in packages} and len(contained) == len(PACKAGES)


def test_what_cyclonedx_says() -> None:
    document = json.loads(cyclonedx(SUBJECT, PACKAGES))
    licenses = {component["name"]: component.get("licenses") for component in document["components"]}
    assert licenses == {
        "bash": [{"license": {"id": "GPL-3.0-or-later"}}],
        "odd": [{"license": {"name": "public-domain AND (x)"}}],
        "Ünïcode name": [{"expression": "MIT OR ISC"}],
        "@s/n": [{"license": {"id": "MIT"}}],
    }
    assert document["metadata"]["component"]["name"] == SUBJECT.name
    assert len({component["bom-ref"] for component in document["components"]}) == len(PACKAGES)


def validator(name: str) -> Any:
    """A package of the index that knows one of the two formats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == "spdx":
                from spdx_tools.spdx.parser.parse_anything import parse_file
                from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

                return lambda path: validate_full_spdx_document(parse_file(str(path)), "SPDX-2.3")
            from cyclonedx.schema import SchemaVersion
            from cyclonedx.validation.json import JsonStrictValidator

            strict = JsonStrictValidator(SchemaVersion.V1_5)
            return lambda path: strict.validate_str(path.read_text())
    except ImportError as error:
        tiers.give_up("package_index", f"{error} (`make` installs the extra dev)")


@pytest.mark.parametrize("packages", [PACKAGES, ()], ids=["packages", "none"])
@pytest.mark.parametrize("subject", [SUBJECT, Subject("local build", "", 0)], ids=["image", "no digest"])
def test_documents_are_valid(packages: tuple[Package, ...], subject: Subject, tmp_path: Path) -> None:
    for name, write in (("spdx", spdx), ("cyclonedx", cyclonedx)):
        path = tmp_path / f"{name}.{'spdx.' if name == 'spdx' else ''}json"
        path.write_bytes(write(subject, packages))
        validate = validator(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert not validate(path)


@pytest.mark.parametrize("name", ["spdx", "cyclonedx"])
def test_the_validators_refuse_what_is_wrong(name: str, tmp_path: Path) -> None:
    """So that their silence above means something."""
    path = tmp_path / f"{name}.{'spdx.' if name == 'spdx' else ''}json"
    broken = json.loads((spdx if name == "spdx" else cyclonedx)(SUBJECT, PACKAGES))
    broken["packages" if name == "spdx" else "components"][-1]["purl" if name == "cyclonedx" else "supplier"] = 1
    path.write_text(json.dumps(broken))
    validate = validator(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            complaints = validate(path)
        except Exception as error:  # noqa: BLE001 (each has errors of its own)
            complaints = error
    assert complaints


def test_identifiers_are_those_of_spdx() -> None:
    """Those of our table, held against the list in the package cyclonedx."""
    validator("cyclonedx")
    from cyclonedx.spdx import is_expression, is_supported_id

    from bulle.build.licenses import EXCEPTIONS, IDENTIFIERS

    assert [name for name in sorted(IDENTIFIERS) if not is_supported_id(name)] == []
    assert [name for name in sorted(EXCEPTIONS) if not is_expression(f"MIT WITH {name}")] == []


PATHS = (
    *("etc/os-release", "var/lib/dpkg/status", "lib/apk/db/installed", "var/lib/rpm/rpmdb.sqlite"),
    *("a/b.dist-info/METADATA", "node_modules/a/package.json"),
)
CONTENT = st.one_of(st.binary(max_size=200), st.sampled_from([DPKG, APK, METADATA, OS_RELEASE]))


@settings(deadline=None, max_examples=200)
@given(content=st.dictionaries(st.sampled_from(PATHS), CONTENT, max_size=6))
def test_whatever_stands_in_the_files(content: dict[str, bytes]) -> None:
    packages = find_packages(Tree(content))
    json.loads(spdx(SUBJECT, packages))
    json.loads(cyclonedx(SUBJECT, packages))


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, len(RPM) - 1), instead=st.binary(min_size=1, max_size=40))
@example(place=141717, instead=b"\x80")
def test_damaged_databases_of_rpm(place: int, instead: bytes) -> None:
    damaged = RPM[:place] + instead + RPM[place + len(instead) :]
    for database in (damaged, RPM[:place]):
        for package in find_packages(Tree({"var/lib/rpm/rpmdb.sqlite": database})):
            assert package.kind == "rpm"
