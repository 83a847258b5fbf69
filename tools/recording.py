"""A recording of a terminal as an SVG that moves by itself: ``tools/recording.py docs/images/apps.svg demo/apps.commands examples/fail-over``.

Runs the commands of a file, one a line, in a copy of a directory that is called ``~/shop`` in the recording, each in a terminal of its own size, and
writes what was seen, in real time but for long pauses. The SVG holds text and CSS only. Of the file's lines the first is the title; one that begins
with ``#`` is a comment that is shown, one with ``@`` is run at the end and not shown. Bulle has a home of its own for that time.
"""

from __future__ import annotations

import codecs
import fcntl
import html
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bulle_testing import places

COLUMNS, ROWS = 92, 20
TYPING_S, READING_S, END_S = 0.035, 0.9, 4.0
MOST_PAUSE_S = 1.5
"""A longer wait is shown as one of this length."""
FRAME_S = 0.05
"""What is nearer to each other is one frame."""
SHOP = "shop"

# Of the sixteen colours those of a dark background that can be read; the first is that of plain text.
COLOURS = ["#8b949e", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#e6edf3"]
PLAIN, BACKGROUND, BAR = "#e6edf3", "#0d1117", "#161b22"
CELL_W, CELL_H, SIZE, MARGIN, TOP = 8.4, 19, 14, 14, 34

Style = tuple[str, bool]
Line = tuple[tuple[Style, str], ...]


class Screen:
    """What a terminal shows: the control sequences that our programs write, and no others."""

    def __init__(self) -> None:
        self.cells: list[list[tuple[str, Style]]] = [[]]
        self.row = self.column = 0
        self.style: Style = ("", False)

    def write(self, text: str) -> None:
        """Show the output of a program."""
        for control, final, character in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[^\[]|([^\x1b])", text):
            if final:
                self._control(control, final)
            elif character == "\n":
                self._down()
            elif character == "\r":
                self.column = 0
            elif character == "\b":
                self.column = max(0, self.column - 1)
            elif character >= " ":
                if self.column >= COLUMNS:
                    self.column = 0
                    self._down()
                line = self.cells[self.row]
                line += [(" ", ("", False))] * (self.column + 1 - len(line))
                line[self.column] = (character, self.style)
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])
        if len(self.cells) > ROWS:
            del self.cells[0]
            self.row -= 1

    def _control(self, control: str, final: str) -> None:
        numbers = [int(number) if number else 0 for number in control.lstrip("?").split(";")]
        count = max(1, numbers[0])
        if final == "m":
            self._colour(numbers)
        elif final == "A":
            self.row = max(0, self.row - count)
        elif final == "B":
            for _ in range(count):
                self._down()
        elif final == "C":
            self.column += count
        elif final == "D":
            self.column = max(0, self.column - count)
        elif final == "G":
            self.column = count - 1
        elif final == "K":
            line = self.cells[self.row]
            del line[0 if numbers[0] == 2 else self.column :]
        elif final == "J":
            del self.cells[self.row][self.column :]
            del self.cells[self.row + 1 :]

    def _colour(self, numbers: list[int]) -> None:
        for number in numbers:
            if number == 0:
                self.style = ("", False)
            elif number == 1:
                self.style = (self.style[0], True)
            elif number == 2:
                self.style = (COLOURS[0], False)
            elif 30 <= number <= 37 or 90 <= number <= 97:
                self.style = (COLOURS[number % 10], self.style[1])
            elif number == 39:
                self.style = ("", self.style[1])

    def lines(self) -> tuple[Line, ...]:
        """What is to be seen, in runs of one style."""
        found = []
        for cells in self.cells:
            runs: list[tuple[Style, str]] = []
            for character, style in cells:
                if runs and (runs[-1][0] == style or character == " "):
                    runs[-1] = (runs[-1][0], runs[-1][1] + character)
                else:
                    runs.append((style, character))
            found.append(tuple(runs))
        return tuple(found)


@dataclass
class Recording:
    """Frames, each with the second from which it is seen."""

    screen: Screen = field(default_factory=Screen)
    frames: list[tuple[float, tuple[Line, ...]]] = field(default_factory=list)
    now_s: float = 0.0

    def keep(self) -> None:
        """What is seen now is a frame; it takes the place of one that was not seen long enough."""
        if self.frames and self.now_s - self.frames[-1][0] < FRAME_S:
            self.frames[-1] = (self.frames[-1][0], self.screen.lines())
        elif not self.frames or self.frames[-1][1] != self.screen.lines():
            self.frames.append((self.now_s, self.screen.lines()))

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.now_s += min(seconds, MOST_PAUSE_S)

    def type(self, command: str) -> None:
        """Somebody types a command."""
        self.screen.write(f"\x1b[32m~/{SHOP} $\x1b[0m ")
        self.keep()
        self.wait(READING_S)
        colour = "\x1b[2m" if command.startswith("#") else "\x1b[1m"
        words = re.findall(r"\S+\s*", command)
        for word in words:
            self.screen.write(f"{colour}{word}\x1b[0m")
            self.keep()
            self.wait(max(TYPING_S * len(word), FRAME_S))
        self.screen.write("\r\n")
        self.keep()

    def run(self, command: str, directory: Path, environment: dict[str, str]) -> None:
        """What a command shows, when it shows it. Raises CalledProcessError."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(directory)
            os.execvpe("bash", ["bash", "-c", command], environment)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        decoder = codecs.getincrementaldecoder("utf-8")()
        began = time.monotonic()
        while True:
            select.select([terminal], [], [])
            try:
                data = os.read(terminal, 65536)
            except OSError:  # its other end is closed
                break
            self.wait(time.monotonic() - began)
            began = time.monotonic()
            self.screen.write(decoder.decode(data))
            self.keep()
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise subprocess.CalledProcessError(code, command)


def drawn(line: Line) -> str:
    """A line as text with colours."""
    parts = []
    for (colour, bold), text in line:
        style = (f' fill="{colour}"' if colour else "") + (' font-weight="bold"' if bold else "")
        parts.append(f"<tspan{style}>{html.escape(text)}</tspan>" if style else html.escape(text))
    return "".join(parts)


def svg(recording: Recording, title: str) -> str:
    """The whole picture: each line once, each frame as a group that is seen in its time."""
    width, height = COLUMNS * CELL_W + 2 * MARGIN, ROWS * CELL_H + TOP + MARGIN
    total_s = recording.now_s + END_S
    names: dict[Line, str] = {}
    frames, rules = [], []
    for number, (from_s, lines) in enumerate(recording.frames):
        until_s = recording.frames[number + 1][0] if number + 1 < len(recording.frames) else total_s
        uses = []
        for row, line in enumerate(lines):
            if line:
                name = names.setdefault(line, f"l{len(names)}")
                uses.append(f'<use href="#{name}" y="{row * CELL_H}"/>')
        first, last = from_s / total_s * 100, until_s / total_s * 100
        begin = "" if number == 0 else "0%{visibility:hidden}"
        end = "" if last >= 100 else f"{last:.3f}%{{visibility:hidden}}"
        rules.append(f"@keyframes k{number}{{{begin}{first:.3f}%{{visibility:visible}}{end}}}")
        rules.append(f"#f{number}{{animation-name:k{number}}}")
        frames.append(f'<g id="f{number}" class="f">{"".join(uses)}</g>')
    rules.append("@media (prefers-reduced-motion:reduce){.f{animation:none}" + f"#f{len(frames) - 1}{{visibility:visible}}}}")
    x, y = MARGIN, TOP + SIZE
    texts = "".join(f'<text id="{name}" x="{x}" y="{y}" xml:space="preserve">{drawn(line)}</text>' for line, name in names.items())
    dots = "".join(f'<circle cx="{20 + 18 * place}" cy="15" r="5.5" fill="{COLOURS[0]}"/>' for place in range(3))
    bar = f'<path d="M0 8a8 8 0 0 1 8-8h{width - 16:g}a8 8 0 0 1 8 8v22H0z" fill="{BAR}"/>{dots}'
    font = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n"
        f"text{{font:{SIZE}px {font};fill:{PLAIN};white-space:pre}}\n"
        f".f{{visibility:hidden;animation:{total_s:.2f}s step-end infinite}}\n" + "\n".join(rules) + "\n</style>\n"
        f"<defs>{texts}</defs>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>{bar}\n'
        + "\n".join(frames)
        + "\n</svg>\n"
    )


def main() -> int:
    """Record, look that nothing of this machine is told, and write."""
    target, commands, example = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    lines = [line for line in commands.read_text().splitlines() if line]
    title = lines.pop(0).removeprefix("#").strip()
    untold = [line.removeprefix("@") for line in lines if line.startswith("@")]
    lines = [line for line in lines if not line.startswith("@")]
    recording = Recording()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        shop = Path(place) / SHOP
        shutil.copytree(example, shop)
        scripts = sysconfig.get_path("scripts")
        home = Path(place) / "home"
        home.mkdir(mode=0o700)
        environment = {"BULLE_HOME": str(home), "HOME": place, "PATH": f"{scripts}:/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "xterm-256color"}
        environment["LC_ALL"] = "C.UTF-8"
        try:
            for command in lines:
                recording.type(command)
                if not command.startswith("#"):
                    recording.run(command, shop, environment)
        finally:
            for command in untold:
                subprocess.run(["bash", "-c", command], cwd=shop, env=environment, capture_output=True, check=True)
            places.close_home(home)
        recording.wait(READING_S)
        picture = svg(recording, title)
        if told := [path for path in (place, str(Path.cwd()), scripts) if path in picture]:
            print(f"the recording tells paths of this machine: {told}", file=sys.stderr)
            return 1
    target.write_text(picture)
    print(f"{target}: {len(recording.frames)} frames, {recording.now_s + END_S:.0f} s, {len(picture) // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
