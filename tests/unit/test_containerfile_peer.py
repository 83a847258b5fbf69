"""Our reading of Containerfiles beside BuildKit's own parser (the package ``dockerfile``, which wraps it): a corpus, its mutations, a grammar.

Compared are the statements: accepted or refused, keywords, flags, words, JSON or not, first and last line, heredocs. What the parser does not look at
(which flags there are, how many arguments) is in test_containerfile.py.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulle.build import syntax
from bulle.build.parsing import KEYWORDS
from bulle.errors import BuildSyntaxError
from bulle_testing import tiers
from bulle_testing.running import wait_for

CORPUS = sorted((Path(__file__).parent / "containerfiles").glob("*.Containerfile"))

JSON_REASON = "text after a JSON array makes it a shell form, as in later versions"
# The package has BuildKit 0.12.5. Where it differs from us it is on purpose, for one of these reasons; each is looked for in the whole text.
DIFFERENCES: dict[str, Callable[[str], bool]] = {
    "flags are text: 0.12.5 takes them apart into bytes, so that é becomes two characters and à a space": (
        lambda text: "--" in text and not text.isascii()
    ),
    "a space may follow <<, as in later versions": lambda text: re.search(r"<<[ \t\r\\`]", text) is not None,
    "${x#…}, ${x%…} and ${x/…} are known, as in later versions": lambda text: re.search(r"\$\{[^{}]*[#%/]", text) is not None,
    "the directive check is known, as in later versions": lambda text: re.search(r"#\s*check\s*=", text, re.IGNORECASE) is not None,
    "any space may stand before the name of a directive, as in later versions": (
        lambda text: re.search(r"#\s*([^\x00-\x7f]|\v)\s*\w+\s*=", text) is not None
    ),
    "the escape character of the file is that of flags too, as in later versions": (
        lambda text: "--" in text and re.search(r"#\s*escape\s*=", text, re.IGNORECASE) is not None
    ),
    f"{JSON_REASON}, and so it can have heredocs": lambda text: re.search(r"\][^\n]*<<", text) is not None,
    "NUL bytes are refused": lambda text: "\0" in text or "\\u0000" in text,
}


@dataclass(frozen=True)
class Read:
    """A statement as both parsers can tell it."""

    keyword: str
    trigger: str
    json: bool
    lines: tuple[int, int]
    flags: tuple[str, ...]
    words: tuple[str, ...]
    heredocs: tuple[tuple[str, int, str], ...]


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """The package ``dockerfile``."""
    try:
        import dockerfile
    except ImportError:
        tiers.give_up("package_index", "the package dockerfile is not installed (it has wheels for x86_64; `make` installs the extra dev)")
    module: ModuleType = dockerfile
    # Go's runtime begins in a thread of its own, which opens these for the whole process: not in the middle of a test.
    descriptors = Path("/proc/self/fd")
    wait_for(lambda: any("eventpoll" in os.readlink(one) for one in descriptors.iterdir() if one.is_symlink()), "the start of Go's runtime")
    return module


def by_peer(peer: ModuleType, text: str) -> list[Read] | str | None:
    """What BuildKit's parser reads, or its refusal; None where its answer is no text."""
    try:
        commands = peer.parse_string(text)
    except peer.GoParseError as error:
        return str(error)
    except UnicodeDecodeError:
        return None
    return [
        Read(
            command.cmd or "",
            command.sub_cmd or "",
            command.json,
            (command.start_line, command.end_line),
            command.flags,
            # A keyword that it does not know has one empty word.
            () if command.value == ("",) and not command.json else command.value,
            tuple((heredoc.name, heredoc.file_descriptor, heredoc.content) for heredoc in command.heredocs),
        )
        for command in commands
    ]


def by_us(text: str) -> list[Read] | str:
    """The same, read by Bulle."""
    try:
        statements = syntax.read(text, "Containerfile").statements
    except BuildSyntaxError as error:
        return str(error)
    found = []
    for statement in statements:
        inner = statement.trigger or statement
        # The package does not tell the heredocs of an ONBUILD; that they are read shows in the lines.
        heredocs = () if statement.trigger else tuple((heredoc.name, heredoc.descriptor, heredoc.raw) for heredoc in statement.heredocs)
        trigger = statement.trigger.keyword if statement.trigger else ""
        lines = (statement.location.line, statement.location.end_line)
        found.append(Read(statement.keyword, trigger, inner.json, lines, statement.flags, inner.words, heredocs))
    return found


def compare(peer: ModuleType, text: str, allowed: bool = True) -> None:
    """Both read the same, or both refuse, or there is a reason for the difference."""
    theirs, ours = by_peer(peer, text), by_us(text)
    if theirs is None or (isinstance(theirs, str) and isinstance(ours, str)) or theirs == ours:
        return
    if allowed and any(explains(text) for explains in DIFFERENCES.values()):
        return
    # An ONBUILD in an ONBUILD is refused by them too, but only when it is carried out.
    if isinstance(ours, str) and "an ONBUILD cannot stand in an ONBUILD" in ours:
        return
    # JSON_REASON again: such an array is refused by them where it holds anything but texts.
    if allowed and isinstance(theirs, str) and "JSON array syntax" in theirs and re.search(r"\][^\n]*\S", text):
        return
    if isinstance(theirs, str) or isinstance(ours, str):
        pytest.fail(f"BuildKit: {theirs}\nBulle: {ours}\n{text!r}")
    different = [pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]]
    # JSON_REASON: this difference can be told from the statements themselves; heredocs after it shift the rest of the file.
    if allowed and different and different[0][0].json and not different[0][1].json:
        return
    pytest.fail(f"{len(theirs)} and {len(ours)} statements; BuildKit and Bulle:\n{different}\n{text!r}")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus_is_read_as_buildkit_reads_it(path: Path, peer: ModuleType) -> None:
    """Without any allowance for differences."""
    compare(peer, path.read_bytes().decode(), allowed=False)


@pytest.mark.parametrize(
    ("reason", "text", "ours"),
    [
        ("flags are text", "COPY --chown=é a b", ("--chown=é",)),
        ("a space may follow", "RUN cat << EOF\nx\nEOF", ("cat << EOF",)),
        ("${x#…}", "RUN cat ${a#b} <<EOF\nx\nEOF", ("cat ${a#b} <<EOF",)),
        ("text after a JSON array", 'CMD ["a"] b', ('["a"] b',)),
        ("the escape character of the file", "# escape=`\nCOPY --chown=a`b c d", ("--chown=ab",)),
        ("the directive check", "# check=skip=all\n# escape=`\nRUN a `\n b", ("a  b",)),
    ],
)
def test_differences_on_purpose(reason: str, text: str, ours: tuple[str, ...], peer: ModuleType) -> None:
    """Each of them is one: if the package comes to agree, its line in the table can go."""
    assert any(name.startswith(reason) for name in (*DIFFERENCES, JSON_REASON))
    assert by_peer(peer, text) != by_us(text)
    read = by_us(text)
    assert not isinstance(read, str)
    assert ours in (read[0].flags, read[0].words)


# Pieces that make and break the syntax, more often than letters by chance would.
PIECES = st.sampled_from(
    [
        *("\\", "`", '"', "'", "<", ">", "-", "$", " ", "{", "}", "\n", "\t", "#", "=", "[", "]", ",", "\r", ":", "/", "a", "E"),
        *("<<", "<<-", "<<EOF"),
        *("\nEOF\n", "ONBUILD ", "ENV ", "\\\n", "\\ \n", "# escape=`\n", "--", "${a", "é", "\u00a0", "\u2003", "<< ", "RUN "),
        *('["', '"]', "\n\n", "\v"),
    ]
)
SHORT = [path for path in CORPUS if path.stat().st_size < 5000]


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A file of the corpus with parts taken out, doubled, put in or replaced."""
    text = draw(st.sampled_from(SHORT)).read_bytes().decode()
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.sampled_from([1, 1, 2, 5, 20])))
        instead = draw(st.sampled_from(["delete", "insert", "double", "replace"]))
        piece = draw(PIECES)
        middle = {"delete": "", "insert": piece + text[begin:end], "double": text[begin:end] * 2, "replace": piece}[instead]
        text = text[:begin] + middle + text[end:]
    return text


WORD = st.text(string.ascii_letters + string.digits + "/._-$={}:\\\"'#<,[]", min_size=1, max_size=12)
WORDS = st.lists(WORD, min_size=0, max_size=4).map(" ".join)
FLAG = st.builds("--{}={}".format, st.sampled_from(["from", "chown", "mount", "platform", "interval", "x"]), WORD)
JSON = st.lists(WORD, max_size=3).map(json.dumps)
KEYWORD = st.sampled_from([*KEYWORDS, "run", "Copy", "FOO"])


@st.composite
def statements(draw: st.DrawFn) -> str:
    """One instruction, of whatever form."""
    parts = [draw(KEYWORD), *draw(st.lists(FLAG, max_size=2))]
    if parts[0] == "ONBUILD" and draw(st.booleans()):
        parts.append(draw(KEYWORD.filter(lambda keyword: keyword != "ONBUILD")))
    parts += [draw(st.one_of(WORDS, WORDS, JSON))]
    body = ""
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(["EOF", "E-O", "x"]))
        dash, quote = draw(st.sampled_from(["", "-"])), draw(st.sampled_from(["", "'", '"']))
        parts.append(f"<<{dash}{quote}{name}{quote}")
        body = "\n" + draw(st.lists(WORDS, max_size=2).map("".join)) + f"\n{name}"
    separators = st.sampled_from([" ", " ", " ", "  ", "\t", " \\\n  ", " \\\n# comment\n", "\\\n\n "])
    return "".join(part + draw(separators) for part in parts[:-1]) + parts[-1] + body


FILES = st.lists(st.one_of(statements(), statements(), st.sampled_from(["", "# comment", "  "])), min_size=1, max_size=5).map("\n".join)
GENTLE = settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@GENTLE
@given(text=FILES)
def test_generated_files_are_read_as_buildkit_reads_them(text: str, peer: ModuleType) -> None:
    compare(peer, text)


@GENTLE
@given(text=mutations())
def test_mutated_files_are_read_or_refused_as_buildkit_does(text: str, peer: ModuleType) -> None:
    compare(peer, text)
