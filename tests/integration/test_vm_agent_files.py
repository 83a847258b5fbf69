"""The guest's agent and files: what goes out as a tar comes in as it was, and nothing that a tar or a link says leads out of the root."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile

import pytest

from bulle.isolation.microvm.agent_protocol import FileFlags
from bulle_testing.guests import Done, Guest

pytestmark = [pytest.mark.root, pytest.mark.programs("unshare", "pivot_root")]

NONE = FileFlags(0)
LONG = "long-" + "n" * 200


def entry(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    made.mtime = 1_600_000_000
    for key, value in values.items():
        setattr(made, key, value)
    return made


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for made, content in entries:
            made.size = len(content)
            archive.addfile(made, io.BytesIO(content))
    return buffer.getvalue()


def put(guest: Guest, data: bytes, path: str = "tmp", flags: FileFlags = FileFlags.KEEP_OWNER) -> Done:
    return guest.send_all(guest.agent.tar_in(path, flags), data)


def got(guest: Guest, path: str = "tmp", *leave_out: str, flags: FileFlags = NONE) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    done = guest.finish(guest.agent.tar_out(path, leave_out, flags))
    assert done.error == 0, done
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        found = {}
        for one in archive.getmembers():
            file = archive.extractfile(one) if one.isreg() else None
            found[one.name] = one, file.read() if file else b""
        return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("running", [False, True])
def test_a_tar_comes_out_as_it_went_in(any_guest: Guest, form: int, running: bool) -> None:
    if running:
        any_guest.first()
    large = os.urandom(3_000_000)
    entries = [
        (entry("d", tarfile.DIRTYPE, mode=0o2751, uid=5, gid=6), b""),
        (entry(f"d/{LONG}/{LONG}/file", mode=0o4711, uid=3_000_000, gid=7), b"content"),
        (entry("d/large"), large),
        (entry("d/empty", mode=0o600), b""),
        (entry("d/hard", tarfile.LNKTYPE, linkname=f"d/{LONG}/{LONG}/file"), b""),
        (entry("d/soft", tarfile.SYMTYPE, linkname="/" + "t" * 150, uid=9), b""),
        (entry("d/pipe", tarfile.FIFOTYPE, mode=0o622), b""),
        (entry("d/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3), b""),
        (entry("d/\u00e9t\u00e9"), b"name"),
    ]
    done = put(any_guest, tar_of(*entries, form=form))
    assert (done.error, done.text) == (0, "")
    found = got(any_guest, "/tmp/d")
    assert set(found) == {".", LONG, f"{LONG}/{LONG}", f"{LONG}/{LONG}/file", "large", "empty", "hard", "soft", "pipe", "null", "\u00e9t\u00e9"}
    assert found["large"][1] == large
    assert (found["."][0].mode, found["."][0].uid, found["."][0].gid, found["."][0].mtime) == (0o2751, 5, 6, 1_600_000_000)
    pair = [found[f"{LONG}/{LONG}/file"], found["hard"]]
    assert {one.type for one, _ in pair} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    whole = next(one for one, _ in pair if one.isreg())
    assert (whole.mode, whole.uid, whole.gid, whole.mtime) == (0o4711, 3_000_000, 7, 1_600_000_000)
    assert (found["soft"][0].linkname, found["soft"][0].uid) == ("/" + "t" * 150, 9)
    assert found["pipe"][0].isfifo()
    assert (found["null"][0].devmajor, found["null"][0].devminor, found["null"][0].mode) == (1, 3, 0o666)
    assert set(got(any_guest, "/tmp/d", LONG, "large")) == set(found) - {LONG, f"{LONG}/{LONG}", f"{LONG}/{LONG}/file", "large"} | {"hard"}
    assert set(got(any_guest, "tmp/d/empty")) == {"empty"}
    assert set(got(any_guest, "tmp/d/soft")) == {"soft"}


def test_owners_are_root_unless_kept(native_guest: Guest) -> None:
    assert put(native_guest, tar_of((entry("f", uid=5, gid=6), b"")), flags=NONE).error == 0
    assert (got(native_guest)["f"][0].uid, got(native_guest)["f"][0].gid) == (0, 0)


def test_extended_attributes_and_whiteouts(native_guest: Guest) -> None:
    capability = b"\x01\0\0\x02\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    headers = {
        "SCHILY.xattr.security.capability": capability.decode(),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "no",
    }
    directory = entry("upper", tarfile.DIRTYPE, mode=0o755, pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})
    file = entry("upper/f", mode=0o755, pax_headers=headers)
    whiteout = entry("upper/gone", tarfile.CHRTYPE, mode=0)
    assert put(native_guest, tar_of((directory, b""), (file, b""), (whiteout, b"")), flags=FileFlags.OVERLAY).error == 0
    plain, whole = got(native_guest, "tmp/upper"), got(native_guest, "tmp/upper", flags=FileFlags.OVERLAY)
    assert plain["f"][0].pax_headers["SCHILY.xattr.security.capability"].encode() == capability
    assert not any("trusted" in key or "selinux" in key for one, _ in plain.values() for key in one.pax_headers)
    assert whole["."][0].pax_headers["SCHILY.xattr.trusted.overlay.opaque"] == "y"
    assert whole["gone"][0].ischr()
    assert (whole["gone"][0].devmajor, whole["gone"][0].devminor) == (0, 0)


@pytest.mark.parametrize("running", [False, True])
def test_no_name_and_no_link_leads_out(any_guest: Guest, running: bool) -> None:
    assert any_guest.step("mkdir", "/outside", "755") == (0, "")
    if running:
        any_guest.first()
    before = sorted(any_guest.finish(any_guest.agent.list("/outside", own_root=True)).stdout.split(b"\0"))
    for name in ("../up", "a/../../up", ".."):
        done = put(any_guest, tar_of((entry(name), b"x")))
        assert (done.error, done.text[:24]) == (errno.EINVAL, "tar: a name that climbs:")
    assert put(any_guest, tar_of((entry("h", tarfile.LNKTYPE, linkname="../../outside"), b""))).error == errno.EINVAL
    for target in ("/outside", "../../../../outside", "/proc/1/root/outside", "/proc/self/cwd"):
        done = put(any_guest, tar_of((entry("out", tarfile.SYMTYPE, linkname=target), b""), (entry("out/escaped"), b"x")))
        assert done.error in (errno.ENOENT, errno.ELOOP, errno.EEXIST, errno.ENOTDIR), (target, done)
    assert sorted(any_guest.finish(any_guest.agent.list("/outside", own_root=True)).stdout.split(b"\0")) == before
    names = any_guest.finish(any_guest.agent.list("/", own_root=True)).stdout.split(b"\0")
    assert b"escaped" not in names
    assert b"up" not in names
    # Absolute names are below the target.
    assert put(any_guest, tar_of((entry("/tmp2/f"), b"x"))).error == 0
    assert "tmp2/f" in got(any_guest)


def test_links_are_swapped_while_a_tar_goes_in_and_out(native_guest: Guest) -> None:
    assert native_guest.step("mkdir", "/outside", "755") == (0, "")
    assert native_guest.step("write", "/outside/secret", "secret", "create") == (0, "")
    native_guest.first()
    script = "cd /tmp; mkdir a; while :; do mv a b; ln -s ../../../outside a; rm a; ln -s /outside a; rm -f a; mv b a; done"
    swapper = native_guest.start("sh", "-c", script)
    native_guest.wait(lambda: swapper.started)
    data = tar_of((entry("a/x"), b"x"), (entry("a/y"), b"y"))
    for _ in range(100):
        put(native_guest, data)
        assert b"secret" not in native_guest.finish(native_guest.agent.tar_out("/tmp")).stdout
    swapper.close()
    native_guest.finish(swapper)
    assert native_guest.finish(native_guest.agent.list("/outside", own_root=True)).stdout == b"secret\0"


def test_directories_and_files_do_not_take_each_others_place(native_guest: Guest) -> None:
    assert put(native_guest, tar_of((entry("d", tarfile.DIRTYPE, mode=0o755), b""), (entry("f"), b"old"))).error == 0
    assert put(native_guest, tar_of((entry("d"), b""))).error == errno.EISDIR
    assert put(native_guest, tar_of((entry("f", tarfile.DIRTYPE), b""))).error == errno.ENOTDIR
    assert put(native_guest, tar_of((entry("f"), b"new"))).error == 0
    assert got(native_guest)["f"][1] == b"new"


@pytest.mark.parametrize("damage", ["cut", "checksum", "length", "bomb"])
def test_damaged_tars_are_refused(native_guest: Guest, damage: str) -> None:
    data = bytearray(tar_of((entry("f" * 150), b"x" * 2000)))
    if damage == "cut":
        del data[2000:]
    elif damage == "checksum":
        data[10] ^= 1
    elif damage == "length":
        data[512] = ord("9")
    else:
        head = entry("x", tarfile.XHDTYPE)
        head.size = 1 << 40
        data = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    done = put(native_guest, bytes(data))
    assert done.error in (errno.EBADMSG, errno.E2BIG), done
    assert done.text.startswith("tar:")


def test_read_and_list(any_guest: Guest) -> None:
    assert any_guest.step("write", "etc/file", "content", "create") == (0, "")
    assert any_guest.finish(any_guest.agent.read("/etc/file")).stdout == b"content"
    assert any_guest.finish(any_guest.agent.read("etc/file", 3)).stdout == b"con"
    assert any_guest.finish(any_guest.agent.read("/root/etc/file", own_root=True)).stdout == b"content"
    done = any_guest.finish(any_guest.agent.read("etc/none"))
    assert (done.error, done.text) == (errno.ENOENT, "read etc/none")
    assert any_guest.finish(any_guest.agent.read("etc")).error == errno.EISDIR
    assert any_guest.step("mknod", "etc/pipe", "600", "c", "1", "5") == (0, "")
    assert any_guest.finish(any_guest.agent.read("etc/pipe")).error in (errno.EINVAL, errno.EACCES)
    assert any_guest.finish(any_guest.agent.list("/etc")).stdout.split(b"\0")[:-1].sort() == [b"file", b"pipe"].sort()
    assert any_guest.finish(any_guest.agent.list("etc/file")).error == errno.ENOTDIR
    assert stat.S_ISCHR(got(any_guest, "etc")["pipe"][0].mode | stat.S_IFCHR)


def test_a_tar_that_nobody_takes_holds_nobody_up(native_guest: Guest) -> None:
    native_guest.first()
    assert put(native_guest, tar_of((entry("large"), bytes(4 << 20)))).error == 0
    session = native_guest.agent.tar_out("/tmp")
    native_guest.wait(lambda: len(session.output.data) == 262144)
    assert native_guest.run("echo", "on").stdout == b"on\n"
    session.close()
    assert native_guest.finish(session).error == errno.ECANCELED
