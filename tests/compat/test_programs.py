"""What works on Docker works here without a flag: databases, web servers, package managers, setuid programs, Go and Java.

Every program is first shown to pass on a private dockerd, then on Bulle with default settings: the same image (made by ``bulle pull
deb:``, carried by ``bulle save`` and ``docker load``), the same command lines, the same expected output. Servers are spoken to by their own clients
through ``exec``.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from bulle_testing.peers import Docker
from bulle_testing.programs import IMAGE, load_programs
from bulle_testing.running import Machine, machine

# The first test waits for the image: a Debian mirror may be slow.
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.programs("dockerd", "docker", "containerd", "runc")]

SERVER_PATIENCE_S = 240


class Engine(Protocol):
    """The command of either engine; ``check`` asserts exit code 0."""

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True)
class Step:
    """A shell script in the container, as whom, and exactly what it writes to both streams (None: whatever it writes on Docker)."""

    script: str
    expected: str | None
    user: str = "root"


@dataclass(frozen=True)
class Program:
    """A server with its clients' steps (by ``exec``), or without a server steps that are containers of their own (by ``run --rm``).

    ``options`` are flags of ``run``. A server with ``again`` is stopped and started once more before these steps; it must end with ``exit_code``.
    """

    name: str
    steps: tuple[Step, ...]
    options: tuple[str, ...] = ("--network", "none")
    server: str = ""
    ready: str = ""
    again: tuple[Step, ...] = ()
    logged: str = ""
    exit_code: int = 0


POSTGRESQL = Program(
    "postgresql",
    options=("--network", "none", "--stop-signal", "SIGINT"),
    server="""
        set -e
        PATH=$PATH:/usr/lib/postgresql/15/bin
        install -d -o postgres -g postgres -m 2775 /run/postgresql
        install -d -o postgres -g postgres -m 700 /data
        as="setpriv --reuid=postgres --regid=postgres --init-groups"
        test -e /data/PG_VERSION || $as initdb -D /data -A trust >/dev/null
        exec $as postgres -D /data -c listen_addresses=127.0.0.1
    """,
    ready="pg_isready -q -h 127.0.0.1",
    steps=(
        Step("psql -tAc 'create table numbers as select generate_series(1, 20000) as number'", "SELECT 20000\n", "postgres"),
        # Worker processes that share memory below /dev/shm.
        Step(
            "psql -h 127.0.0.1 -U postgres -qtA -c 'set force_parallel_mode = on' -c 'select sum(number) from numbers' -c checkpoint",
            "200010000\n",
        ),
        Step("pg_dump -U postgres -t numbers | grep -c '^[0-9]*$' | xargs test 20000 -le && echo dumped", "dumped\n", "postgres"),
    ),
    again=(Step("psql -tAc 'select count(*) from numbers'", "20000\n", "postgres"),),
    logged="database system is ready to accept connections",
)

MARIADB = Program(
    "mariadb",
    server="""
        set -e
        install -d -o mysql -g mysql /data /run/mysqld
        test -d /data/mysql || mariadb-install-db --user=mysql --datadir=/data --skip-test-db >/dev/null 2>&1
        exec mariadbd --user=mysql --datadir=/data --bind-address=127.0.0.1 --innodb-buffer-pool-size=32M
    """,
    ready="mariadb-admin --silent ping",
    steps=(
        Step(
            'mariadb -e "create database shop; create table shop.item (id int primary key, name text) engine=innodb; '
            "create user visitor@127.0.0.1 identified by 'secret'; grant all on shop.* to visitor@127.0.0.1; use shop; "
            'insert into item select seq, repeat(char(97 + seq % 26), 100) from seq_1_to_5000"',
            "",
        ),
        Step("mariadb -h 127.0.0.1 -u visitor -psecret -NBe 'select count(*), sum(length(name)) from shop.item'", "5000\t500000\n", "nobody"),
        Step("mariadb -NBe 'select user()'", "root@localhost\n"),
    ),
    again=(Step("mariadb -NBe 'select max(id) from shop.item'", "5000\n"),),
    logged="ready for connections",
)

NGINX_SITE = """
    events {}
    http {
        access_log /dev/stdout;
        server {
            listen 80;
            listen unix:/run/nginx.sock;
            location / { return 200 "$server_protocol\\n"; }
            location /page { alias /srv/page; }
        }
    }
"""

NGINX = Program(
    "nginx",
    options=("--network", "none", "--stop-signal", "SIGQUIT"),
    server=f"""
        head -c 300000 /dev/zero >/srv/page
        printf '%s' 'user www-data; worker_processes 2; error_log /dev/stderr; pid /run/nginx.pid; {NGINX_SITE}' >/etc/nginx/nginx.conf
        rm -f /run/nginx.sock
        exec nginx -g 'daemon off;'
    """,
    ready="curl -s -o /dev/null http://127.0.0.1/",
    steps=(
        Step("curl -s http://127.0.0.1/", "HTTP/1.1\n", "nobody"),
        Step("curl -s --unix-socket /run/nginx.sock http://site/page | wc -c", "300000\n"),
        Step("ps -o user= -C nginx | sort | uniq -c | tr -s ' '", " 1 root\n 2 www-data\n"),
        # The master opens /dev/stdout and /dev/stderr again, hands them to www-data and starts other workers.
        Step("nginx -s reopen 2>/dev/null && sleep 0.5 && nginx -s reload 2>/dev/null && sleep 0.5 && curl -s http://127.0.0.1/?after", "HTTP/1.1\n"),
    ),
    again=(Step("curl -s http://127.0.0.1/", "HTTP/1.1\n"),),
    logged='"GET /?after HTTP/1.1" 200',
)

NGINX_AS_ORDINARY_USER = Program(
    "nginx as an ordinary user on port 80",
    options=("--network", "none", "--stop-signal", "SIGQUIT", "--user", "www-data"),
    server=f"""
        paths=$(for p in client_body proxy fastcgi uwsgi scgi; do echo "$p""_temp_path /tmp/$p;"; done)
        site='{NGINX_SITE.replace("/run", "/tmp")}'
        echo "error_log /dev/stderr; pid /tmp/nginx.pid; $(echo "$site" | sed "s,http {{,http {{ $(echo $paths),")" >/tmp/nginx.conf
        rm -f /tmp/nginx.sock
        exec nginx -c /tmp/nginx.conf -e /dev/stderr -g 'daemon off;'
    """,
    ready="curl -s -o /dev/null http://127.0.0.1/",
    steps=(Step("curl -s http://127.0.0.1/", "HTTP/1.1\n"),),
    logged='"GET / HTTP/1.1" 200',
)

REDIS = Program(
    "redis",
    options=("--network", "none", "--user", "redis", "--workdir", "/var/lib/redis"),
    server="exec redis-server --bind 127.0.0.1 --unixsocket /tmp/redis.sock --unixsocketperm 777 --appendonly yes --io-threads 2",
    ready="redis-cli ping | grep -q PONG",
    steps=(
        Step("redis-cli set name value; redis-cli -s /tmp/redis.sock get name", "OK\nvalue\n", "nobody"),
        Step(
            "redis-cli eval \"for i = 1, 10000 do redis.call('set', i, i) end\" 0; redis-cli bgsave && sleep 1 && "
            "redis-cli info persistence | grep -o 'bgsave_status:ok'",
            "\nBackground saving started\nbgsave_status:ok\n",
        ),
        Step("stat -c '%U %a' dump.rdb", "redis 644\n"),
    ),
    again=(Step("redis-cli -s /tmp/redis.sock get name; redis-cli dbsize", "value\n10001\n"),),
    logged="Ready to accept connections",
)

GO = Program(
    "a Go program (etcd)",
    server="exec etcd --data-dir /var/lib/etcd/default --unsafe-no-fsync=false",
    ready="etcdctl endpoint health",
    steps=(
        Step("etcdctl put key value && etcdctl get key", "OK\nkey\nvalue\n", "nobody"),
        Step("etcdctl lease grant 60 | cut -d' ' -f1,3-; etcdctl endpoint status | cut -d, -f3", "lease granted with TTL(60s)\n 3.4.23\n"),
        # Its runtime counts processors and starts a thread for each.
        Step("test $(ls /proc/1/task | wc -l) -ge 3 && echo threads", "threads\n"),
    ),
    again=(Step("etcdctl get --print-value-only key", "value\n"),),
    logged="ready to serve client requests",
)

JAVA_SOURCE = """
import java.io.*; import java.net.*; import java.nio.*; import java.nio.channels.*; import java.util.concurrent.*;
public class Check {
    public static void main(String[] arguments) throws Exception {
        System.out.println(Runtime.getRuntime().maxMemory() / 1048576 + " MiB, " + Runtime.getRuntime().availableProcessors() + " processor");
        ExecutorService threads = Executors.newFixedThreadPool(20);
        try (ServerSocket server = new ServerSocket(80, 5, InetAddress.getLoopbackAddress())) {
            Future<String> line = threads.submit(() -> {
                try (Socket peer = server.accept()) {
                    return new BufferedReader(new InputStreamReader(peer.getInputStream())).readLine();
                }
            });
            try (Socket client = new Socket("localhost", 80)) { client.getOutputStream().write("over TCP\\n".getBytes()); }
            System.out.println(line.get());
        }
        var address = UnixDomainSocketAddress.of("/tmp/java.sock");
        try (var server = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(address); var client = SocketChannel.open(address)) {
            System.out.println(server.accept().getRemoteAddress().getClass().getSimpleName());
        }
        try (RandomAccessFile file = new RandomAccessFile("/tmp/mapped", "rw")) {
            MappedByteBuffer map = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
            map.putInt(4096, 42); map.force();
            System.out.println(map.getInt(4096));
        }
        Process child = new ProcessBuilder("id", "-un").redirectErrorStream(true).start();
        System.out.print(new String(child.getInputStream().readAllBytes()));
        threads.shutdown();
        byte[][] much = new byte[1000][];
        try {
            for (int i = 0; i < much.length; i++) much[i] = new byte[1 << 20];
        } catch (OutOfMemoryError error) {
            much = null;
            System.out.println("bounded");
        }
    }
}
"""

JAVA = Program(
    "java",
    options=("--network", "none", "--memory", "400m", "--cpus", "1"),
    steps=(
        Step(
            f"cat >/tmp/Check.java <<'END'\n{JAVA_SOURCE}\nEND\nexec java /tmp/Check.java",
            "121 MiB, 1 processor\nover TCP\nUnixDomainSocketAddress\n42\nwww-data\nbounded\n",
            "www-data",
        ),
    ),
)

PACKAGE = """
    set -e
    mkdir -p /tmp/probe/DEBIAN /tmp/probe/usr/bin /tmp/probe/var/lib/probe /srv/repository
    cd /tmp/probe
    printf '%s\\n' 'Package: probe' 'Version: 1' 'Architecture: all' 'Maintainer: Nobody <n@example.org>' 'Depends: adduser' 'Description: probe' \\
        >DEBIAN/control
    cat >DEBIAN/postinst <<'END'
#!/bin/sh
set -e
test "$1" = configure || exit 0
adduser --quiet --system --group --home /var/lib/probe probe
chown -R probe:probe /var/lib/probe
dpkg-statoverride --list /usr/bin/probe >/dev/null || dpkg-statoverride --update --add root probe 4750 /usr/bin/probe
setcap cap_net_bind_service+ep /usr/bin/probe-network
END
    chmod 755 DEBIAN/postinst
    cp /usr/bin/id usr/bin/probe
    cp /usr/bin/id usr/bin/probe-network
    dpkg-deb --build --root-owner-group /tmp/probe /srv/repository/probe.deb >/dev/null
    cd /srv/repository
    dpkg-deb -f probe.deb >Packages
    { echo "Filename: ./probe.deb"; stat -c 'Size: %s' probe.deb; echo "SHA256: $(sha256sum <probe.deb | cut -d' ' -f1)"; } >>Packages
    echo 'deb [trusted=yes] file:/srv/repository ./' >/etc/apt/sources.list
    rm -rf /etc/apt/sources.list.d
"""
QUIETLY = "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update 2>&1 && apt-get -qq -y --no-install-recommends"

APT = Program(
    "apt from a directory",
    steps=(
        Step(
            PACKAGE + f"{QUIETLY} install probe >/tmp/log 2>&1 || {{ cat /tmp/log; exit 1; }}\n"
            "stat -c '%U %G %a' /usr/bin/probe /var/lib/probe; getcap /usr/bin/probe-network; dpkg -V probe\n"
            "su -s /bin/sh -c '/usr/bin/probe -u' probe\n"
            "apt-get -qq -y purge probe >/dev/null 2>&1; apt-get -qq -y install /srv/repository/probe.deb 2>&1 | grep '^E:' || true; "
            "dpkg-query -W -f '${db:Status-Abbrev}\\n' probe",
            "root probe 4750\nprobe probe 755\n/usr/bin/probe-network cap_net_bind_service=ep\n0\nii \n",
        ),
    ),
)

APT_FROM_MIRROR = Program(
    "apt from a mirror",
    options=("--network", "host"),
    steps=(Step(f"{QUIETLY} install hello >/tmp/log 2>&1 || cat /tmp/log; hello; ls -ld /var/lib/apt/lists/partial | cut -d' ' -f1,3", None),),
)

PING = Program(
    "ping",
    steps=(
        Step("ping -q -c 1 127.0.0.1 | grep -o '1 received'", "1 received\n"),
        Step("ping -q -c 1 127.0.0.1 | grep -o '1 received'", "1 received\n", "nobody"),
        # Without the program's file capability: the kernel's own echo sockets, open to every group.
        Step(
            "cp /usr/bin/ping /tmp/ping && setpriv --no-new-privs --reuid=65534 --regid=65534 --clear-groups "
            "/tmp/ping -q -c 1 127.0.0.1 | grep -o '1 received'",
            "1 received\n",
        ),
    ),
)

# Without a network neither engine names the container in /etc/hosts, which sudo would say each time.
HOST = "echo 127.0.0.1 $(hostname) >>/etc/hosts; "
ORDINARY = HOST + "useradd --create-home --shell /bin/bash --groups users ordinary && echo ordinary:secret | chpasswd && "

SUDO = Program(
    "sudo and su",
    steps=(
        Step(
            ORDINARY + "echo 'ordinary ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ordinary && "
            "su - ordinary -c 'id -un; sudo id -u; sudo -u nobody id -un; sudo -n cat /etc/shadow | grep -c ordinary; pwd'",
            "ordinary\n0\nnobody\n1\n/home/ordinary\n",
        ),
        # With a password: the setgid helper of PAM reads /etc/shadow.
        Step(
            ORDINARY + "echo 'ordinary ALL=(ALL) ALL' >/etc/sudoers.d/ordinary && setpriv --reuid=ordinary --regid=ordinary --init-groups "
            "sh -c 'echo secret | sudo -S -p \"\" id -un; echo secret | su root -c true'; echo $?",
            "root\n1\nPassword: su: Authentication failure\n",
        ),
        Step(HOST + "sudo -u www-data id -un; sudo -l -U root | tail -1 | tr -s ' '", "www-data\n (ALL : ALL) ALL\n"),
    ),
)

SUDO_ON_A_TERMINAL = Program(
    "sudo on a terminal",
    options=("--network", "none", "--tty"),
    # sudo makes a terminal of its own here.
    steps=(Step(ORDINARY + "adduser --quiet ordinary sudo && sudo -u ordinary sh -c 'tty; id -un'", "/dev/pts/1\nordinary\n"),),
)

MAKE_FILES = """
    set -e
    mkdir /tmp/a && cd /tmp/a
    touch f && chown 1234:65534 f && chmod 6755 f && ln f hard && ln -s f soft && mkfifo p
    cp /usr/bin/ping . && setcap cap_net_raw+ep ping && chmod 1777 . && install -d -o www-data -g adm -m 2750 d
"""
COPY_FILES = """
    attributes="--xattrs --xattrs-include=*"
    tar -C /tmp -cp $attributes a | tar -C /srv -xp $attributes --same-owner
    rsync -aHX /tmp/a/ /opt/a/
    cp -a /tmp/a /mnt/a
    for t in /srv/a /opt/a /mnt/a; do
        cd $t
        stat -c '%n %u:%g %a %h %F' . f hard soft p d
        getcap ping
    done | sort | uniq -c | tr -s ' '
"""
COPIED = """ 3 . 0:0 1777 3 directory
 3 d 33:4 2750 2 directory
 3 f 1234:65534 6755 2 regular empty file
 3 hard 1234:65534 6755 2 regular empty file
 3 p 0:0 644 1 fifo
 3 ping cap_net_raw=ep
 3 soft 0:0 777 1 symbolic link
"""
CHANGE_LAYERS = """
    set -e
    cd /usr/share
    chown -R www-data common-licenses && stat -c %U common-licenses/GPL-3
    mv base-files moved && ls moved | wc -l
    rm -r moved && mkdir moved && ls moved
    rm -rf /var/lib/dpkg/info && mkdir /var/lib/dpkg/info && ls /var/lib/dpkg/info
"""

FILES = Program(
    "owners, modes and attributes of files",
    steps=(
        Step(MAKE_FILES + COPY_FILES, COPIED),
        # Files of the image's layers: another owner, another name, removed and made anew.
        Step(CHANGE_LAYERS, None),
        # An ordinary user from the start: the streams are hers.
        Step(
            "id -un; echo out >/dev/stdout; echo err >/dev/stderr; wc -l /dev/fd/3 3</etc/hostname", "www-data\nout\n1 /dev/fd/3\nerr\n", "www-data"
        ),
    ),
)

CRON = Program(
    "cron",
    # As the first process it does not hear SIGTERM.
    options=("--network", "none", "--stop-signal", "SIGKILL"),
    server=f"""{ORDINARY} :
        echo '@reboot ordinary id -un >/tmp/ran' >/etc/cron.d/once
        echo '@reboot root ps -o comm= -p 1 >/tmp/first' >>/etc/cron.d/once
        exec cron -f
    """,
    ready="test -s /tmp/ran && test -s /tmp/first",
    steps=(Step("cat /tmp/ran /tmp/first; stat -c %U /tmp/ran", "ordinary\ncron\nordinary\n"),),
    exit_code=137,
)

PROGRAMS = (
    POSTGRESQL, MARIADB, NGINX, NGINX_AS_ORDINARY_USER, REDIS, GO, JAVA, APT, PING, SUDO, SUDO_ON_A_TERMINAL, FILES, CRON,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(run_directory: Path) -> Iterator[Machine]:
    """One home for this module: the image is large."""
    with machine(run_directory, "programs") as one:
        yield one


@pytest.fixture(scope="module")
def engines(place: Machine, dockerd: Docker) -> dict[str, Engine]:
    """Docker first, then Bulle, both with the image. What Bulle saved is kept in the cache for the next run."""

    def bulle(*arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        done = place.command(*arguments, timeout_s=timeout_s)
        if check:
            assert done.returncode == 0, f"bulle {arguments} ended with {done.returncode}: {done.stdout} {done.stderr}"
        return done

    saved = load_programs(place)
    dockerd("load", "-i", str(saved))
    ids = [engine("images", "-q", "--no-trunc", IMAGE).stdout.strip() for engine in (dockerd, bulle)]
    assert ids[0] == ids[1], "both run the same image"
    return {"Docker": dockerd, "Bulle": bulle}


@pytest.fixture(autouse=True)
def nothing_of_this_test_stays(place: Machine) -> Iterator[None]:
    """The module's home may outlive a test, its containers may not."""
    yield
    place.close_test()


def check_steps(engine: Engine, prefix: tuple[str, ...], suffix: tuple[str, ...], steps: tuple[Step, ...]) -> list[str]:
    """Take the steps; what each wrote to both streams."""
    said = []
    for step in steps:
        done = engine(*prefix, "--user", step.user, *suffix, "sh", "-c", step.script, check=False)
        output = done.stdout + done.stderr
        if done.returncode != 0 or output != (output if step.expected is None else step.expected):
            pytest.fail(f"{step.script}\nended with {done.returncode} and wrote\n{output}\nexpected\n{step.expected}", pytrace=False)
        said.append(output)
    return said


def wait_until_ready(engine: Engine, container: str, program: Program) -> None:
    """Ask the server by its own client until it answers."""
    deadline = time.monotonic() + SERVER_PATIENCE_S
    while engine("exec", container, "sh", "-c", program.ready, check=False).returncode != 0:
        running = engine("inspect", "--format", "{{.State.Running}}", container).stdout.strip() == "true"
        if not running or time.monotonic() > deadline:
            logs = engine("logs", container, check=False)
            pytest.fail(f"the server {'does not answer' if running else 'ended'}:\n{(logs.stdout + logs.stderr)[-3000:]}", pytrace=False)
        time.sleep(0.1)


def check_stop(engine: Engine, container: str, exit_code: int) -> None:
    """The server ends by itself when asked, in time."""
    engine("stop", "--time", "30", container)
    assert engine("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", container).stdout == f"{exit_code} false\n"


def check_program(engine: Engine, program: Program) -> list[str]:
    """All of a program on one engine; what its steps wrote."""
    if not program.server:
        return check_steps(engine, ("run", "--rm", *program.options), (IMAGE,), program.steps)
    container = engine("run", "--detach", *program.options, IMAGE, "sh", "-c", program.server).stdout.strip()
    try:
        wait_until_ready(engine, container, program)
        said = check_steps(engine, ("exec",), (container,), program.steps)
        check_stop(engine, container, program.exit_code)
        if program.again:
            engine("start", container)
            wait_until_ready(engine, container, program)
            said += check_steps(engine, ("exec",), (container,), program.again)
            check_stop(engine, container, program.exit_code)
        logs = engine("logs", container)
        assert program.logged in logs.stdout + logs.stderr
        return said
    finally:
        with suppress(AssertionError):
            engine("rm", "--force", container)


def check_on_both(engines: dict[str, Engine], program: Program) -> None:
    """First Docker, to show that the test itself is right, then Bulle; both must say the same."""
    said = {}
    for name, engine in engines.items():
        try:
            said[name] = check_program(engine, program)
        except (AssertionError, pytest.fail.Exception) as error:
            pytest.fail(f"on {name}: {error}", pytrace=False)
    assert said["Bulle"] == said["Docker"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program_works_as_on_docker(engines: dict[str, Engine], program: Program) -> None:
    check_on_both(engines, program)


@pytest.mark.debian_mirror
def test_apt_fetches_from_the_mirror_as_on_docker(engines: dict[str, Engine]) -> None:
    check_on_both(engines, APT_FROM_MIRROR)
