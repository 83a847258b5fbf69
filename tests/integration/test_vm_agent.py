"""The guest's agent does as it is told: streams, ends, terminals, users, limits, privileges, namespaces, steps; for every processor."""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import struct
from pathlib import Path

import pytest

from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound
from bulle.isolation.microvm.agent_protocol import INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES, Execution
from bulle_testing.guests import PATH, TIME_S, Guest, guest

pytestmark = [pytest.mark.root, pytest.mark.programs("unshare", "pivot_root")]


def test_says_who_it_is(any_guest: Guest) -> None:
    hello = any_guest.agent.hello
    assert hello is not None
    assert hello.release == os.uname().release
    assert hello.machine in ("x86_64", "aarch64", "riscv64")
    any_guest.agent.greet()
    any_guest.wait(lambda: any_guest.agent.hello is not None)
    assert any_guest.agent.hello == hello


def test_streams_are_apart_and_the_exit_code_comes_last(any_guest: Guest) -> None:
    any_guest.first()
    done = any_guest.run("sh", "-c", "echo out; echo error >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_code, done.error) == (b"out\n", b"error\n", 7, 0)


def test_stdin_and_its_end(any_guest: Guest) -> None:
    any_guest.first()
    text = os.urandom(300_000)
    assert any_guest.run("cat", stdin=text).stdout == text
    assert any_guest.run("cat", stdin=b"").stdout == b""
    # Without stdin there is /dev/null, and what comes nevertheless is nobody's.
    assert any_guest.run("cat").stdout == b""


def test_stdin_that_nobody_reads_holds_nothing_up(any_guest: Guest) -> None:
    any_guest.first()
    assert any_guest.run("true", stdin=bytes(5 * INPUT_WINDOW_BYTES)).exit_code == 0
    session = any_guest.start("sleep", "1000", stdin=True)
    sent = 0
    for _ in range(4):  # a pipe takes something, then a window waits
        sent += session.send(bytes(4 * INPUT_WINDOW_BYTES))
        assert any_guest.run("echo", "others go on").stdout == b"others go on\n"
    assert session.room == 0
    assert sent == 2 * INPUT_WINDOW_BYTES
    session.close()
    assert any_guest.finish(session).exit_code == -signal.SIGKILL


def test_what_a_command_leaves_running_does_not_hold_its_end(any_guest: Guest) -> None:
    any_guest.first()
    done = any_guest.run("sh", "-c", "sleep 1000 & echo end")
    assert done.stdout == b"end\n"
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("command", "number", "error"),
    [
        (("nowhere",), errno.ENOENT, CommandNotFound),
        (("/bin/nowhere",), errno.ENOENT, CommandNotFound),
        (("/bin/busybox/x",), errno.ENOENT, CommandNotFound),
        (("",), errno.ENOENT, CommandNotFound),
        (("/etc",), errno.EACCES, CommandNotExecutable),
        (("plain",), errno.EACCES, CommandNotExecutable),
        (("/tmp/text",), errno.ENOEXEC, CommandNotExecutable),
        (("/tmp/script",), errno.ENOENT, CommandNotFound),
    ],
)
def test_why_a_command_cannot_be_executed(native_guest: Guest, command: tuple[str, ...], number: int, error: type[BulleError]) -> None:
    native_guest.first()
    script = "echo text > /tmp/text; chmod 755 /tmp/text; echo '#!/nowhere' > /tmp/script; chmod 755 /tmp/script; echo > /bin/plain"
    assert native_guest.run("sh", "-c", script).exit_code == 0
    session = native_guest.start(*command)
    done = native_guest.finish(session)
    assert (done.error, done.text, session.started) == (number, "exec", False)
    with pytest.raises(error):
        session.raise_error("it")


def test_terminal(any_guest: Guest) -> None:
    any_guest.first()
    session = any_guest.start("sh", terminal=True, rows=11, columns=33, environment=(PATH, "PS1=", "TERM=dumb"))
    any_guest.wait(lambda: session.started or session.final)
    assert not session.error, (session.error, session.text)
    session.send(b"stty -echo; stty size; tty\n")
    any_guest.wait(lambda: b"/dev/pts/0" in session.output.data)
    assert b"11 33\r\n" in session.output.take()
    session.resize(50, 132)
    session.send(b"stty size; sh -c 'echo ready; exec sleep 1000'\n")
    any_guest.wait(lambda: b"ready\r\n" in session.output.data)
    assert b"50 132\r\n" in session.output.take()
    session.send(b"\x03exit 5\n")  # ^C reaches what is in the foreground
    done = any_guest.finish(session)
    assert done.exit_code == 5


def test_signals(any_guest: Guest) -> None:
    any_guest.first()
    session = any_guest.start("sleep", "1000")
    any_guest.wait(lambda: session.started)
    session.signal(signal.SIGTERM)
    assert any_guest.finish(session).exit_code == -signal.SIGTERM
    session = any_guest.start("sh", "-c", "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.01; done")
    any_guest.wait(lambda: bool(session.output.data))
    session.signal(signal.SIGUSR1)
    done = any_guest.finish(session)
    assert (done.stdout, done.exit_code) == (b"ready\ncaught\n", 3)


def status_of(text: bytes) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.decode().splitlines())}


def test_user_groups_limits_umask_and_directory(any_guest: Guest) -> None:
    any_guest.first()
    command = "cat /proc/self/status; cat /proc/self/limits; pwd; echo $A; touch /tmp/x; stat -c %a:%u:%g /tmp/x"
    options = {"user_id": 1000, "group_id": 1001, "groups": (5, 70000), "umask": 0o027, "directory": "/made/for/it", "environment": (PATH, "A=b c")}
    limits = ((resource.RLIMIT_NOFILE, 100, 200), (resource.RLIMIT_CORE, 0, -1))
    assert any_guest.run("chmod", "1777", "/tmp").exit_code == 0
    done = any_guest.run("sh", "-c", command, limits=limits, **options)
    assert done.exit_code == 0, done
    status = status_of(done.stdout)
    assert (status["Uid"].split(), status["Gid"].split(), status["Groups"].split()) == (["1000"] * 4, ["1001"] * 4, ["5", "70000"])
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert ["Max", "open", "files", "100", "200", "files"] in lines
    assert ["Max", "core", "file", "size", "0", "unlimited", "bytes"] in lines
    assert done.stdout.endswith(b"/made/for/it\nb c\n640:1000:1001\n")


def test_capabilities_are_those_of_the_mask(any_guest: Guest) -> None:
    any_guest.first()
    mask = 1 << 0 | 1 << 10
    status = status_of(any_guest.run("cat", "/proc/self/status", capabilities=mask).stdout)
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {mask}
    assert {int(status[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    status = status_of(any_guest.run("cat", "/proc/self/status", capabilities=mask, user_id=7, no_new_privileges=True).stdout)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert int(status["CapBnd"], 16) == mask
    assert status["NoNewPrivs"] == "1"
    assert status_of(any_guest.run("cat", "/proc/self/status").stdout)["NoNewPrivs"] == "0"


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_filter_refuses_a_call(native_guest: Guest, no_new_privileges: bool) -> None:
    native_guest.first()
    calls = {"x86_64": (83, 258), "aarch64": (34, 34)}[platform.machine()]  # mkdir, mkdirat
    jump = [struct.pack("=HBBI", 0x15, 1 - at, 0 if at == 0 else 1, number) for at, number in enumerate(calls)]
    answers = [struct.pack("=HBBI", 0x06, 0, 0, 0x50000 | errno.EXDEV), struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)]
    program = b"".join([struct.pack("=HBBI", 0x20, 0, 0, 0), *jump, *answers])
    done = native_guest.run("mkdir", "/tmp/directory", seccomp=program, no_new_privileges=no_new_privileges)
    assert done.exit_code == 1
    assert os.strerror(errno.EXDEV).encode() in done.stderr
    assert native_guest.run("mkdir", "/tmp/directory", no_new_privileges=no_new_privileges).exit_code == 0


def test_first_is_process_1_in_namespaces_of_its_own(any_guest: Guest) -> None:
    assert any_guest.step("hostname", "outside") == (0, "")
    session = any_guest.agent.execute(
        Execution(
            ("sh", "-c", "echo $$; hostname; ls /; cat; exit 4"),
            (PATH,),
            first=True,
            stdin=True,
            steps=(("hostname", "inside"), ("mount", "proc", "proc", "proc", "0", "")),
        )
    )
    any_guest.wait(lambda: session.final or b"tmp\n" in session.output.data)
    assert not session.final, (session.error, session.text)
    assert session.output.take().decode().split() == ["1", "inside", "bin", "dev", "etc", "proc", "tmp"]
    # Another joins it: the same processes, the same name.
    done = any_guest.run("sh", "-c", "hostname; ps -o pid,args; readlink /proc/self/ns/mnt; readlink /proc/1/ns/mnt")
    lines = done.stdout.decode().split("\n")
    assert lines[0] == "inside"
    assert any(line.split()[:1] == ["1"] for line in lines)
    assert lines[-2] == lines[-3]
    # A second container is none.
    assert any_guest.finish(any_guest.first()).error == errno.EBUSY
    other = any_guest.start("sleep", "1000")
    any_guest.wait(lambda: other.started)
    session.end_input()
    assert any_guest.finish(session).exit_code == 4
    assert any_guest.finish(other).exit_code == -signal.SIGKILL
    assert any_guest.finish(any_guest.start("true")).error == errno.ESRCH
    again = any_guest.first("sh", "-c", "hostname")
    assert any_guest.finish(again).stdout == b"outside\n"


def test_init_passes_signals_on_and_reaps(any_guest: Guest) -> None:
    script = "trap 'exit 9' TERM; (sleep 0.05 & ) ; echo $$; while :; do sleep 0.01; done"
    session = any_guest.first("sh", "-c", script, init=True)
    any_guest.wait(lambda: bool(session.output.data))
    assert session.output.take() != b"1\n"
    # The orphan is init's, and does not stay as a zombie, as the script's own children may for a moment.
    count = "sleep 0.2; cat /proc/[0-9]*/stat | while read -r pid name state parent rest; do echo $state$parent; done"
    assert b"Z1\n" not in any_guest.run("sh", "-c", count).stdout
    session.signal(signal.SIGTERM)
    assert any_guest.finish(session).exit_code == 9
    session = any_guest.first("sh", "-c", "kill -KILL $$", init=True)
    assert any_guest.finish(session).exit_code == 128 + signal.SIGKILL
    done = any_guest.finish(any_guest.first("nowhere", init=True))
    assert (done.error, done.text) == (errno.ENOENT, "exec")


def test_idle_init_kills_all_others_or_ends(any_guest: Guest) -> None:
    idle = any_guest.first()
    other = any_guest.start("sleep", "1000")
    any_guest.wait(lambda: other.started)
    idle.signal(signal.SIGUSR1)
    assert any_guest.finish(other).exit_code == -signal.SIGKILL
    # From inside it is deaf.
    assert any_guest.run("sh", "-c", "kill -TERM 1; kill -USR1 1; echo alive").stdout == b"alive\n"
    for _ in range(100):  # one from inside that was not taken yet hides one from outside: the kernel keeps only the first of a kind
        idle.signal(signal.SIGTERM)
        any_guest.run("true")
        if idle.final:
            break
    assert any_guest.finish(idle).exit_code == 0


def test_close_kills_and_still_has_an_end(any_guest: Guest) -> None:
    any_guest.first()
    session = any_guest.start("sh", "-c", "sleep 1000 & yes")
    any_guest.wait(lambda: len(session.output.data) == OUTPUT_WINDOW_BYTES)
    session.close()
    assert any_guest.finish(session).exit_code == -signal.SIGKILL
    for _ in range(100):  # what is killed takes its time
        left = any_guest.run("ps", "-o", "args").stdout
        if b"sleep 1000" not in left:
            break
    assert b"sleep 1000" not in left
    assert not any_guest.agent.sessions[1:]


def test_hundred_megabytes_and_a_reader_that_stops(native_guest: Guest) -> None:
    native_guest.first()
    lazy = native_guest.start("sh", "-c", "yes; :")
    sized = native_guest.start("sh", "-c", "dd if=/dev/zero bs=1M count=100 2>/dev/null")
    taken = 0

    def drained() -> bool:
        nonlocal taken
        taken += len(sized.output.take())
        return sized.final

    native_guest.wait(drained)
    assert taken == 100 << 20
    # What nobody takes stays a window, here and there.
    assert len(lazy.output.data) == OUTPUT_WINDOW_BYTES
    lazy.output.consume(1000)
    assert len(lazy.output.data) == OUTPUT_WINDOW_BYTES - 1000
    lazy.output.take()
    native_guest.wait(lambda: len(lazy.output.data) == OUTPUT_WINDOW_BYTES)


def test_much_both_ways(native_guest: Guest) -> None:
    native_guest.first()
    session = native_guest.start("cat", stdin=True)
    sent = received = 0
    total, block = 20 << 20, bytes(range(256)) * 256

    def over() -> bool:
        nonlocal sent, received
        data = session.output.take()
        assert data == (block * (len(data) // len(block) + 2))[received % 256 :][: len(data)]
        received += len(data)
        while sent < total and session.room:
            start = sent % len(block)
            sent += session.send(memoryview(block)[start : start + total - sent])
        if sent == total:
            session.end_input()
        return session.final

    native_guest.wait(over)
    assert (sent, received) == (total, total)


def test_two_hundred_sessions_at_once(any_guest: Guest) -> None:
    any_guest.first()
    sessions = [any_guest.start("cat", stdin=True) for _ in range(200)]
    for number, session in enumerate(sessions):
        session.send(b"%d" % number)
    for number, session in enumerate(sessions):
        any_guest.wait(lambda number=number, session=session: session.output.data == b"%d" % number)
    for session in sessions:
        session.end_input()
    assert [any_guest.finish(session).exit_code for session in sessions] == [0] * 200
    # What is over the number is refused, and those that run go on.
    sessions = [any_guest.start("cat", stdin=True) for _ in range(255)]
    with pytest.raises(BulleError, match="too many"):
        any_guest.start("cat")
    for session in sessions:
        session.close()
    assert {any_guest.finish(session).exit_code for session in sessions} == {-signal.SIGKILL}


def test_long_environments_and_arguments(native_guest: Guest) -> None:
    native_guest.first()
    environment = (PATH, *(f"VARIABLE_{number}={'x' * 1000}" for number in range(500)))
    done = native_guest.run("sh", "-c", "env | grep -c VARIABLE_", environment=environment)
    assert done.stdout == b"500\n"
    assert native_guest.finish(native_guest.start("true", "x" * 200_000)).error == errno.E2BIG
    with pytest.raises(BulleError, match="too long"):
        native_guest.start("true", "x" * (3 << 20))
    with pytest.raises(BulleError, match="NUL"):
        native_guest.start("true", "a\0b")


STEPS = [
    (("mkdir", "/one/two/three", "750"), 0),
    (("mkdir", "made/below", "700"), 0),
    (("file", "/one/file", "640"), 0),
    (("file", "/one/file", "640"), 0),
    (("write", "/one/file", "content"), 0),
    (("write", "/one/none", "content"), errno.ENOENT),
    (("write", "/one/new", "content", "create"), 0),
    (("symlink", "/one/file", "/one/link"), 0),
    (("symlink", "/one/file", "/one/link"), errno.EEXIST),
    (("mknod", "made/null", "666", "c", "1", "3"), 0),
    (("chown", "/one/file", "1000", "1001"), 0),
    (("mount", "tmpfs", "/one/two", "tmpfs", "14", "size=1m,mode=700"), 0),
    (("mount", "/one", "made/below", "", "4096", ""), 0),
    (("mount", "", "made/below", "", str(4096 | 32 | 1), ""), 0),
    (("mount", "/one/file", "made/null", "", "4096", ""), 0),
    (("umount", "made/null", "0"), 0),
    (("mount", "x", "/one/two", "nosuchfs", "0", ""), errno.ENODEV),
    (("mount", "x", "/none", "tmpfs", "0", ""), errno.ENOENT),
    (("umount", "/one/two", "2"), 0),
    (("wait", "/one/file", "1"), 0),
    (("wait", "/one/never", "20"), errno.ETIMEDOUT),
    (("link", "lo", "up"), 0),
    (("link", "lo", "mtu", "1500"), 0),
    (("link", "none", "up"), errno.ENODEV),
    (("address", "lo", "10.1.2.3/24"), 0),
    (("address", "lo", "fd00::1:2/64"), 0),
    (("address", "lo", "10.1.2/24"), errno.EINVAL),
    (("address", "lo", "fd00:::1/64"), errno.EINVAL),
    (("link", "eth0", "mac", "02:00:00:00:00:0a"), 0),
    (("link", "eth0", "mtu", "1400"), 0),
    (("link", "eth0", "up"), 0),
    (("address", "eth0", "10.1.3.3/24"), 0),
    (("address", "eth0", "fd01::3/64"), 0),
    (("route", "eth0", "10.1.3.9"), 0),
    (("route", "eth0", "fd01::9"), 0),
    (("route", "eth0", "10.9.9.9"), errno.ENETUNREACH),
    (("module", "/one/none.ko"), errno.ENOENT),
    (("entropy", "zz"), errno.EINVAL),
    (("hostname", "h" * 65), errno.EINVAL),
    (("nonsense", "x"), errno.EPROTO),
    (("mkdir", "/x"), errno.EPROTO),
]


def test_steps(native_guest: Guest) -> None:
    for words, number in STEPS:
        error, text = native_guest.step(*words)
        assert error == number, (words, text)
        assert not error or text.startswith(words[0]), text
    native_guest.first()
    script = "stat -c %a:%F /made/below /made/null; echo x > /made/below/file; cd /proc/net; cat fib_trie if_inet6 route ipv6_route"
    listed = native_guest.run("sh", "-c", script)
    assert listed.stdout.startswith(b"755:directory\n666:character special file\n")
    assert os.strerror(errno.EROFS).encode() in listed.stderr
    assert b"10.1.2.3" in listed.stdout
    assert b"fd000000000000000000000000010002" in listed.stdout


def test_steps_of_a_running_container_are_done_in_its_namespaces(native_guest: Guest) -> None:
    native_guest.first()
    assert native_guest.step("mount", "tmpfs", "tmp", "tmpfs", "0", "size=1m") == (0, "")
    assert native_guest.step("file", "tmp/file", "644") == (0, "")
    assert native_guest.step("write", "tmp/file", "new") == (0, "")
    assert native_guest.step("hostname", "renamed") == (0, "")
    assert native_guest.run("sh", "-c", "cat /tmp/file; hostname").stdout == b"newrenamed\n"
    # From the agent's own root into the container, which does not see that root.
    assert native_guest.step("mkdir", "/volume", "755") == (0, "")
    assert native_guest.step("file", "/volume/here", "644") == (0, "")
    assert native_guest.step("mkdir", "tmp/at", "755") == (0, "")
    assert native_guest.step("mount", "/volume", "tmp/at", "", "4096", "") == (0, "")
    assert native_guest.run("ls", "/tmp/at").stdout == b"here\n"
    # A step that waits holds nobody up.
    waiting = native_guest.agent.step("wait", "tmp/later", "20000")
    assert native_guest.run("sh", "-c", ": > /tmp/later").exit_code == 0
    assert native_guest.finish(waiting).error == 0


def test_steps_of_a_path_that_leads_out_stay_in(native_guest: Guest) -> None:
    assert native_guest.step("symlink", "/../../../../", "etc/out") == (0, "")
    assert native_guest.step("write", "etc/out/escaped", "x", "create") == (0, "")
    assert native_guest.step("write", "../../escaped2", "x", "create") == (0, "")
    names = bytes(native_guest.finish(native_guest.agent.list("/", own_root=True)).stdout).split(b"\0")
    assert not {b"escaped", b"escaped2"} & set(names)
    names = bytes(native_guest.finish(native_guest.agent.list("/")).stdout).split(b"\0")
    assert {b"escaped", b"escaped2"} <= set(names)
    assert native_guest.step("mount", "proc", "proc", "proc", "0", "") == (0, "")
    assert native_guest.step("write", "proc/self/root/escaped", "x", "create")[0] == errno.ELOOP


def test_failed_step_of_a_first_says_which(any_guest: Guest) -> None:
    done = any_guest.finish(any_guest.first("true", steps=(("mkdir", "a", "755"), ("mount", "x", "nowhere/b", "tmpfs", "0", ""))))
    assert (done.error, done.text) == (errno.ENOENT, "mount nowhere/b")
    assert any_guest.finish(any_guest.first("true")).exit_code == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_a_first_whose_namespaces_were_made_ahead(any_guest: Guest, terminal: bool) -> None:
    """It is like any other, its further steps are done in the same namespaces, and nothing of it is seen before it runs."""
    shown = ("mount", "devpts", "dev/pts", "devpts", "10", "newinstance,ptmxmode=0666,mode=0620")
    failed = any_guest.finish(any_guest.agent.prepare([("mkdir", "a", "755"), ("mount", "x", "nowhere/b", "tmpfs", "0", "")]))
    assert (failed.error, failed.text) == (errno.ENOENT, "mount nowhere/b")
    assert any_guest.finish(any_guest.agent.prepare([("mount", "proc", "proc", "proc", "0", ""), shown, ("hostname", "ahead")])).error == 0
    assert any_guest.finish(any_guest.agent.prepare([])).error == errno.EBUSY
    assert any_guest.finish(any_guest.start("true")).error == errno.ESRCH
    assert b"self" not in bytes(any_guest.finish(any_guest.agent.list("proc")).stdout).split(b"\0")
    script = f"echo $$ $(hostname) $(readlink /proc/self/ns/mnt) ${{#LONG}}; echo error >&2; {'tty' if terminal else 'cat'}; exit 3"
    environment = (PATH, f"LONG={'x' * 100_000}")
    session = any_guest.first("sh", "-c", script, steps=(("hostname", "inside"),), environment=environment, terminal=terminal, stdin=not terminal)
    joined = any_guest.run("readlink", "/proc/1/ns/mnt").stdout.decode().strip() if not terminal else ""
    if not terminal:
        session.send(b"input")
        session.end_input()
    done = any_guest.finish(session)
    assert done.exit_code == 3
    said = done.stdout.decode().split()
    assert said[:2] + said[3:4] == ["1", "inside", "100000"]
    assert said[4:] == (["error", "/dev/pts/0"] if terminal else ["input"])
    assert terminal or (said[2] == joined and done.stderr == b"error\n")
    assert any_guest.finish(any_guest.first("cat")).exit_code == 0


def test_power_off_ends_everything(tmp_path: Path) -> None:
    with guest(tmp_path) as made:
        made.first()
        session = made.start("sleep", "1000")
        made.wait(lambda: session.started)
        made.agent.power_off()
        with pytest.raises(BulleError, match="hung up"):
            made.wait(lambda: False, TIME_S)
        assert made.agent.ended
