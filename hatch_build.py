"""Build hook of the wheel: compiles ``native/`` and puts ``bulle`` among the wheel's scripts, ``bulle-init`` and ``bulle-gauge`` into the package.

The programs need no C library, so any C compiler does: the host's own ``cc`` where there is one, else zig's, which comes as a build requirement (a
hundred megabytes, so it is asked for only then). Without either the Python twin becomes the command: slower by a Python's start, otherwise the
same. Environment: ``BULLE_BUILD_COMPILER`` (zig, cc or none) and ``BULLE_BUILD_ARCHITECTURE`` (x86_64 or aarch64, for a wheel for another machine).
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
FLAGS = (
    *("-std=c11", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-s"),
    # No C library: nothing that expects one may be generated, and no tables that nobody reads.
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fcf-protection=none"),
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
        if architecture() and (asked == "zig" or (not asked and not host_compiler())):
            return ["ziglang>=0.13"]
        return []

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

    def compile(self, root: Path, target: Path, name: str) -> bool:
        """Compile one program; False where no compiler does."""
        target.unlink(missing_ok=True)
        for command, environment in self.compilers(root):
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

    def compilers(self, root: Path) -> list[tuple[list[str], dict[str, str]]]:
        """Compilers to try, the best first, with their environment."""
        asked = os.environ.get("BULLE_BUILD_COMPILER", "")
        result: list[tuple[list[str], dict[str, str]]] = []
        if asked in ("", "zig") and importlib.util.find_spec("ziglang"):
            cache = str(root / "build" / "zig")
            environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
            target = ["-target", f"{architecture()}-linux-none", "-mcpu=baseline"]
            result.append(([sys.executable, "-m", "ziglang", "cc", *target], environment))
        if asked in ("", "cc") and host_compiler():
            result.append((host_compiler(), dict(os.environ)))
        return result
