"""Fixtures and rules of all tests: tiers that never skip in silence, homes of their own, and a leak check after every test.

The shared parts live in ``bulle_testing/``. A test that needs Bulle takes ``home`` (a private ``BULLE_HOME``) or
``bulle`` (the command in that home).
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import pytest

from bulle.network.naming import table_name
from bulle_testing import leaks, places, tiers, turns
from bulle_testing.running import LEVELS, Level, Machine, machine, open_machines, usable

pytest_plugins = [
    "bulle_testing.peers", "bulle_testing.networking", "bulle_testing.guests", "bulle_testing.foreign", "bulle_testing.compose_peer",
    "bulle_testing.criu_peer",
]  # fmt: skip

_run_directory: Path | None = None
_failed = pytest.StashKey[bool]()
_turns = pytest.StashKey[turns.Turns]()


def pytest_configure(config: pytest.Config) -> None:
    """Prepare this process before any test."""
    leaks.become_subreaper()
    os.environ.update(places.QUIET_NETWORK | {"BULLE_KERNEL": str(places.guest_kernel())})  # for the library, in this process
    config.stash[_turns] = turns.Turns()
    # A shell starts what it runs in the background with these ignored; what the tests start would inherit that.
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, action)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs at a level of virtual machines is in their stage."""
    for item in items:
        level = getattr(item, "callspec", None) and item.callspec.params.get("level")  # type: ignore[attr-defined]
        if isinstance(level, Level) and level.driver == "vm":
            item.add_marker(pytest.mark.machines)
    if tiers.UNTIL_S:
        # Where the time ends before the tests do, other ones are left out in each run.
        modules = list(dict.fromkeys(item.path for item in items))
        first = int(tiers.UNTIL_S) % max(1, len(modules))
        place = {path: (number - first) % len(modules) for number, path in enumerate(modules)}
        items.sort(key=lambda item: place[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the hundred thousand objects of the collection out of every later search for garbage: one follows each test that counts descriptors."""
    gc.collect()
    gc.freeze()


def the_run_directory() -> Path:
    """The directory of this run, made at first use."""
    global _run_directory
    if _run_directory is None:
        _run_directory = places.run_directory()
        _run_directory.chmod(0o711)
    return _run_directory


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the directory of this run."""
    config.stash[_turns].close()
    if _run_directory is not None:
        places.remove_tree(_run_directory)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is marked ``alone`` run while no other does; before the clock of its timeout starts."""
    with item.config.stash[_turns].take(item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Decide by the time and the marks whether the machine can run this test."""
    if tiers.UNTIL_S and time.time() > tiers.UNTIL_S:
        pytest.skip(tiers.TOO_LATE)
    tiers.check(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure for the fixtures that clean up after it."""
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tiers could not run, how many tests that concerns and why."""
    skipped = [(report.nodeid, str(report.longrepr[2])) for report in terminalreporter.stats.get("skipped", [])]
    missing = Counter(reason.removeprefix(tiers.SKIPPED) for _, reason in skipped if reason.startswith(tiers.SKIPPED))
    if missing:
        terminalreporter.section("tiers that could not run here")
        for cause, count in sorted(missing.items()):
            terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''}: {cause}")
    late = Counter(test.partition("::")[0] for test, reason in skipped if tiers.TOO_LATE in reason)
    if late:
        terminalreporter.section(f"{late.total()} tests were not run: the time was over")
        for module, count in sorted(late.items()):
            terminalreporter.write_line(f"{count} of {module}")
    others = [(test, reason) for test, reason in skipped if not reason.startswith(tiers.SKIPPED) and tiers.TOO_LATE not in reason]
    if others:
        terminalreporter.section("other tests that were skipped")
        for test, reason in others:
            terminalreporter.write_line(f"{test}: {reason}")


@pytest.fixture(scope="session")
def run_directory() -> Path:
    """A directory of this run on a real disk."""
    return the_run_directory()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, mount, control group, loop or network device, descriptor or a changed test process."""
    root = the_run_directory()
    for one in open_machines:
        one.connect()
    before = leaks.Snapshot.take(root)
    yield
    # A busy machine takes its time, and an emulated one whose client was killed ends at the next thing that it says.
    left = leaks.what_is_left(before, root, patience_s=60.0)
    if request.node.stash.get(_failed, False):
        # The traceback of a failed test holds its objects, and with them their descriptors.
        left = [line for line in left if not line.startswith("descriptor ")]
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def level(request: pytest.FixtureRequest) -> Level:
    """Each isolation level that there is."""
    return request.param


@pytest.fixture(scope="session")
def _guest_kernel() -> None:
    from bulle_testing import virtual_machines  # what it imports is a plugin, to be imported by pytest first

    virtual_machines.debian_kernel(os.uname().machine)


@pytest.fixture(autouse=True)
def guest_kernel(request: pytest.FixtureRequest) -> None:
    """Fetch the kernel of virtual machines before the first test that boots one."""
    if request.node.get_closest_marker("machines") is not None:
        request.getfixturevalue("_guest_kernel")


@pytest.fixture(scope="module")
def module_machine(request: pytest.FixtureRequest, run_directory: Path) -> Iterator[Machine]:
    """A home for all tests of a module, with busybox, or with the archive of the fixture that the module names as ``ARCHIVE``."""
    archive = request.getfixturevalue(getattr(request.module, "ARCHIVE", "busybox_image"))
    with machine(run_directory, f"{request.path.parent.name}-{request.path.stem}") as made:
        made.engine.images.load(archive)
        yield made


@pytest.fixture
def box(module_machine: Machine) -> Iterator[Machine]:
    """The module's machine, for tests of what is the same at every level."""
    yield module_machine
    module_machine.close_test()


@pytest.fixture
def place(module_machine: Machine, level: Level) -> Iterator[Machine]:
    """The module's own machine (its fixture ``module_machine``), for one test on one level; given up, and counted, where that level cannot run."""
    usable(level, module_machine.home)
    yield module_machine
    module_machine.close_test()


@pytest.fixture
def home(run_directory: Path, nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private ``BULLE_HOME`` on a real disk, also set in the environment; ended and removed with all that runs in it."""
    for number in range(1_000_000):
        path = run_directory / f"home{number}"
        if not path.exists():
            break
    path.mkdir(mode=0o700)
    leaks.our_tables.add(table_name(path))
    monkeypatch.setenv("BULLE_HOME", str(path))
    try:
        yield path
    finally:
        mounts = places.close_home(path)
    if mounts:
        pytest.fail("the test left these mounted:\n  " + "\n  ".join(mounts), pytrace=False)


class BulleCommand:
    """``bulle(*arguments)`` runs the command in one home and returns the finished process (text, unless ``text=False``)."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.command_line = places.command_line()
        self.environment = places.environment(home)

    def __call__(
        self,
        *arguments: str | Path,
        input: str | bytes | None = None,
        environment: Mapping[str, str] | None = None,
        check: bool = False,
        text: bool = True,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess:
        """Run to the end; ``check`` asserts exit code 0 and shows what was printed."""
        command = [*self.command_line, *map(str, arguments)]
        stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(command, env=self.environment | dict(environment or {}), capture_output=True, text=text, timeout=timeout_s, **stdin)
        if check:
            assert done.returncode == 0, f"{command} ended with {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}"
        return done

    def start(self, *arguments: str | Path, **popen_options: object) -> subprocess.Popen:
        """Start the command without waiting; the test ends it."""
        return subprocess.Popen([*self.command_line, *map(str, arguments)], **{"env": self.environment, **popen_options})


@pytest.fixture
def bulle(home: Path) -> BulleCommand:
    """The ``bulle`` command in a private home."""
    return BulleCommand(home)
