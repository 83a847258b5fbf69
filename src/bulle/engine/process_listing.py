"""What ps(1) of the host says of a container's processes: for ``top``."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Sequence

from bulle.errors import InvalidInput
from bulle.isolation.driver import Driver
from bulle.model.run_plan import RunPlan


def of_workload(driver: Driver, plan: RunPlan, pid: int, arguments: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Those of a running workload, by the host's ps where that sees them."""
    return driver.listing(plan, arguments) or listing(set(driver.processes(plan, pid)), arguments)


def listing(pids: Collection[int], arguments: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of these processes (pids of the host), by the caller's arguments for ps. Raises InvalidInput where ps refuses them."""
    chosen = list(arguments) or ["-ef"]
    # Without -e, ps chooses by terminal and user; told the processes, it shows just them, unless the arguments choose too.
    lists = [[*chosen, f"-q{','.join(map(str, pids))}"], chosen] if chosen != ["-ef"] else [chosen]
    for words in lists:
        result = subprocess.run(["ps", *words], capture_output=True, text=True, check=False)
        if result.returncode == 0:
            break
    else:
        raise InvalidInput("ps refused its arguments", result.stderr.strip().partition("\n")[0], "see ps(1)")
    lines = result.stdout.splitlines()
    titles = lines[0].split()
    if "PID" not in titles:
        raise InvalidInput("ps prints no PID column with these arguments", "", "add one")
    rows = [line.split(None, len(titles) - 1) for line in lines[1:]]
    return titles, [row for row in rows if int(row[titles.index("PID")]) in pids]
