"""A real app: a web server, PostgreSQL, Redis and workers, from Debian's packages, through its whole life."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.apps import App, an_app
from bulle_testing.programs import IMAGE, load_programs
from bulle_testing.running import Machine, machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.programs("nft")]

POSTGRES = places.SOURCE / "examples/databases/postgres"
FILE = f"""
name: shop
services:
  web:
    image: {IMAGE}
    command: [nginx, -g, "daemon off;"]
    configs: [{{source: site, target: /etc/nginx/nginx.conf}}]
    volumes: ["pages:/pages:ro"]
    ports: ["127.0.0.1::80"]
    depends_on: [worker]
    healthcheck: {{test: curl -sf http://127.0.0.1/, interval: 300ms, retries: 50}}
  worker:
    image: {IMAGE}
    command: [sh, /worker]
    configs: [worker]
    secrets: [password]
    environment: {{PGUSER: postgres, PGHOST: db, PGPASSFILE: /tmp/pass, QUEUE: cache}}
    volumes: ["pages:/pages"]
    init: true
    restart: on-failure
    stop_grace_period: 0s
    depends_on:
      db: {{condition: service_healthy}}
      cache: {{condition: service_healthy}}
      schema: {{condition: service_completed_successfully}}
  schema:
    extends: worker
    command: [sh, -ec, "echo \\"*:*:*:*:$$(cat /run/secrets/password)\\" >/tmp/pass; chmod 600 /tmp/pass; psql -c \\"$$TABLE\\""]
    environment: {{TABLE: "CREATE TABLE IF NOT EXISTS job (name text PRIMARY KEY, worker text)"}}
    restart: "no"
    depends_on: !override {{db: {{condition: service_healthy}}}}
  db:
    build: {POSTGRES}
    command: [sh, -c, "PASSWORD=$$(cat /run/secrets/password) exec start"]
    secrets: [password]
    volumes: ["data:/data"]
    healthcheck: {{test: [CMD, pg_isready, -h, 127.0.0.1, -U, postgres], interval: 300ms, retries: 100}}
  cache:
    image: {IMAGE}
    command: [redis-server, --protected-mode, "no", --save, ""]
    healthcheck: {{test: [CMD, redis-cli, ping], interval: 300ms, retries: 50}}
volumes: {{data: , pages: }}
secrets:
  password: {{file: ./password}}
configs:
  site:
    content: "events {{}} http {{ server {{ listen 80; root /pages; }} }}"
  worker:
    content: |
      echo "*:*:*:*:$$(cat /run/secrets/password)" >/tmp/pass; chmod 600 /tmp/pass
      until psql -tAc "SELECT count(*) FROM job" >/tmp/first 2>/dev/null; do sleep 0.2; done
      mv /tmp/first /pages/index.html
      while :; do
        job=$$(redis-cli -h $$QUEUE --raw BLPOP jobs 0 | tail -n 1)
        [ "$$job" ] || {{ sleep 0.2; continue; }}
        until psql -qc "INSERT INTO job VALUES ('$$job', '$$HOSTNAME') ON CONFLICT DO NOTHING"; do sleep 0.2; done
        psql -tAc "SELECT count(*) FROM job" >/pages/.$$HOSTNAME && mv /pages/.$$HOSTNAME /pages/index.html
        echo "did $$job"
      done
"""


@pytest.fixture(scope="module")
def module_machine(run_directory: Path) -> Iterator[Machine]:
    """A home with the image that has all programs, which is also what PostgreSQL's is built from."""
    with machine(run_directory, "compose-apps") as made:
        load_programs(made)
        assert made.command("tag", IMAGE, "deb:bookworm_postgresql").returncode == 0
        yield made


@pytest.fixture
def app(box: Machine, tmp_path: Path) -> Iterator[App]:
    with an_app(box, tmp_path / "shop", FILE) as made:
        made.write("password", "of nobody else\n")
        yield made


def page(app: App) -> str:
    """What the web server shows from outside."""
    try:
        return urllib.request.urlopen(f"http://{app('port', 'web', '80')}/", timeout=5).read().decode().strip()
    except OSError:
        return ""


def give(app: App, first: int, last: int) -> None:
    """Jobs for the workers."""
    app("exec", "-T", "cache", "redis-cli", "RPUSH", "jobs", *(f"job{number}" for number in range(first, last)))


def ask(app: App, statement: str) -> str:
    """What the database says to one who knows the password."""
    return app("exec", "-T", "worker", "psql", "-tAc", statement)


def test_web_database_cache_and_workers(app: App) -> None:
    done = app.run("up", "-d", "--wait", timeout_s=300)
    assert done.returncode == 0, done.stderr
    assert {(one["Service"], one["State"], one["Health"]) for one in app.rows("-a")} == {
        ("cache", "running", "healthy"), ("db", "running", "healthy"), ("schema", "exited", ""), ("web", "running", "healthy"),
        ("worker", "running", ""),
    }  # fmt: skip
    give(app, 0, 5)
    wait_for(lambda: page(app) == "5", "five jobs are done")
    assert "worker-1  | did job4" in app("logs", "--tail", "5", "worker")
    assert "of nobody else" not in json.dumps(app.net.inspect("shop-db-1")) and "password authentication failed" in app.run(
        "run", "--rm", "-T", "--no-deps", "-e", "PGPASSFILE=/none", "-e", "PGPASSWORD=wrong", "worker", "psql", "-c", "SELECT 1"
    ).stderr
    _many_workers(app)
    _a_server_that_is_restarted(app)
    _down_and_up(app)


def _many_workers(app: App) -> None:
    app("scale", "worker=3")
    give(app, 5, 65)
    wait_for(lambda: ask(app, "SELECT count(*) FROM job") == "65", "all jobs are done")
    assert int(ask(app, "SELECT count(DISTINCT worker) FROM job")) > 1
    app("scale", "worker=1")
    assert len(app("ps", "-q", "worker").splitlines()) == 1


def _a_server_that_is_restarted(app: App) -> None:
    before = app("ps", "-q", "db")
    app("restart", "db")
    give(app, 65, 66)
    wait_for(lambda: page(app) == "66", "the worker has found it again")
    assert app("ps", "-q", "db") == before
    app("kill", "cache")
    app("start", "cache")
    app.wait_healthy("cache")
    give(app, 66, 67)
    wait_for(lambda: page(app) == "67", "the same with the other")


def _down_and_up(app: App) -> None:
    app("down", "-t", "5")
    assert app("ps", "-aq") == "" and app("volumes", "-q") == "shop_data\nshop_pages"
    app.run("up", "-d", "--wait", timeout_s=300)
    assert page(app) == "67" and ask(app, "SELECT count(*) FROM job") == "67"
    dumped = app("run", "--rm", "-T", "--no-deps", "worker", "sh", "-c", 'PGPASSWORD=$(cat /run/secrets/password) pg_dump -t job | grep -c "^job"')
    assert dumped == "67"
    app("down", "-v", "-t", "5")
    assert app("volumes", "-q") == "" and not (app.net.home / "apps" / "shop").exists()
