"""Whatever stands in a Containerfile or a .dockerignore: an answer or a BulleError, in a time that does not run away."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulle.build.expansion import expanded
from bulle.build.instructions import Containerfile, Location, User
from bulle.build.parsing import KEYWORDS, parse, parse_one
from bulle.build.patterns import IgnoreRules, PathPattern
from bulle.errors import BuildSyntaxError, InvalidInput

QUICK = settings(deadline=None, max_examples=300)
PIECES = st.sampled_from(
    [
        *(f"{keyword} " for keyword in KEYWORDS),
        *("FROM a\n", "\n", "\\\n", " ", "\t", "$", "${", "}", ":-", "#", "##", "%", "/", "//", "*", "?", "'", '"', "\\", "`"),
        *("<<", "<<-", "EOF", "\nEOF\n", "é", "\u2003", "\0", "\ud800", "\ufeff", "\r"),
        *("--", "--mount=", "type=", "cache", "secret", "target=", ",", "=", "[", "]", '["a"]', "a", "b", "1"),
        *("--interval=", "1h", "--from=", "# escape=`\n", "# check=", "NONE", "CMD"),
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


def carry_out(found: Containerfile) -> None:
    """Everything that is done with a file that could be read."""
    for instruction in found.instructions:
        with contextlib.suppress(BuildSyntaxError):
            expanded(instruction, {"a": "a*b", "b": "", "1": "x y"})
        with contextlib.suppress(BuildSyntaxError):
            again = parse_one(instruction.original, Location("again", 1, 1))
            assert again.keyword == instruction.keyword


@QUICK
@given(content=st.binary(max_size=400))
def test_any_bytes(content: bytes) -> None:
    for text in (content, b"FROM a\n" + content):
        with contextlib.suppress(BuildSyntaxError):
            carry_out(parse(text))


@QUICK
@given(text=TEXTS)
def test_any_row_of_pieces(text: str) -> None:
    for whole in (text, f"FROM a\n{text}"):
        with contextlib.suppress(BuildSyntaxError):
            carry_out(parse(whole))


@QUICK
@given(text=TEXTS, variables=st.dictionaries(st.sampled_from("ab1x"), TEXTS))
def test_any_text_is_expanded_or_refused(text: str, variables: dict[str, str]) -> None:
    with contextlib.suppress(BuildSyntaxError):
        found = expanded(User(text), variables)
        assert isinstance(found, User)


PATTERN = st.text("ab*?[]^-\\/!. #\n", max_size=24)
PATHS = st.text("ab/.[]-", max_size=24)


@QUICK
@given(rules=st.one_of(PATTERN, st.binary(max_size=60)), path=PATHS)
def test_any_rules_and_paths(rules: str | bytes, path: str) -> None:
    with contextlib.suppress(InvalidInput):
        read = IgnoreRules.parse(rules)
        read.excludes(path, True)
        assert read.excludes(path) == IgnoreRules.parse(rules).excludes(path)
        if read.prunes(path):
            assert read.excludes(path) and read.excludes(f"{path}/a") and read.excludes(f"{path}/b/c.d")


@QUICK
@given(pattern=st.text("ab*?[]^-\\/", max_size=12), path=st.text("ab/]-", max_size=12))
def test_both_ways_of_matching_agree(pattern: str, path: str) -> None:
    """The regular expression and the walk, which takes over where that could take long."""
    with contextlib.suppress(InvalidInput):
        found = PathPattern(pattern)
        if found._regular is not None:
            assert found._walk(path) == (found._regular.fullmatch(path) is not None)


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN " + "\\ " * 100_000,
        "FROM a\nRUN " + "<<" * 50_000,
        "FROM a\nRUN " + "<<E " * 20_000,
        "FROM a\nENV a=" + "${a:-" * 20_000,
        "FROM a\nENV " + "a='b " * 20_000,
        "FROM a\nCOPY " + "--x=" * 50_000,
        "FROM a\nCMD " + "[" * 200_000,
        "FROM a\n" + "ONBUILD " * 50_000 + "RUN x",
        "FROM a\nHEALTHCHECK --interval=" + "9" * 100_000 + "s CMD x",
        "FROM a\nHEALTHCHECK --retries=" + "9" * 100_000 + " CMD x",
        "FROM a\nRUN --mount=" + "target=/a," * 20_000 + " x",
        "FROM a\nRUN --mount=type=tmpfs,target=/a,size=" + "9" * 100_000 + " x",
        "#" + " " * 200_000 + "=\nFROM a",
        "# escape=" + " " * 200_000 + "x\nFROM a",
        "X" * 200_000,
        "FROM a\nCOPY --" + "x" * 100_000 + " a b",
        "FROM a\n" + "\\\n" * 100_000 + "RUN x",
    ],
    ids=lambda text: text[:30].strip() or "spaces",
)
def test_long_rows_take_no_long_time(text: str) -> None:
    begin = time.monotonic()
    with contextlib.suppress(BuildSyntaxError):
        carry_out(parse(text))
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("pattern", ["*a" * 200, "**/a" * 200, "**/*" * 200, "a" * 5000, "[" * 3000, "?" * 4000])
def test_hard_patterns_take_no_long_time(pattern: str) -> None:
    begin = time.process_time()
    with contextlib.suppress(InvalidInput):
        rules = IgnoreRules([pattern])
        rules.excludes("a" * 255 + "/b" + "/a" * 200)
        rules.prunes("a/b")
    assert time.process_time() - begin < 60  # what is not bounded takes centuries
