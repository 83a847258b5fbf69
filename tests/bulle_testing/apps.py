"""Apps in tests: a directory with a Compose file, ``bulle compose`` in it, and nothing left of the app afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bulle_testing import places
from bulle_testing.networking import Networked, networked
from bulle_testing.running import Machine, wait_for


class App:
    """One app: its directory, and the command in it."""

    def __init__(self, net: Networked, directory: Path, file: str) -> None:
        self.net = net
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.name = directory.name
        self.write("compose.yaml", file)

    def write(self, name: str, text: str) -> Path:
        """A file of the app's directory."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *words: str, input: str | None = None, timeout_s: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """``bulle compose`` to its end, however it ends."""
        line = [*places.command_line(), "compose", *words]
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        wanted = self.net.environment | environment
        return subprocess.run(line, cwd=self.directory, env=wanted, capture_output=True, text=True, timeout=timeout_s, **stdin)

    def __call__(self, *words: str, input: str | None = None, **environment: str) -> str:
        """``bulle compose``, which must succeed; what it printed, without the last newline."""
        done = self.run(*words, input=input, **environment)
        assert done.returncode == 0, f"bulle compose {' '.join(words)} ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout.rstrip("\n")

    def refused(self, *words: str, code: int = 1) -> str:
        """``bulle compose``, which must fail with this code; what it said."""
        done = self.run(*words)
        assert done.returncode == code, f"bulle compose {' '.join(words)} ended with {done.returncode}: {done.stderr}{done.stdout}"
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
        return done.stderr

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """``bulle compose`` without waiting; the test ends it. What it says goes into one pipe."""
        line = [*places.command_line(), "compose", *words]
        wanted = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(line, cwd=self.directory, env=self.net.environment, text=True, **wanted)

    def rows(self, *words: str) -> list[Any]:
        """``ps --format json``, a row for each container."""
        return [json.loads(line) for line in self("ps", "--format", "json", *words).splitlines()]

    def wait_healthy(self, service: str) -> None:
        """Wait until every replica of a service is healthy."""
        wait_for(lambda: {one["Health"] for one in self.rows(service)} == {"healthy"}, f"{service} is healthy")

    def down(self) -> None:
        """Remove it with its volumes."""
        self("down", "--volumes", "--timeout", "0", "--remove-orphans")


@contextmanager
def an_app(machine: Machine, directory: Path, file: str) -> Iterator[App]:
    """An app that is not up yet, removed at the end; on the networks that it would be on outside of tests."""
    with networked(machine) as net:
        app = App(net, directory, file)
        try:
            yield app
        finally:
            app.down()
