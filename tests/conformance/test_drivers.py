"""One suite for every isolation level, through the public surface: the same verb means the same everywhere, or the level says that it lacks it.

What a level lacks is read from its driver's probe, never from its name: a test names the features that it needs, and where one is missing the same
request must raise Unsupported with the documented sentence.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound, Conflict, InvalidInput, NotFound, Unavailable, Unsupported
from bulle.isolation.control_group import available
from bulle.isolation.driver import Feature
from bulle_testing.running import Level, Machine, Terminal, follow, need_several_ids, usable, wait_for

DEFAULT_CAPABILITIES = 0x00000000A80425FB  # Docker's default set

# What stands in a container's /dev, as in the OCI's runtime specification.
DEVICES = frozenset((
    "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero",
))  # fmt: skip


@pytest.fixture
def features(place: Machine, level: Level) -> frozenset[Feature]:
    return usable(level, place.home)


def lacks(place: Machine, level: Level, feature: Feature, **options: Any) -> bool:
    """Whether the level lacks the feature; then asking for it must raise Unsupported in the documented words, and leave nothing."""
    if feature in usable(level, place.home):
        return False
    with pytest.raises(Unsupported) as caught:
        container = place.create(level, "true", **options)
        try:
            container.start()
        finally:
            container.remove(force=True)
    assert str(caught.value).startswith(f"isolation level {level.driver!r} has no {feature.value}")
    return True


# Start, exit codes, streams


def test_exit_code_is_the_commands(place: Machine, level: Level) -> None:
    assert place.run(level, "true").exit_code == 0
    assert place.run(level, "sh", "-c", "exit 77").exit_code == 77
    assert place.run(level, "sh", "-c", "sh -c 'kill -TERM $$'; exit $?").exit_code == 143, "a shell says 128+n of its child"


def test_exit_codes_of_the_command_line(place: Machine, level: Level) -> None:
    """125 for us, 126 and 127 for a command that cannot be run or found, as Docker; one sentence and nothing else."""
    for arguments, code in (
        (["--user", "nobody-here", "busybox", "true"], 125),
        (["no-such-image:9", "true"], 125),
        (["busybox", "/etc/passwd"], 126),
        (["busybox", "/etc"], 126),
        (["busybox", "no-such-command"], 127),
        (["busybox", "/no/such/command"], 127),
        (["busybox", "sh", "-c", "exit 3"], 3),
    ):
        done = place.command("run", "--rm", "--pull=never", *level.flags, *arguments)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done.stderr)
        assert code == 3 or len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "Traceback" not in done.stderr


def test_a_start_that_fails_says_why(place: Machine, level: Level) -> None:
    for command, error in ((("nowhere",), CommandNotFound), (("/etc/passwd",), CommandNotExecutable)):
        container = place.create(level, *command)
        with pytest.raises(error):
            container.start()
        state = container.state()
        assert (state.status, state.exit_code) == ("created", error.exit_code)
        container.remove()


def test_script_without_interpreter_is_named(place: Machine, level: Level, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/interpreter -x\n")
    script.chmod(0o755)
    (tmp_path / "garbage").write_bytes(b"\x7fELF garbage")
    (tmp_path / "garbage").chmod(0o755)
    tmp_path.chmod(0o755)
    volume = (bulle.VolumeOption(str(tmp_path), "/v"),)
    if lacks(place, level, Feature.VOLUMES, volumes=volume):
        return
    with pytest.raises(CommandNotFound, match="/no/interpreter"):
        place.run(level, "/v/script", volumes=volume)
    # Where the last step is a sealed program, it is that which finds out, and says so as the container's own exit code.
    done = place.command("run", "--rm", *level.flags, "-v", f"{tmp_path}:/v", "busybox", "/v/garbage")
    assert done.returncode == 126
    assert "exec format error" in done.stderr or "cannot be executed" in done.stderr


def test_stdout_and_stderr_stay_apart(place: Machine, level: Level) -> None:
    done = place.run(level, "sh", "-c", "echo out; echo err >&2; printf tail")
    assert (done.stdout, done.stderr) == (b"out\ntail", b"err\n")


def test_input_and_its_end_arrive(place: Machine, level: Level) -> None:
    data = os.urandom(1_500_000)
    done = place.run(level, "sh", "-c", "cat; echo end >&2", input=data)
    assert done.stdout == data
    assert done.stderr == b"end\n"
    assert place.run(level, "cat").stdout == b"", "without input the command sees its end at once"


def test_command_line_carries_input(place: Machine, level: Level) -> None:
    done = place.command("run", "--rm", "-i", *level.flags, "busybox", "wc", "-c", input="12345")
    assert (done.returncode, done.stdout.strip()) == (0, "5")


def test_a_lot_of_output_is_whole(place: Machine, level: Level) -> None:
    done = place.run(level, "sh", "-c", "seq 1 100000; seq 1 1000 >&2")
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 100001))
    assert len(done.stderr.splitlines()) == 1000


def test_environment_is_the_images_and_what_was_asked(place: Machine, level: Level) -> None:
    lines = set(place.shell(level, "env", environment={"ONE": "1", "TWO": "a b=c", "PATH": "/bin"}).splitlines())
    assert {"ONE=1", "TWO=a b=c", "PATH=/bin", "HOME=/root"} <= lines
    names = {line.partition("=")[0] for line in lines}
    assert names <= {"ONE", "TWO", "PATH", "HOME", "HOSTNAME", "PWD", "SHLVL", "OLDPWD"}, "nothing of the caller's environment comes along"


# Who and where


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", "0 0 0"),
        ("www-data", "33 33 29 33"),
        ("33", "33 33 29 33"),
        ("www-data:tty", "33 5 5"),
        ("1234", "1234 0 0"),
        ("1234:99", "1234 99 99"),
        ("0:33", "0 33 33"),
    ],
)
def test_user(place: Machine, level: Level, user: str, ids: str) -> None:
    need_several_ids(place)
    words = place.shell(level, "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '", user=user).split()
    assert words[:2] == ids.split()[:2]
    assert sorted(set(words[1:])) == sorted(set(ids.split()[1:]))


@pytest.mark.parametrize("user", ["nobody-here", "root:no-group", "-1", "4294967295", "4294967296", "0:4294967296", "99999999999999999999", "1e3"])
def test_user_that_cannot_be(place: Machine, level: Level, user: str) -> None:
    with pytest.raises(InvalidInput):
        place.run(level, "id", user=user)


def test_home_is_the_users(place: Machine, level: Level) -> None:
    need_several_ids(place)
    assert place.shell(level, "echo $HOME", user="www-data") == "/var/www\n"
    assert place.shell(level, "echo $HOME", user="4321") == "/\n"


def test_working_directory_is_made(place: Machine, level: Level) -> None:
    assert place.shell(level, "pwd; ls -ld . | cut -c1-10", working_directory="/new/deep/dir") == "/new/deep/dir\ndrwxr-xr-x\n"
    assert place.shell(level, "pwd; umask") == "/\n0022\n"
    with pytest.raises(InvalidInput):
        place.run(level, "pwd", working_directory="relative")
    with pytest.raises(BulleError):
        place.run(level, "pwd", working_directory="/etc/passwd")


def test_first_process_is_alone(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    text = place.shell(level, "echo $$; ls -d /proc/[0-9]* | wc -l")
    if Feature.OWN_PROCESSES in features:
        assert text.split()[0] == "1"
        assert int(text.split()[1]) < 6
    else:
        assert int(text.split()[0]) > 1


def test_hostname(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.OWN_HOSTNAME, hostname="a-name"):
        assert place.shell(level, "hostname") == os.uname().nodename + "\n"
        return
    assert place.shell(level, "hostname; cat /etc/hostname; echo $HOSTNAME", hostname="a-name") == "a-name\n" * 3
    with place.running(level) as container:
        assert place.execute(container, "hostname").stdout.decode().strip() == container.id[:12]


def test_network(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.OWN_NETWORK, network="none"):
        return
    script = "ls /sys/class/net; cat /sys/class/net/lo/flags; ping -c1 -W2 127.0.0.1 >/dev/null && echo up"
    assert place.shell(level, script).split() == ["lo", "0x9", "up"]
    if not lacks(place, level, Feature.HOST_NETWORK, network="host"):
        assert set(place.shell(level, "ls /sys/class/net", network="host").split()) == set(os.listdir("/sys/class/net"))


# Files


def test_writes_stay_in_the_container(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", "cat /kept 2>/dev/null; echo again >> /kept; rm -rf /opt; ls -d /opt 2>/dev/null; true")
    for expected in (b"", b"again\n", b"again\nagain\n"):
        attachment = container.start(attach=True)
        assert attachment is not None
        assert follow(attachment).stdout == expected, "an exited container that is started again has its files"
        assert container.wait() == 0
    container.remove()
    assert place.shell(level, "ls -d /opt") == "/opt\n", "the image is as it was"


def test_read_only_root(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.READ_ONLY_ROOT, read_only=True):
        return
    script = "for f in /x /etc/passwd /bin/x; do echo 1 >$f; done; touch /run/y; echo 1 > /dev/null && echo 1 > /dev/shm/x && echo rw"
    done = place.run(level, "sh", "-c", script, read_only=True, working_directory="/was/not/there", tmpfs=(("/run", ""),))
    assert done.stdout == b"rw\n", done
    assert done.stderr.count(b"Read-only file system") == 3, done.stderr


def test_volumes(place: Machine, level: Level, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir").chmod(0o777)
    (tmp_path / "dir/in").write_text("inside\n")
    (tmp_path / "file").write_text("text\n")
    volumes = (
        bulle.VolumeOption(f"{tmp_path}/dir", "/made/rw"),
        bulle.VolumeOption(f"{tmp_path}/dir", "/ro", True),
        bulle.VolumeOption(f"{tmp_path}/file", "/etc/file"),
        bulle.VolumeOption(f"{tmp_path}/file", "/etc/passwd", True),
    )
    if lacks(place, level, Feature.VOLUMES, volumes=volumes):
        return
    script = """
    cat /made/rw/in /ro/in /etc/file; echo out > /made/rw/out; echo more >> /etc/file; cat /etc/passwd
    echo no > /ro/no; rm /ro/in; echo no >> /etc/passwd
    mount -o remount,rw /ro; touch /ro/no; umount /ro; touch /ro/no
    true"""
    done = place.run(level, "sh", "-c", script, volumes=volumes)
    assert done.stdout.decode() == "inside\ninside\ntext\ntext\nmore\n", done
    assert done.stderr.count(b"Read-only file system") >= 5, done.stderr
    assert sorted(os.listdir(tmp_path / "dir")) == ["in", "out"]
    assert (tmp_path / "dir/out").read_text() == "out\n"
    assert (tmp_path / "dir/out").stat().st_uid == os.geteuid(), "what container root writes to a volume is its owner's"
    assert (tmp_path / "file").read_text() == "text\nmore\n"


def test_volume_that_cannot_be(place: Machine, level: Level, tmp_path: Path) -> None:
    volume = (bulle.VolumeOption(f"{tmp_path}/nowhere", "/v"),)
    if lacks(place, level, Feature.VOLUMES, volumes=volume):
        return
    with pytest.raises(NotFound, match="nowhere"):
        place.run(level, "true", volumes=volume)
    for target in ("relative", "/", "/.", "/proc", "/proc/sys/kernel"):
        with pytest.raises(BulleError):
            place.run(level, "true", volumes=(bulle.VolumeOption(str(tmp_path), target),))
    assert os.listdir(tmp_path) == []


def test_tmpfs(place: Machine, level: Level) -> None:
    need_several_ids(place)
    tmpfs = (("/t", "size=1m,mode=0750,noexec"), ("/x", "exec,size=64k,uid=33"))
    if lacks(place, level, Feature.TMPFS, tmpfs=tmpfs):
        return
    script = "ls -ld /t | cut -c1-10; head -c 3000000 /dev/zero > /t/big; ls -l /t/big | awk '{print $5}'; cp /bin/busybox /t/b"
    script += "; grep ' /[tx] ' /proc/mounts"
    text = place.shell(level, script, tmpfs=tmpfs)
    assert text.startswith("drwxr-x---\n1048576\n"), text
    lines = {line.split()[1]: line.split()[3].split(",") for line in text.splitlines() if line.startswith("tmpfs ")}
    assert {"noexec", "nosuid", "nodev"} <= set(lines["/t"])
    assert "noexec" not in lines["/x"]
    assert {"nosuid", "nodev"} <= set(lines["/x"])
    with pytest.raises(InvalidInput):
        place.run(level, "true", tmpfs=(("/t", "no-such-option=1"),))


def test_devices(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    if Feature.VOLUMES not in features:
        pytest.skip("a level without mounts has the image's own /dev")
    script = "cd /dev; ls | tr '\\n' ' '; echo; ls -l null zero tty random | awk '{print $5,$6,$10}'; readlink fd; readlink stdout"
    script += "; echo x > null; head -c3 zero | wc -c"
    text = place.shell(level, script)
    names, *rest = text.splitlines()
    assert set(names.split()) <= DEVICES
    assert rest == ["1, 3 null", "1, 8 random", "5, 0 tty", "1, 5 zero", "/proc/self/fd", "/proc/self/fd/1", "3"]


def test_reopening_stdout(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    """As nginx does with its logs; also as another user."""
    done = place.run(level, "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin", input=b"in")
    assert (done.stdout, done.stderr) == (b"out\nin", b"err\n")


# Terminal


def test_terminal(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.TERMINAL, terminal=True):
        return
    script = "tty; echo $TERM; stty size; read line; stty size; echo got $line; echo err >&2; exit 5"
    container = place.create(level, "sh", "-c", script, terminal=True, interactive=True)
    attachment = container.start(attach=True, stdin=True, rows=33, columns=99)
    assert attachment is not None
    assert follow(attachment, until=b"99\r\n").stdout == b"/dev/pts/0\r\nxterm\r\n33 99\r\n"
    attachment.resize(41, 123)
    attachment.send_stdin(b"hello\r")
    done = follow(attachment)
    assert done.stdout.replace(b"hello\r\n", b"", 1) == b"41 123\r\ngot hello\r\nerr\r\n"
    assert (done.exit_code, done.stderr) == (5, b"")
    assert container.wait() == 5
    container.remove()


def test_terminal_of_the_command_line(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.TERMINAL, terminal=True):
        return
    terminal = Terminal(place, "run", "--rm", "-it", *level.flags, "busybox", "sh", rows=31, columns=101)
    try:
        terminal.expect("# ")
        terminal.type("stty size; echo $((40+2))\r")
        terminal.expect("31 101")
        terminal.expect("42\r\n")
        terminal.resize(25, 77)
        wait_size = "until [ \"$(stty size)\" = '25 77' ]; do sleep 0.05; done; echo re''sized\r"
        terminal.type(wait_size)
        terminal.expect("resized")
        terminal.type("sleep 1000\r")
        time.sleep(0.2)
        terminal.type(b"\x03")  # ctrl-c ends the command, not the shell
        terminal.type("echo st''ill; exit 9\r")
        terminal.expect("still")
        assert terminal.wait() == 9
    finally:
        terminal.close()


def test_terminal_has_a_console(place: Machine, level: Level) -> None:
    need_several_ids(place)
    if lacks(place, level, Feature.TERMINAL, terminal=True):
        return
    done = place.run(level, "sh", "-c", "echo to console > /dev/console; echo $?", terminal=True, user="33")
    assert b"to console\r\n0\r\n" in done.stdout


# Exec


def test_exec(place: Machine, level: Level) -> None:
    need_several_ids(place)
    if lacks(place, level, Feature.EXECUTE):
        return
    with place.running(level, environment=("FROM=run",), working_directory="/tmp") as container:
        done = place.execute(container, "sh", "-c", "echo $FROM $MORE; pwd; echo err >&2; exit 42", environment=("MORE=exec",))
        assert (done.exit_code, done.stdout, done.stderr) == (42, b"run exec\n/tmp\n", b"err\n")
        done = place.execute(container, "sh", "-c", "id -u; pwd; cat", user="www-data", working_directory="/made/here", input=b"in\n")
        assert done.stdout == b"33\n/made/here\nin\n", done
        with pytest.raises(CommandNotFound):
            place.execute(container, "nowhere")
        with pytest.raises(CommandNotExecutable):
            place.execute(container, "/etc/passwd")
        with pytest.raises(InvalidInput):
            place.execute(container, "id", user="nobody-here")
        place.execute(container, "touch", "/shared")
        assert place.execute(container, "ls", "/shared").stdout == b"/shared\n"
        assert container.execute(bulle.ExecOptions(command=("sh", "-c", "sleep 0.1; echo 1 > /detached")), detach=True) is None
        wait_for(lambda: place.execute(container, "cat", "/detached").stdout == b"1\n", "the detached command's file")
        assert place.execute(container, "sh", "-c", "exec sleep 0.01").exit_code == 0
    with pytest.raises((Conflict, NotFound)):
        place.execute(container, "true")


def test_exec_sees_the_same_namespaces_and_limits(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.EXECUTE):
        return
    script = "for n in /proc/self/ns/*; do readlink $n; done; cat /proc/self/cgroup; grep -E '^(Cap|Seccomp|NoNew)' /proc/self/status"
    script += "; cat /proc/self/limits | grep 'open files'"
    limits = (bulle.ResourceLimit("nofile", 123, 456),)
    with place.running(level, "sh", "-c", f"({script}) > /own; sleep 1000", limits=limits) as container:
        wait_for(lambda: b"open files" in place.execute(container, "cat", "/own").stdout, "the first process's word")
        own = place.execute(container, "cat", "/own").stdout.splitlines()
        other = place.execute(container, "sh", "-c", script).stdout.splitlines()
        assert other == own


def test_exec_with_terminal(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.EXECUTE) or lacks(place, level, Feature.TERMINAL, terminal=True):
        return
    with place.running(level) as container:
        done = place.execute(container, "sh", "-c", "test -t 0 && test -t 1 && tty && exit 6", terminal=True)
        assert (done.exit_code, done.stdout) == (6, b"/dev/pts/0\r\n")
        terminal = Terminal(place, "exec", "-it", container.name, "sh", rows=20, columns=60)
        try:
            terminal.expect("# ")
            terminal.type("stty size\r")
            terminal.expect("20 60")
            terminal.type("exit 8\r")
            assert terminal.wait() == 8
        finally:
            terminal.close()


# Signals and the end


def test_stop_and_kill(place: Machine, level: Level) -> None:
    trap = "trap 'echo bye; exit 3' TERM; trap 'echo usr' USR1; echo ready; while :; do sleep 0.02; done"
    with place.running(level, "sh", "-c", trap) as container:
        wait_for(lambda: any(entry.data == b"ready\n" for entry in container.logs()), "ready")
        container.kill("USR1")
        wait_for(lambda: any(entry.data == b"usr\n" for entry in container.logs()), "usr")
        container.stop()
        assert (container.state().status, container.wait()) == ("exited", 3)
        assert [entry.data for entry in container.logs()][-1] == b"bye\n"
        container.stop()  # nothing happens
        with pytest.raises(Conflict):
            container.kill()
    with place.running(level, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done") as container:
        wait_for(lambda: list(container.logs()), "ready")
        container.stop(timeout_s=0)
        assert container.wait() == 137
    with place.running(level, stop_signal="SIGKILL") as container:
        container.stop(timeout_s=30)
        assert container.wait() == 137
    with place.running(level, "sh", "-c", "trap 'exit 7' INT; echo ready; while :; do sleep 0.02; done", stop_signal="INT") as container:
        wait_for(lambda: list(container.logs()), "ready")
        container.stop()
        assert container.wait() == 7


def test_command_passes_signals_on(place: Machine, level: Level) -> None:
    command = place.start_command(
        "run", "--rm", *level.flags, "busybox", "sh", "-c", "trap 'exit 33' TERM; echo ready; while :; do sleep 0.02; done", stdout=subprocess.PIPE
    )
    assert command.stdout is not None
    with command, command.stdout:
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(signal.SIGTERM)
        assert command.wait(20) == 33


def test_all_processes_end_with_the_first(place: Machine, level: Level) -> None:
    mark = f"{os.getpid()}{time.monotonic_ns() % 10**9}"
    done = place.run(level, "sh", "-c", f"setsid sleep 1{mark} >/dev/null 2>&1 & (sleep 2{mark} >/dev/null 2>&1 &) ; exit 4")
    assert done.exit_code == 4

    def alive() -> list[str]:
        found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return re.findall(rf"^sleep [12]{mark}$", found, re.MULTILINE)

    wait_for(lambda: not alive(), "the end of what the container started")


def test_init_reaps_and_forwards(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.INIT, init=True):
        return
    assert place.run(level, "sh", "-c", "exit 12", init=True).exit_code == 12
    # Orphans that end at once: without init they stay as zombies of a process 1 that does not wait.
    script = "trap 'exit 21' TERM; for i in 1 2 3; do (sleep 0.01 &) ; done; echo started; while :; do sleep 0.05; done"
    with place.running(level, "sh", "-c", script, init=True) as container:
        wait_for(lambda: list(container.logs()), "started")
        wait_for(lambda: "Z" not in {row[-1] for row in container.top(["-eo", "pid,stat"])[1]}, "no zombie")
        container.stop()
        assert container.wait() == 21


def test_remove(place: Machine, level: Level) -> None:
    with place.running(level, name="to-remove") as container:
        with pytest.raises(Conflict, match="is running"):
            container.remove()
        with pytest.raises(Conflict):
            place.create(level, "true", name="to-remove")
        pid = container.state().pid
        assert os.path.isdir(f"/proc/{pid}")
        container.remove(force=True)
        assert not os.path.isdir(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        with pytest.raises(NotFound):
            place.engine.containers.get("to-remove")
    container = place.create(level, "true", name="to-remove")
    container.remove()


# Limits and privileges


def test_out_of_memory(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.MEMORY_LIMIT, memory_bytes=32 << 20):
        return
    with place.running(level, "sh", "-c", "sleep 0.1; exec tail /dev/zero", memory_bytes=16 << 20, memory_swap_bytes=16 << 20) as container:
        assert container.wait() == 137
        assert container.state().out_of_memory
        assert container.inspect()["State"]["OOMKilled"] is True  # type: ignore[index]
    with place.running(level, "true", memory_bytes=16 << 20) as container:
        assert container.wait() == 0
        assert not container.state().out_of_memory


def test_limit_on_processes(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.PIDS_LIMIT, pids_limit=8):
        return
    done = place.run(level, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.3 & done; wait", pids_limit=8)
    assert b"can't fork" in done.stderr


def test_processor_limits(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    if lacks(place, level, Feature.CPU_LIMIT, nano_cpus=100_000_000):
        return
    # A tenth of a processor: work takes far longer than the time that it is given for it.
    count = "i=0; while [ $i -lt NUMBER ]; do i=$((i+1)); done"
    if Feature.OWN_KERNEL in features:  # whose clock counts what it had to wait for as used
        script = f"cut -d' ' -f1 /proc/uptime; {count.replace('NUMBER', '30000')}; cut -d' ' -f1 /proc/uptime"
        free_start, free_end = map(float, place.shell(level, script).split())
        start, end = map(float, place.shell(level, script, nano_cpus=100_000_000, cpu_shares=512).split())
        used_s = free_end - free_start
    else:  # so much work as takes it some fifth of a second, on whatever machine
        reading = f"read -r {' '.join(f'field{number}' for number in range(1, 14))} user system rest </proc/$$/stat"
        work = f"user=0 system=0; while [ $((user+system)) -lt 20 ]; do {count.replace('NUMBER', '500')}; {reading}; done"
        script = f"cut -d' ' -f1 /proc/uptime; {work}; cut -d' ' -f1 /proc/uptime; echo $((user+system))"
        for _ in range(5):  # a virtual machine whose host is busy counts as used what it waited for
            start, end, ticks = map(float, place.shell(level, script, nano_cpus=100_000_000, cpu_shares=512).split())
            used_s = ticks / os.sysconf("SC_CLK_TCK")
            if end - start > 3 * used_s:
                break
    assert used_s > 0.05, "too little work to be held up"
    assert end - start > 3 * used_s
    if os.geteuid() != 0 and "cpuset" not in available().controllers:  # systemd hands it over to no ordinary user
        with pytest.raises(Unavailable, match="does not offer cpuset"):
            place.run(level, "true", cpuset_cpus="0")
        return
    done = place.run(level, "sh", "-c", "grep Cpus_allowed_list /proc/self/status", cpuset_cpus="0")
    assert done.stdout.split() == [b"Cpus_allowed_list:", b"0"]


def test_limits_that_cannot_be(place: Machine, level: Level) -> None:
    swap_below_memory = {"memory_bytes": 64 << 20, "memory_swap_bytes": 32 << 20}
    for options in ({"memory_bytes": 1 << 20}, {"nano_cpus": 10**15}, swap_below_memory, {"cpuset_cpus": "999"}):
        with pytest.raises(BulleError):
            place.run(level, "true", **options)


def test_ulimits(place: Machine, level: Level) -> None:
    limits = (bulle.ResourceLimit("nofile", 100, 200), bulle.ResourceLimit("core", 0, 0), bulle.ResourceLimit("nproc", 50, 60))
    assert place.shell(level, "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -Hp || ulimit -Hu", limits=limits).split()[:3] == ["100", "200", "0"]


def capability_sets(text: str) -> dict[str, int]:
    return {key: int(value, 16) for key, value in re.findall(r"^Cap(\w+):\s*([0-9a-f]+)$", text, re.MULTILINE)}


def test_capabilities_read_back(place: Machine, level: Level) -> None:
    """Attack 27: what the kernel says, not what we asked for."""
    need_several_ids(place)
    read = "cat /proc/self/status"
    held = capability_sets(place.shell(level, read))
    assert held == {"Inh": 0, "Prm": DEFAULT_CAPABILITIES, "Eff": DEFAULT_CAPABILITIES, "Bnd": DEFAULT_CAPABILITIES, "Amb": 0}
    held = capability_sets(place.shell(level, read, user="33"))
    assert held == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": DEFAULT_CAPABILITIES, "Amb": 0}
    held = capability_sets(place.shell(level, read, cap_drop=("ALL",)))
    assert set(held.values()) == {0}
    held = capability_sets(place.shell(level, read, cap_drop=("all",), cap_add=("NET_BIND_SERVICE", "CAP_CHOWN")))
    assert (held["Eff"], held["Bnd"], held["Inh"], held["Amb"]) == (0x401, 0x401, 0, 0)
    held = capability_sets(place.shell(level, read, cap_add=("SYS_PTRACE",), cap_drop=("NET_RAW",)))
    assert held["Bnd"] == DEFAULT_CAPABILITIES & ~(1 << 13) | 1 << 19
    with pytest.raises(InvalidInput):
        place.run(level, "true", cap_add=("NO_SUCH",))


def test_capabilities_do_what_they_say(place: Machine, level: Level) -> None:
    need_several_ids(place)
    script = "touch /f; chown 33 /f && echo chown; mount -t tmpfs none /mnt 2>/dev/null && echo mount; chroot / true && echo chroot; true"
    assert place.shell(level, script).split() == ["chown", "chroot"]
    assert "chown" not in place.shell(level, script + " 2>/dev/null", cap_drop=("CHOWN",)).split()


def test_no_new_privileges(place: Machine, level: Level) -> None:
    read = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | awk '{print $2}'"
    assert place.shell(level, read).split() == ["0", "2"], "the filter holds by default"
    assert place.shell(level, read, security_options=("no-new-privileges",)).split() == ["1", "2"]
    assert place.shell(level, read, security_options=("seccomp=unconfined",)).split() == ["0", "0"]
    with place.running(level, security_options=("no-new-privileges",)) as container:
        assert place.execute(container, "sh", "-c", read).stdout.split() == [b"1", b"2"], "exec too"


def test_hardened(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.READ_ONLY_ROOT, hardened=True):
        return
    script = "cat /proc/self/status; touch /x 2>&1 || true"
    with place.running(level, hardened=True) as container:
        for done in (place.run(level, "sh", "-c", script, hardened=True), place.execute(container, "sh", "-c", script)):
            text = done.stdout.decode()
            assert set(capability_sets(text).values()) == {0}
            assert re.search(r"NoNewPrivs:\s*1", text)
            assert re.search(r"Seccomp:\s*2", text)
            assert "Read-only file system" in text


def test_privileged(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user has no privileges to give")
    held = capability_sets(place.shell(level, "cat /proc/self/status; touch /sys/kernel/mm/x 2>&1; ls /dev | wc -l", privileged=True))
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    own = capability_sets(Path("/proc/self/status").read_text())
    all_there_are = (1 << last + 1) - 1
    assert held["Bnd"] & all_there_are == (all_there_are if Feature.OWN_KERNEL in features else own["Bnd"] & all_there_are)
    assert place.shell(level, "mount -t tmpfs none /mnt && echo mounted", privileged=True) == "mounted\n"
    container = place.create(level, "true", privileged=True)
    assert container.inspect()["HostConfig"]["UsernsMode"] == ("own" if Feature.OWN_KERNEL in features else "host")  # type: ignore[index]
    container.remove()


# What it said


def test_logs(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "echo one; echo two >&2; sleep 0.3; echo three; sleep 0.3; echo four; printf five") as container:
        followed = [(entry.stream, entry.data) for entry in container.logs(follow=True)]
        assert container.wait() == 0
        entries = list(container.logs())
        assert [entry.data for entry in entries if entry.stream == "stdout"] == [b"one\n", b"three\n", b"four\n", b"five"]
        assert [entry.data for entry in entries if entry.stream == "stderr"] == [b"two\n"]
        assert sorted(followed) == sorted((entry.stream, entry.data) for entry in entries)
        assert [entry.data for entry in container.logs(tail=2)] == [b"four\n", b"five"]
        assert list(container.logs(tail=0)) == []
        third = next(entry for entry in entries if entry.data == b"three\n")
        assert [entry.data for entry in container.logs(since_ns=third.time_ns)] == [b"three\n", b"four\n", b"five"]
        assert [entry.data for entry in container.logs(until_ns=third.time_ns - 1_000_000)][-1] in (b"one\n", b"two\n")
        assert entries == sorted(entries, key=lambda entry: entry.time_ns)


def test_logs_of_the_command_line(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "echo out; echo err >&2; for i in 1 2 3; do sleep 0.1; echo $i; done; sleep 1000") as container:
        follower = place.start_command("logs", "-f", container.name, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert follower.stdout is not None
        with follower:
            assert [follower.stdout.readline() for _ in range(4)] == [b"out\n", b"1\n", b"2\n", b"3\n"]
            container.stop(timeout_s=0)
            rest = follower.communicate(timeout=240)
            assert (rest, follower.returncode) == ((b"", b"err\n"), 0), "logs -f ends with the container"
        done = place.command("logs", "--tail", "1", "-t", container.name)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z 3\n", done.stdout)


def test_attach_and_detach(place: Machine, level: Level) -> None:
    if lacks(place, level, Feature.TERMINAL, terminal=True):
        return
    with place.running(level, "sh", terminal=True, interactive=True) as container:
        for word in ("first", "second"):
            terminal = Terminal(place, "attach", container.name)
            try:
                terminal.type(f"echo {word[:2]}''{word[2:]}\r")
                terminal.expect(word)
                terminal.type(b"\x10\x11")
                assert terminal.wait() == 0
            finally:
                terminal.close()
            assert container.state().status == "running"
        terminal = Terminal(place, "attach", container.name)
        try:
            terminal.type("exit 11\r")
            assert terminal.wait() == 11
        finally:
            terminal.close()
        assert container.wait() == 11


def test_several_attach_at_once(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "read word; echo $word; exit 2", interactive=True) as container:
        one, two = container.attach(stdin=True), container.attach()
        two.wait_started()  # it is served from now on
        one.send_stdin(b"word\n")
        for attachment in (one, two):
            done = follow(attachment)
            assert (done.stdout, done.exit_code) == (b"word\n", 2)


def test_start_with_attach_carries_everything(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", "read word; echo got $word; exit 4", interactive=True)
    for word in (b"one", b"two"):
        attachment = container.start(attach=True, stdin=True)
        assert attachment is not None
        attachment.send_stdin(word + b"\n")
        attachment.close_stdin()
        done = follow(attachment)
        assert (done.stdout, done.exit_code) == (b"got " + word + b"\n", 4)
        container.wait()
    container.remove()


def test_wait_and_state(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "sleep 0.3; exit 6", name="waiting") as container:
        state = container.state()
        assert (state.status, state.isolation_obtained) == ("running", level.driver)
        assert place.command("wait", "waiting").stdout == "6\n"
        state = container.state()
        assert (state.status, state.exit_code, state.pid) == ("exited", 6, 0)
        assert state.finished_at_ns - state.started_at_ns >= 200_000_000
        assert place.command("wait", "waiting").stdout == "6\n"
        document = container.inspect()["State"]
        assert (document["Status"], document["ExitCode"], document["Running"]) == ("exited", 6, False)  # type: ignore[index]


def test_top(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "sleep 4711 & sleep 4712; wait") as container:
        wait_for(lambda: sum(row[-1].startswith("sleep") for row in container.top()[1]) == 2, "two programs beside the shell")
        titles, rows = container.top(["-eo", "pid,args"])
        assert titles == ["PID", "COMMAND"]
        assert {row[1] for row in rows} >= {"sleep 4711", "sleep 4712"}
        assert all(int(row[0]) > 1 for row in rows), "the host's pids"
    with pytest.raises((Conflict, NotFound)):
        container.top()


def test_nothing_is_downgraded_in_silence(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    """Every feature that the level lacks raises, each by the request that needs it."""
    needing: dict[Feature, dict[str, Any]] = {
        Feature.OWN_NETWORK: {"network": "none"},
        Feature.OWN_HOSTNAME: {"hostname": "name"},
        Feature.OWN_USERS: {"user_namespace": "own"},
        Feature.VOLUMES: {"volumes": (bulle.VolumeOption("/usr", "/v"),)},
        Feature.TMPFS: {"tmpfs": (("/t", ""),)},
        Feature.READ_ONLY_ROOT: {"read_only": True},
        Feature.MEMORY_LIMIT: {"memory_bytes": 64 << 20},
        Feature.CPU_LIMIT: {"nano_cpus": 500_000_000},
        Feature.PIDS_LIMIT: {"pids_limit": 100},
        Feature.TERMINAL: {"terminal": True},
        Feature.INIT: {"init": True},
    }
    for feature, options in needing.items():
        if not lacks(place, level, feature, **options):
            assert place.run(level, "true", **options).exit_code == 0, feature
    assert place.engine.containers.list(all=True) == []
