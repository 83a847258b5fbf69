"""The rules of the house, read from the syntax trees: which way imports point, how long things are, what they are called, what they may not do."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SOURCE / "bulle"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lower rooms have lower numbers; an import may only go to a lower number, or stay in its own room. Siblings share a number.
FLOORS = (
    {"errors", "model", "version"},
    {"linux"},
    {"records"},
    {"isolation", "store", "registry", "network"},
    {"monitor", "spawner"},
    {"engine", "fleet"},
    {"build", "aio"},
    {"compose"},
    {"kube"},
    {"api", "oci_runtime"},
    {"cli", "web"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The composition roots join everything; nothing below them imports them.
ROOTS = {"__main__"}

RULE_LINES, MOST_LINES, MOST_FUNCTION_LINES = 400, 800, 60
# Modules over the rule, each with its reason; a table that is data is not shorter in two files.
LONG_MODULES: dict[str, str] = {}

NOT_A_NAME = {"utils", "util", "helpers", "helper", "common", "misc", "base", "shared", "tools", "lib", "core"}
PROGRAM_ROOMS = {"cli", "oci_runtime", "__main__"}


def module_name(path: Path) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room a module lives in: the part after ``bulle``, empty for the public face of the package itself."""
    return module.partition(".")[2].partition(".")[0]


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(), str(path))


NAMES = {module_name(path) for path in MODULES}


def imports(path: Path, *, at_import_time_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and module of everything of ours that a file imports; those that only a type checker sees can be left out."""
    for node in ast.walk(tree(path)) if not at_import_time_only else top_level(tree(path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            found = [f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in NAMES else str(node.module) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] == "bulle")


def top_level(module: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, without what stands in functions or under TYPE_CHECKING."""
    waiting: list[ast.stmt] = list(module.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert rooms <= FLOOR.keys(), f"say in FLOORS where these stand: {rooms - FLOOR.keys()}"


def imports_point_down(path: Path) -> Iterator[str]:
    """An import goes to a lower floor or stays in its room."""
    here = room(module_name(path))
    if not here or here in ROOTS:
        return
    for line, name in imports(path):
        there = room(name)
        if there == here or (there in ("errors", "version") and here == "model"):
            continue
        if not there:
            yield f"{path}:{line}: {name} is the public face, for users of the library"
        elif there in ROOTS or FLOOR.get(there, 99) >= FLOOR[here]:
            yield f"{path}:{line}: {here} imports {name}, which is not below it"


def test_no_cycles() -> None:
    # The public face re-exports the engine and is not part of any chain: importing bulle.x runs it, whatever x is, and it must be lazy for that.
    graph = {
        module_name(path): {name for _, name in imports(path, at_import_time_only=True) if name in NAMES and name not in ("bulle", module_name(path))}
        for path in MODULES
        if module_name(path) != "bulle"
    }
    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        assert name not in chain, f"import cycle: {' -> '.join([*chain[chain.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*chain, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def modules_are_short(path: Path) -> Iterator[str]:
    """As many lines as a person can hold in mind; the exceptions are listed with their reasons."""
    lines = len(path.read_text().splitlines())
    if lines > MOST_LINES:
        yield f"{path} has {lines} lines; {MOST_LINES} at most"
    elif lines > RULE_LINES and module_name(path) not in LONG_MODULES:
        yield f"{path} has {lines} lines; {RULE_LINES} is the rule: split it, or give the reason in LONG_MODULES"
    elif lines <= RULE_LINES and module_name(path) in LONG_MODULES:
        yield f"{path} is short again: take it off LONG_MODULES"


def functions_are_short(path: Path) -> Iterator[str]:
    """A function fits on a screen."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines; {MOST_FUNCTION_LINES} at most"


def public(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Public functions, classes and methods that say something new: not setters and overrides."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node, inside + node.name
            # A Protocol is a narrow view of something that is explained where it is made.
            if "Protocol" not in {ast.unparse(base).split("[")[0] for base in node.bases}:
                yield from public(node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            decorators = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
            if not decorators & {"override", "setter", "overload"}:
                yield node, inside + node.name


@functools.cache
def documented_methods() -> frozenset[str]:
    """Names of methods that some interface (an ABC or Protocol of ours) documents."""
    return frozenset(
        member.name
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).split("[")[0] in ("ABC", "Protocol") for base in node.bases)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and ast.get_docstring(member)
    )


def public_things_are_explained(path: Path) -> Iterator[str]:
    """Modules, classes, functions and methods say what they are for."""
    module = tree(path)
    if module.body and not ast.get_docstring(module):
        yield f"{path}: the module says nothing of itself"
    for node, name in public(module.body):
        assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        implements = "." in name and node.name in documented_methods()
        if not ast.get_docstring(node) and not implements:
            yield f"{path}:{node.lineno}: {name} has no docstring"


def names_say_something(path: Path) -> Iterator[str]:
    """A module is named for what it knows."""
    if NOT_A_NAME & set(module_name(path).split(".")):
        yield f"{path}: a module is named for what it knows"


def library_neither_prints_nor_exits(path: Path) -> Iterator[str]:
    """Only programs speak to a terminal or end the process; an exception is said and reasoned on its line."""
    if room(module_name(path)) in PROGRAM_ROOMS:
        return
    lines = path.read_text().splitlines()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and "noqa: T201" not in lines[node.lineno - 1]:
            called = ast.unparse(node.func)
            if called in ("print", "sys.exit", "exit", "quit", "breakpoint", "input"):
                yield f"{path}:{node.lineno}: {called}()"
        elif isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc).startswith("SystemExit"):
            yield f"{path}:{node.lineno}: raise SystemExit"


def kernel_is_spoken_to_in_linux(path: Path) -> Iterator[str]:
    """ctypes stays in one room."""
    if room(module_name(path)) != "linux":
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom) and "ctypes" in ast.unparse(node):
                yield f"{path}:{node.lineno}: the kernel's interface is spoken in bulle.linux only"


RULES = (
    imports_point_down,
    modules_are_short,
    functions_are_short,
    public_things_are_explained,
    names_say_something,
    library_neither_prints_nor_exits,
    kernel_is_spoken_to_in_linux,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_of_the_house(rule: Callable[[Path], Iterator[str]]) -> None:
    wrong = [line.replace(f"{SOURCE.parent}/", "") for path in MODULES for line in rule(path)]
    assert not wrong, "\n".join(["", *wrong])


BROKEN = """
import ctypes
import bulle.cli.main

def silent():
    print(1)
"""


def test_rules_see_what_breaks_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "bulle/store/utils.py"
    path.parent.mkdir(parents=True)
    path.write_text(BROKEN + "    x = 1\n" * 70 + "\n" * 800)
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    for rule in RULES:
        assert list(rule(path)), rule.__name__


HEAVY = {"urllib3", "rich", "asyncio", "isal", "http.client", "email", "ssl", "concurrent.futures", "logging", "argparse", "multiprocessing"}
HOT = """
import sys, click
from bulle.cli import main
import bulle
bulle.Engine
for verb in ("run", "exec", "ps", "logs", "stop"):
    main.ROOT.get_command(click.Context(main.ROOT, info_name="bulle"), verb).get_params(click.Context(main.ROOT))
print(*sys.modules, sep="\\n")
"""


def test_hot_verbs_do_without_heavy_libraries() -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", HOT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split()), "these cost every start; import them where they are used"
