"""The images that are made here: the host's own, a directory's; what must be in them, and above all what must not."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bulle.errors import BulleError, Conflict, CorruptImage, InvalidInput, NotFound, Unavailable
from bulle.model.digest import Digest
from bulle.model.image import ImageConfig, Platform
from bulle.model.platform import this_platform
from bulle.registry import tree
from bulle.registry.host import HostImage, layer_of_host
from bulle.registry.saved import SavedImage, SavedLayer
from bulle.registry.self_contained import self_contained
from bulle.registry.sources import open_source
from bulle.registry.transport import RemoteImage, SourceConfiguration, SourceRequest
from bulle.registry.tree import tar_stream


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.getmembers()
    assert len(found) == len({member.name for member in found})
    return {member.name: member for member in found}


def content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The root of a small merged host with secrets in all the usual places."""
    root = tmp_path / "host"
    for name in ("usr/bin", "usr/lib", "usr/sbin", "etc/ssl/certs", "etc/ssl/private", "etc/ssh", "etc/alternatives", "home/me", "root"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/bin/bash").touch()
    (root / "usr/bin/mawk").touch()
    (root / "usr/lib/os-release").write_text("ID=test\n")
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    people = "me:x:1000:1000:My Name:/home/me:/bin/bash\n"
    (root / "etc/passwd").write_text(f"root:$6$hash:0:0:root:/root:/bin/bash\n{people}nobody:x:65534:65534::/:/bin/false\nbad\n")
    (root / "etc/group").write_text("root:x:0:me\nme:x:1000:\ndaemon:secret:1:me,root\nnogroup:x:65534:\n")
    for name in ("shadow", "gshadow", "machine-id", "hostname", "resolv.conf", "sudoers", "ssh/ssh_host_key", "ssl/private/key.pem"):
        (root / "etc" / name).write_text("secret")
    (root / "etc/ssl/certs/ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (root / "etc/ssl/certs/with-key.pem").write_text("-----BEGIN PRIVATE KEY-----\nsecret")
    (root / "etc/ssl/certs/hidden.pem").write_text("secret")
    (root / "etc/ssl/certs/hidden.pem").chmod(0o600)
    (root / "etc/ssl/certs/out.pem").symlink_to("/home/me/secret")
    (root / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    (root / "etc/alternatives/gone").symlink_to("/usr/bin/gone")
    (root / "etc/alternatives/home").symlink_to("/home/me/program")
    (root / "etc/ld.so.cache").write_bytes(b"\0\1\2")
    (root / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    (root / "home/me/secret").write_text("secret")
    return root


def image_of(root: Path) -> RemoteImage:
    with HostImage(SourceRequest("", this_platform(), SourceConfiguration()), root) as source:
        [image] = source.images()
    return image


def test_the_host_image(host: Path) -> None:
    image = image_of(host)
    assert image.host_binds == ("/usr",)
    assert [str(name) for name in image.references] == ["host:latest"]
    config = ImageConfig.parse(image.config)
    assert config.config.cmd == ("bash",)
    assert config.config.env == ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    layer = b"".join(image.layers[0].open())
    assert Digest.of(layer) == image.layers[0].diff_id
    found = members(layer)
    assert {name: found[name].linkname for name in ("bin", "lib", "sbin", "etc/os-release", "etc/alternatives/awk")} == {
        "bin": "usr/bin", "lib": "usr/lib", "sbin": "usr/sbin", "etc/os-release": "../usr/lib/os-release", "etc/alternatives/awk": "/usr/bin/mawk",
    }  # fmt: skip
    for name in ("dev", "proc", "sys", "run", "home", "var/tmp", "var/lib", "var/log", "mnt", "opt", "srv", "usr"):
        assert found[name].isdir()
    assert found["tmp"].mode == found["var/tmp"].mode == 0o1777
    assert found["root"].mode == 0o700
    assert {"etc/nsswitch.conf", "etc/ld.so.cache", "etc/ld.so.conf", "etc/ssl/certs/ca.pem", "etc/hosts"} <= found.keys()
    assert content(layer, "etc/hostname") == content(layer, "etc/resolv.conf") == b""
    for name, member in found.items():
        assert member.uid == member.gid == 0
        assert not name.startswith(("/", "usr/", "home/", "root/"))


def test_no_secrets_in_it(host: Path) -> None:
    layer = layer_of_host(host)
    assert b"secret" not in layer
    assert b"$6$" not in layer
    assert b"My Name" not in layer
    assert content(layer, "etc/passwd") == b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
    assert content(layer, "etc/group") == b"root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n"
    names = members(layer).keys()
    for name in ("shadow", "gshadow", "machine-id", "sudoers", "ssh", "ssl/private", "alternatives/gone", "alternatives/home", "ssl/certs/out.pem"):
        assert not [found for found in names if found.startswith(f"etc/{name}")]


def test_the_same_host_gives_the_same_image(host: Path) -> None:
    first = image_of(host).id
    assert image_of(host).id == first
    (host / "etc/ld.so.cache").write_bytes(b"other")
    assert image_of(host).id != first


def test_a_host_that_is_not_merged(host: Path) -> None:
    (host / "bin").unlink()
    (host / "bin").mkdir()
    image = image_of(host)
    assert image.host_binds == ("/usr", "/bin")
    assert members(b"".join(image.layers[0].open()))["bin"].isdir()


def test_this_very_host() -> None:
    with open_source("host") as source:
        [image] = source.images()
    layer = b"".join(image.layers[0].open())
    found = members(layer)
    assert {"etc/passwd", "etc/group", "etc/nsswitch.conf", "tmp", "usr", "proc"} <= found.keys()
    assert not found.keys() & {"etc/shadow", "etc/machine-id", "etc/sudoers"}
    assert b"PRIVATE KEY-----" not in layer


def test_the_host_is_of_one_architecture() -> None:
    other = Platform("linux", "riscv64" if this_platform().architecture != "riscv64" else "amd64")
    with pytest.raises(Unavailable), open_source("host", platform=other) as source:
        list(source.images())


def saved(image: RemoteImage, binds: tuple[str, ...]) -> SavedImage:
    layers = tuple(SavedLayer(layer.descriptor, layer.diff_id, layer.descriptor.size, layer.open) for layer in image.layers)
    return SavedImage(image.manifest, image.media_type, image.config, layers, image.references, binds)


def test_made_self_contained(host: Path, tmp_path: Path) -> None:
    bound = tmp_path / "bound"
    (bound / "bin").mkdir(parents=True)
    (bound / "bin/program").write_bytes(b"code")
    image = self_contained(saved(image_of(host), (str(bound),)))
    assert image.host_binds == ()
    config = ImageConfig.parse(image.config)
    assert config.diff_ids == tuple(layer.diff_id for layer in image.layers)
    assert len(image.layers) == 2
    layer = b"".join(image.layers[1].open_tar())
    assert Digest.of(layer) == image.layers[1].diff_id
    assert content(layer, f"{str(bound).strip('/')}/bin/program") == b"code"
    assert len(config.history or ()) == 2
    assert json.loads(image.manifest)["config"]["digest"] == Digest.of(image.config)


def test_a_directory(tmp_path: Path) -> None:
    root = tmp_path / "My-Root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_bytes(b"shell")
    (root / "bin/sh").chmod(0o4755)
    os.link(root / "bin/sh", root / "bin/zz")
    (root / ("deep" * 40)).mkdir()
    (root / "é\udcff").write_bytes(b"odd name")
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "fifo")
    with open(root / "sparse", "wb") as file:
        file.truncate(3_000_000)
    os.setxattr(root / "bin/sh", "user.note", b"\xff\0\n=")
    os.setxattr(root / "bin/sh", "user.overlay.opaque", b"y")
    os.utime(root / "sparse", ns=(0, 1_234_567_891_123_456_789))
    os.utime(root / "link", ns=(0, -1_500_000_000), follow_symlinks=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        with open_source(f"dir:{root}") as source:
            [image] = source.images()
            layer = b"".join(image.layers[0].open())
    assert [str(name) for name in image.references] == ["my-root:latest"]
    found = members(layer)
    assert found["bin/sh"].mode == 0o4755
    assert found["bin/zz"].islnk()
    assert found["bin/zz"].linkname == "bin/sh"
    assert found["link"].linkname == "/etc/passwd"
    assert found["fifo"].isfifo()
    assert "socket" not in found
    assert content(layer, "sparse") == bytes(3_000_000)
    assert content(layer, "é\udcff") == b"odd name"
    assert found["sparse"].pax_headers["mtime"] == "1234567891.123456789"
    assert found["link"].pax_headers["mtime"] == "-1.5"
    assert layer.count(b"SCHILY.xattr.user.note=\xff\0\n=\n") == 1
    assert b"user.overlay" not in layer
    assert ImageConfig.parse(image.config).config.cmd == ("/bin/sh",)
    # An ordinary user's own files become root's.
    assert found["bin/sh"].uid == 0


def test_a_root_of_busybox(busybox_rootfs: Path) -> None:
    with open_source(f"dir:{busybox_rootfs}") as source:
        [image] = source.images()
        layer = b"".join(image.layers[0].open())
    on_disk = {str(path.relative_to(busybox_rootfs)): path.lstat() for path in busybox_rootfs.rglob("*")}
    found = members(layer)
    assert found.keys() == on_disk.keys()
    for name, status in on_disk.items():
        assert found[name].mode == status.st_mode & 0o7777
        assert found[name].size == (status.st_size if found[name].isreg() else 0)


def test_directories_that_cannot_be_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "whiteout").mkdir()
    (tmp_path / "whiteout/.wh.file").touch()
    for name, kind in (("absent", NotFound), ("file", InvalidInput), ("empty", CorruptImage), ("whiteout", InvalidInput)):
        with pytest.raises(kind), open_source(f"dir:{tmp_path / name}") as source:
            list(source.images())


def test_a_directory_that_changes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    with open_source(f"dir:{tmp_path}") as source:
        [image] = source.images()
        (tmp_path / "file").write_bytes(b"two")
        with pytest.raises(Conflict, match="changed while"):
            list(image.layers[0].open())


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_link_in_the_way_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is swapped for a link after it was looked at leads nowhere."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    victim = tmp_path / "root/a"
    if kind == "directory":
        victim.mkdir()
    else:
        victim.touch()
    real = os.stat

    def stat_then_swap(path: Any, **more: Any) -> os.stat_result:
        status = real(path, **more)
        if path == b"a":
            victim.rename(tmp_path / "elsewhere")
            victim.symlink_to(tmp_path / ("outside" if kind == "directory" else "outside/secret"))
        return status

    monkeypatch.setattr(os, "stat", stat_then_swap)
    seen = []
    with pytest.raises(Conflict, match="became something else"):
        for chunk in tar_stream(tmp_path / "root"):
            seen.append(chunk)
    assert b"secret" not in b"".join(seen)


def test_kernel_file_systems_stay_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc below a root is an empty directory in its image."""
    devices = tree._kernel_devices()
    assert os.stat("/proc").st_dev in devices
    assert os.stat("/usr").st_dev not in devices
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kcore").touch()
    monkeypatch.setattr(tree, "_kernel_devices", lambda: {tmp_path.stat().st_dev})
    assert list(members(b"".join(tar_stream(tmp_path)))) == ["proc"]


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").touch()
    (tmp_path / "open").touch()
    real = os.open

    def guarded(path: Any, *arguments: Any, **more: Any) -> int:
        if path == b"closed":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(BulleError, match="cannot read"):
        list(tar_stream(tmp_path))
    told: list[str] = []
    assert list(members(b"".join(tar_stream(tmp_path, unreadable=lambda path, _: told.append(path))))) == ["open"]
    assert told == [str(tmp_path / "closed")]
