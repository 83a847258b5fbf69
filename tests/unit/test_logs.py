"""The form and the files of a log, without a container: whatever is written comes back, however it was cut, rotated and compressed."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from pathlib import Path

import pytest

from bulle.model.run_plan import LogSettings
from bulle.monitor.log_buffer import BufferedLog
from bulle.monitor.log_reading import Choice, read_log, read_text
from bulle.monitor.log_writer import LogWriter
from bulle.monitor.logs import LOG_FILE, encode_lines, encode_parts, parse_timestamp, timestamp

ALPHABET = ["a", "b c", "\\", '"', '","', "\\n", "\t", "\r", "\x00", "\x7f", "é", "€", "😀", "\u2028", "</script>", "{", "}", "\\u000a", "x" * 400]


def some_text(chance: random.Random, lines: int) -> bytes:
    """Lines of what is hard to write down, some of them long, some not in UTF-8."""
    text = b""
    for _ in range(lines):
        line = "".join(chance.choices(ALPHABET, k=chance.randrange(8))).encode() * chance.choice([1, 1, 1, 1, 30])
        text += line + chance.choice([b"", b"", b"", b"\xff\xfe", b"\xe2\x82"]) + b"\n"
    return text


def writer(directory: Path, **settings: object) -> LogWriter:
    descriptor = os.open(directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    return LogWriter(descriptor, LogSettings(**settings))  # type: ignore[arg-type]


def replaced(text: bytes) -> bytes:
    return text.decode(errors="replace").encode()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_written_comes_back(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    text = some_text(chance, 300) + chance.choice([b"", b"no newline at the end"])
    log = writer(tmp_path, file_bytes=chance.choice([0, 1000, 30_000]), files=100_000)
    position = 0
    while position < len(text):
        size = chance.choice([1, 5, 100, 4096, 70_000])
        log.write("stdout", text[position : position + size])
        position += size
    log.close()
    assert b"".join(data for _stream, data in read_text(str(tmp_path))) == replaced(text)
    entries = list(read_log(str(tmp_path)))
    assert b"".join(entry.data for entry in entries) == replaced(text)
    lines = [line for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()]
    assert len(lines) == len(entries)
    assert all(len(json.loads(line)["log"].encode("utf-8", "surrogatepass")) <= 3 * 16 * 1024 + 1 for line in lines)
    for path in tmp_path.iterdir():
        if path.name != LOG_FILE and chance.random() < 0.5:
            (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    for tail in (0, 1, 2, len(entries) // 2, len(entries) - 1, len(entries), len(entries) + 1):
        expected = [entry.data for entry in entries[len(entries) - min(tail, len(entries)) :]]
        assert [entry.data for entry in read_log(str(tmp_path), Choice(tail))] == expected
        assert b"".join(data for _stream, data in read_text(str(tmp_path), Choice(tail))) == b"".join(expected)


def test_quick_form_and_plain_form_are_one() -> None:
    chance = random.Random(1)
    for attributes in (b"", b'{"a":"b\\n"}'):
        for _ in range(200):
            text = some_text(chance, chance.randrange(1, 5)).replace(b"x" * 400, b"x")
            parts = [line + b"\n" for line in text[:-1].split(b"\n")]
            assert encode_lines(text, "stderr", 1, attributes) == encode_parts(parts, "stderr", 1, attributes)


def test_time_is_kept_to_the_nanosecond() -> None:
    for moment in (0, 1, 999_999_999, 1_795_000_000_123_456_789, 4_102_444_800_000_000_001):
        assert parse_timestamp(timestamp(moment)) == moment
        assert len(timestamp(moment)) == 30


def test_bounds_in_time_choose_lines(tmp_path: Path) -> None:
    log = writer(tmp_path, file_bytes=2000, files=100)
    for second in range(1, 101):
        log.write("stdout" if second % 2 else "stderr", b"%d\n" % second, second * 10**9)
    log.close()
    for since, until in ((0, 0), (50, 0), (0, 50), (20, 30), (101, 0), (7, 7)):
        expected = [b"%d\n" % second for second in range(max(since, 1), (until or 100) + 1)]
        choice = Choice(None, since * 10**9, until * 10**9)
        for path in tmp_path.iterdir():  # it was written at those times, as far as anyone can tell
            last = json.loads(path.read_bytes().splitlines()[-1])["time"]
            os.utime(path, ns=(0, parse_timestamp(last)))
        assert [entry.data for entry in read_log(str(tmp_path), choice)] == expected
        assert b"".join(data for _stream, data in read_text(str(tmp_path), choice)) == b"".join(expected)


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    good = encode_lines(b"one\n", "stdout", 1), encode_lines(b"two\n", "stdout", 2)
    broken = b'{"log":"x\\n","stream":"stdout","ti', b'{"log":3}', b"\xff\xff", b'{"log":"x","stream":"other","time":"never"}', b""
    (tmp_path / LOG_FILE).write_bytes(good[0] + b"\n".join(broken) + b"\n" + good[1])
    assert [entry.data for entry in read_log(str(tmp_path))] == [b"one\n", b"two\n"]
    assert list(read_text(str(tmp_path))) == [("stdout", b"one\ntwo\n")]
    assert [data for _stream, data in read_text(str(tmp_path), timestamps=True)] == [f"{timestamp(1)} one\n{timestamp(2)} two\n".encode()]


def test_log_that_was_removed_begins_anew(tmp_path: Path) -> None:
    log = writer(tmp_path, file_bytes=1000, files=3)
    log.write("stdout", b"before\n")
    (tmp_path / LOG_FILE).unlink()
    for number in range(100):
        log.write("stdout", b"%d\n" % number)
    log.close()
    assert list(read_log(str(tmp_path)))[-1].data == b"99\n"


class Slow:
    """A log that takes nothing until it is let."""

    failed = ""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.open = False
        self.closed = False

    def write(self, stream: str, data: bytes, time_ns: int = 0) -> None:
        while not self.open:
            time.sleep(0.001)
        self.taken.append((stream, data))

    def note(self, text: str, time_ns: int = 0) -> None:
        self.write("note", text.encode())

    def close(self) -> None:
        self.closed = True


def test_buffer_drops_whole_lines_and_counts_them() -> None:
    slow = Slow()
    log = BufferedLog(slow, 100)
    for number in range(100):
        log.write("stdout", b"line %02d\nli" % number if not number else b"ne %02d\nli" % number)
    slow.open = True
    log.close()
    assert slow.closed
    kept = b"".join(data for stream, data in slow.taken if stream == "stdout").split()
    notes = [data for stream, data in slow.taken if stream == "note"]
    assert 5 <= kept.count(b"line") <= 13, "a hundred bytes, and perhaps one message that was on its way"
    assert [b"line %02d" % number for number in range(kept.count(b"line"))] == [b"line " + word for word in kept if word.isdigit()]
    assert all(note.endswith(b" messages were dropped here: the log's buffer of 100 bytes was full") for note in notes)
    unfinished = kept.count(b"li")  # what had no newline yet: it is kept or dropped as all else
    assert sum(int(note.split()[0]) for note in notes) == 101 - kept.count(b"line") - unfinished
