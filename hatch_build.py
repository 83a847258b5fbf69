"""Build hook of the wheel: compiles ``native/``, puts ``bulle`` among the wheel's scripts, ``bulle-init``, ``bulle-gauge`` and the agents of virtual
machines into the package.

The programs need no C library, so any C compiler does for its own processor: the host's ``cc`` where there is one, else zig's. Virtual machines also
have other processors: for their agents zig is a build requirement of wheels (a hundred megabytes); an editable installation asks for it once, and
afterwards only where an agent is missing or older than its source. Without a compiler the Python twin becomes the command: slower by a Python's
start, otherwise the same; an agent that could not be compiled is missing, and said to be when it is wanted. Environment: ``BULLE_BUILD_COMPILER``
(zig, cc or none) and ``BULLE_BUILD_ARCHITECTURE`` (x86_64 or aarch64, for a wheel for another machine).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
AGENTS = ("x86_64", "aarch64", "riscv64")  # processors that a virtual machine can have
FLAGS = (
    *("-std=c11", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-s"),
    # No C library: nothing that expects one may be generated, and no tables that nobody reads.
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"),
    *("-Wall", "-Wextra", "-Wl,--build-id=none"),
)
INSIDE = ("bulle-init", "bulle-gauge")
"""What the engine takes from the package: it is executed in containers, or measures them."""
TWIN = """#!python
import sys

from bulle.spawner.stub import main

sys.exit(main())
"""


def architecture() -> str:
    """The architecture of the wheel, in the kernel's words; empty where there are no system calls for it."""
    return ARCHITECTURES.get(os.environ.get("BULLE_BUILD_ARCHITECTURE") or platform.machine().lower(), "")


def foreign() -> list[tuple[str, str, str]]:
    """The programs that are there for several processors: what each is called, its source, its processor."""
    agents = [(f"bulle-agent-{machine}", "bulle-agent", machine) for machine in AGENTS]
    return [*agents, *((f"bulle-gauge-{machine}", "bulle-gauge", machine) for machine in AGENTS if machine != architecture())]


def host_compiler() -> list[str]:
    """The host's compiler, if it compiles for the wheel's architecture."""
    if ARCHITECTURES.get(platform.machine().lower()) != architecture():
        return []
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return []


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling for wheels, editable ones too."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """zig only where it is needed."""
        asked = os.environ.get("BULLE_BUILD_COMPILER", "")
        missing = not host_compiler() or any(self.is_old(name) for name, _source, _machine in foreign())
        if architecture() and (asked == "zig" or (not asked and missing)):
            return ["ziglang>=0.13"]
        return []

    def is_old(self, name: str) -> bool:
        """Whether a program for a processor (``bulle-agent-aarch64``) has to be compiled."""
        program = Path(self.root) / "src" / "bulle" / "_bin" / name
        sources = [*(Path(self.root) / "native").iterdir(), Path(__file__)]
        return not program.exists() or program.stat().st_mtime <= max(source.stat().st_mtime for source in sources)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and say what goes where."""
        root = Path(self.root)
        binaries = root / "src" / "bulle" / "_bin"
        output = root / "build" / "native"
        output.mkdir(parents=True, exist_ok=True)
        script = output / "bulle"
        if architecture() and self.compile(root, script, "bulle") and all(self.compile(root, output / name, name) for name in INSIDE):
            machine = architecture()
            build_data["pure_python"] = False
            # Static and without a C library: true for every Linux of this architecture.
            build_data["tag"] = f"py3-none-manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
            # In the tree, because an editable installation takes the package from there.
            binaries.mkdir(exist_ok=True)
            for name in INSIDE:
                shutil.copy(output / name, binaries / name)
                build_data["artifacts"].append(f"src/bulle/_bin/{name}")
        else:
            self.app.display_warning("no C compiler: the Python twin becomes the command, and --init and `compare` are missing")
            script.write_text(TWIN)
            script.chmod(0o755)
        build_data["shared_scripts"][str(script)] = "bulle"
        self.compile_foreign(root, binaries, build_data)

    def compile_foreign(self, root: Path, binaries: Path, build_data: dict[str, Any]) -> None:
        """What runs on other processors, where it is missing or older than its source."""
        binaries.mkdir(exist_ok=True)
        for name, source, machine in foreign():
            target = binaries / name
            # Not over the one that is there: a virtual machine may be starting with it.
            fresh = root / "build" / "native" / target.name
            if self.is_old(name) and self.compile(root, fresh, source, machine):
                shutil.copy(fresh, f"{target}.part")
                os.replace(f"{target}.part", target)
            if target.exists():
                build_data["artifacts"].append(f"src/bulle/_bin/{target.name}")
            else:
                self.app.display_warning(f"no compiler for {machine}: {name} is missing, and virtual machines or comparisons with this processor")

    def compile(self, root: Path, target: Path, name: str, machine: str = "") -> bool:
        """Compile one program, for the wheel's processor if no other is named; False where no compiler does."""
        target.unlink(missing_ok=True)
        for command, environment in self.compilers(root, machine or architecture()):
            line = [*command, *FLAGS, "-o", str(target), str(root / "native" / f"{name}.c")]
            try:
                done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
            except OSError as error:
                self.app.display_warning(f"{command[0]}: {error}")
                continue
            if done.returncode == 0:
                return True
            self.app.display_warning(f"{shlex.join(line)}: {done.stderr}")
        return False

    def compilers(self, root: Path, machine: str) -> list[tuple[list[str], dict[str, str]]]:
        """Compilers to try for a processor, the best first, with their environment."""
        asked = os.environ.get("BULLE_BUILD_COMPILER", "")
        result: list[tuple[list[str], dict[str, str]]] = []
        if asked in ("", "zig") and importlib.util.find_spec("ziglang"):
            cache = str(root / "build" / "zig")
            environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
            target = ["-target", f"{machine}-linux-none", "-mcpu=baseline"]
            result.append(([sys.executable, "-m", "ziglang", "cc", *target], environment))
        if asked in ("", "cc") and host_compiler() and machine == architecture():
            # Distributions turn it on; other processors do not know the option.
            protection = ["-fcf-protection=none"] if machine == "x86_64" else []
            result.append(([*host_compiler(), *protection], dict(os.environ)))
        return result
