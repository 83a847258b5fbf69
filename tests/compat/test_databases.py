"""Real servers, real clients: the page examples/databases as a beginner goes through it, and web server and cache, spoken to from this machine by a
published port and from another container by name.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.networking import Networked, ask, free_ports, networked
from bulle_testing.programs import IMAGE, load_programs
from bulle_testing.running import Machine, machine, wait_for

pytestmark = [
    pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900),
    pytest.mark.programs("nft", "psql", "pg_isready", "mariadb", "mariadb-admin", "redis-cli", "curl"),
]  # fmt: skip

EXAMPLE = places.SOURCE / "examples/databases"
SQL_SERVER = "mcr.microsoft.com/mssql/server:2022-latest"


@pytest.fixture(scope="module")
def module_machine(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A home with the images that the page would pull, all of them one image with everything; and what stands in for SQL Server."""
    with machine(run_directory, "compat-databases") as made:
        load_programs(made)
        for name in ("deb:bookworm_postgresql", "deb:bookworm_mariadb-server"):
            assert made.command("tag", IMAGE, name).returncode == 0
        directory = tmp_path_factory.mktemp("stand-in")
        (directory / "Containerfile").write_text(
            f"FROM {IMAGE}\nCMD redis-server --port 1433 --bind '*' --protected-mode no --dir /var/opt/mssql --save '' --appendonly yes\n"
        )
        built = made.command("build", "-t", SQL_SERVER, str(directory))
        assert built.returncode == 0, built.stderr
        yield made


@pytest.fixture
def net(module_machine: Machine) -> Iterator[Networked]:
    with networked(module_machine) as made:
        yield made


def chapters(page: Path) -> list[str]:
    """The commands of a page, block by block."""
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def in_shell(net: Networked, script: str) -> str:
    """What commands say when they are typed in the example's directory."""
    environment = net.environment | {"PATH": f"{Path(places.command_line()[0]).parent}:{os.environ['PATH']}"}
    line = ["timeout", "60", "bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(line, cwd=EXAMPLE, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{script}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}\n{net.bulle('ps', '-a').stdout}"
    return done.stdout


def test_the_page_of_three_databases(net: Networked) -> None:
    images, servers, look, sql_server, by_name, again, end, app = chapters(EXAMPLE / "README.md")
    in_shell(net, images)
    in_shell(net, servers)
    in_shell(net, sql_server)
    ready = in_shell(net, look)
    assert net("ps", "--format", "{{.Names}} {{.Ports}}").splitlines() == [
        "sqlserver 127.0.0.1:1433->1433/tcp, [::1]:1433->1433/tcp",
        "mariadb 127.0.0.1:3306->3306/tcp, [::1]:3306->3306/tcp",
        "postgres 127.0.0.1:5432->5432/tcp, [::1]:5432->5432/tcp",
    ]
    assert ready.endswith("hello from PostgreSQL\nhello from MariaDB\n")
    assert subprocess.run(["redis-cli", "-p", "1433", "ping"], capture_output=True, text=True).stdout == "PONG\n"
    assert in_shell(net, by_name).startswith("hello by name\nhello by name\n5432/tcp -> 127.0.0.1:5432\n5432/tcp -> [::1]:5432\n")
    # Both versions of IP, and a wrong password is the server's own refusal.
    for host in ("127.0.0.1", "::1"):
        assert in_shell(net, f"PGPASSWORD=secret psql -h {host} -U postgres -tAc 'SELECT 1'") == "1\n"
        assert in_shell(net, f"mariadb -h {host} -u app -psecret -NBe 'SELECT 1'") == "1\n"
    assert "password authentication failed" in in_shell(net, "PGPASSWORD=wrong psql -h localhost -U postgres 2>&1 || true")
    # From one database's container to another, and to the third.
    assert net("exec", "mariadb", "redis-cli", "-h", "sqlserver", "-p", "1433", "ping") == "PONG"
    _much_data(net)
    assert in_shell(net, again).endswith("you\n")
    in_shell(net, end)
    assert net("ps", "-aq") == "" and net("volume", "ls", "-q") == ""
    assert in_shell(net, app) == "hello from an app\nhello by name\n"
    assert net("ps", "-aq") == "" and net("volume", "ls", "-q") == "" and "my-postgres" not in net("images")
    for port in (5432, 3306, 1433):
        assert ask("127.0.0.1", port) == "ConnectionRefusedError"


def _much_data(net: Networked) -> None:
    """A dump of some megabytes through a published port and back through a name, with the keeper killed amid it."""
    table = "SELECT generate_series(1, 200000) AS number, repeat('x', 40) AS text"
    in_shell(net, f'PGPASSWORD=secret psql -h ::1 -U postgres -qc "CREATE TABLE much AS {table}"')
    dump = "PGPASSWORD=secret pg_dump -h 127.0.0.1 -U postgres -t much | grep -c xxxx"
    keeper = places.keeper_pid(net.home)
    script = f"({dump}) & sleep 0.05; kill -9 {keeper}; wait"
    assert in_shell(net, script) == "200000\n"
    wait_for(lambda: places.keeper_pid(net.home) not in (0, keeper), "another keeper")
    by_name = "PGPASSWORD=secret pg_dump -h postgres -U postgres -t much | grep -c xxxx"
    assert net("run", "--rm", "--network", "databases", "my-postgres", "sh", "-c", by_name) == "200000"


def test_a_database_that_is_killed_comes_back_on_its_port(net: Networked) -> None:
    port = free_ports(1)
    server = "redis-server --protected-mode no --save '' --appendonly yes --appendfsync always --dir /data"
    net("run", "-d", "--name", "cache", "--restart", "always", "-v", "cache:/data", "-p", f"{port}:6379", IMAGE, "sh", "-c", f"exec {server}")

    def client(*words: str) -> str:
        return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True).stdout.strip()

    wait_for(lambda: client("ping") == "PONG", "the server")
    assert client("set", "key", "value") == "OK"
    os.kill(net.inspect("cache", ".State.Pid"), signal.SIGKILL)
    wait_for(lambda: client("get", "key") == "value", "the server with its data")
    assert subprocess.run(["redis-benchmark", "-p", str(port), "-q", "-n", "2000", "-t", "set"], capture_output=True).returncode == 0
    assert net.bulle("run", "--rm", IMAGE, "redis-cli", "-h", "cache", "get", "key").stdout == "value\n"
    net("rm", "-f", "cache")
    net("volume", "rm", "cache")


def test_a_web_server_before_another(net: Networked) -> None:
    """nginx that passes on to another container by its name, under load from this machine, seen by both with the right addresses."""
    port = free_ports(1)
    net("network", "create", "inner")
    begin = "events {} http { access_log off; server { listen 80; location / {"
    inner = begin + ' return 200 "inner $remote_addr $http_x_client\\n"; } } }'
    outer = begin + " proxy_set_header X-Client $remote_addr; proxy_pass http://app; } } }"
    for name, text, flags in (("app", inner, ()), ("front", outer, ("-p", f"{port}:80"))):
        script = f"printf '%s' '{text}' >/etc/nginx/nginx.conf; exec nginx -g 'daemon off;'"
        net("run", "-d", "--name", name, "--network", "inner", *flags, IMAGE, "sh", "-c", script)
        wait_for(lambda name=name: net.bulle("exec", name, "curl", "-s", "http://127.0.0.1/").returncode == 0, f"{name} answers")
    gateway = net.network("inner")["IPAM"]["Config"][0]["Gateway"]
    for host in ("127.0.0.1", "[::1]", "localhost"):
        said = subprocess.run(["curl", "-s", f"http://{host}:{port}/"], capture_output=True, text=True).stdout
        assert said == f"inner {net.address('front', 'inner')} {gateway}\n", host
    for number in range(3):
        urls = [f"http://{host}:{port}/{number}" for host in ("127.0.0.1", "[::1]") for number in range(150)]
        many = subprocess.run(["curl", "-s", "-g", "-Z", "--parallel-max", "50", *urls], capture_output=True, text=True)
        assert (many.returncode, many.stdout.count("inner ")) == (0, 300), number
