""".dockerignore and the wildcards of COPY: which paths they match, and which directories a walk need not enter."""

from __future__ import annotations

import pytest

from bulle.build.patterns import IgnoreRules, PathPattern, has_wildcards
from bulle.errors import InvalidInput


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("a", ["a"], ["b", "a/b", "b/a", ""]),
        ("a/b", ["a/b"], ["a", "b"]),
        ("*", ["a", ".a"], ["a/b"]),
        ("*.py", ["a.py", ".py"], ["d/a.py", "a.pyc"]),
        ("a*", ["a", "ab"], ["ba", "a/b"]),
        ("a*b*c", ["abc", "axbxc", "abbcc"], ["acb", "ab/c"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
        ("a?", ["ab"], ["a", "abc", "a/"]),
        ("a[bc]", ["ab", "ac"], ["a", "ad", "abc"]),
        ("a[^b]", ["ac"], ["ab", "a"]),
        ("a[b-d]", ["ab", "ad"], ["ae"]),
        ("a[\\]x]", ["a]", "ax"], ["a\\"]),
        ("[\\-a]", ["-", "a"], ["b"]),
        ("a[d-b]", [], ["ab", "ac", "ad"]),
        ("arr[[]0].txt", ["arr[0].txt"], ["arr0.txt"]),
        ("a\\*", ["a*"], ["ab", "a\\b"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a+(b)|{c}$^", ["a+(b)|{c}$^"], ["aab"]),
        ("**", ["a", "a/b", ".x/y"], []),
        ("**/a", ["a", "b/a", "c/b/a"], ["ba", "b/ba", "a/b"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb", "a/b/c"]),
        ("**/*.py", ["a.py", "d/a.py", "d/e/a.py"], ["a.pyc"]),
        ("**/a/**", ["a/b", "x/a/b/c"], ["a", "x/a"]),
        ("**a", ["a", "ba", "c/ba"], ["ab"]),
        ("a**", ["a", "ab", "a/b", "ab/c"], ["b"]),
        ("**/**/a", ["a", "x/a", "x/y/a"], ["xa"]),
        ("é*", ["éa"], ["e"]),
    ],
)
def test_patterns(pattern: str, matched: list[str], others: list[str]) -> None:
    found = PathPattern(pattern)
    assert [path for path in matched + others if found.matches(path)] == matched


@pytest.mark.parametrize("pattern", ["[", "[]", "[a", "[a-", "[a-]", "[-a]", "[^]", "a\\", "[\\", "[]a]"])
def test_malformed_patterns(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="is no pattern of file names"):
        PathPattern(pattern)


def test_wildcards_are_told_from_names() -> None:
    assert [text for text in ("a", "a*", "a?", "[a]", "a\\*", "é]") if has_wildcards(text)] == ["a*", "a?", "[a]", "a\\*"]


RULES = """\
# a comment
  # a name, for it does not begin the line

*.log
!important.log
/build/
docs/**
!docs/README.md
**/node_modules
!keep/node_modules
./x//y/../z
  spaces  \t
! kept.log
.git
"""


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("a.log", True),
        ("d/a.log", False),
        ("important.log", False),
        ("kept.log", False),
        ("build", True),
        ("build/x/y", True),
        ("src/build", False),
        ("docs", False),
        ("docs/a", True),
        ("docs/README.md", False),
        ("docs/sub/README.md", True),
        ("node_modules/a/b", True),
        ("a/node_modules", True),
        ("keep/node_modules/a", False),
        ("x/z", True),
        ("x/y", False),
        ("spaces", True),
        ("# a name, for it does not begin the line", True),
        ("a comment", False),
        (".git/HEAD", True),
        (".gitignore", False),
        (".", False),
        ("", False),
    ],
)
def test_ignore_file(path: str, excluded: bool) -> None:
    assert IgnoreRules.parse(RULES).excludes(path) is excluded
    assert IgnoreRules.parse(b"\xef\xbb\xbf" + RULES.replace("\n", "\r\n").encode()).excludes(path) is excluded


def test_order_decides() -> None:
    assert IgnoreRules(["*", "!a", "a"]).excludes("a")
    assert not IgnoreRules(["*", "a", "!a"]).excludes("a")
    assert not IgnoreRules(["!a", "b"]).excludes("a")
    assert not IgnoreRules([]).excludes("a") and not IgnoreRules([]) and IgnoreRules(["a"])


def test_parents_count_for_both_kinds_of_rules() -> None:
    rules = IgnoreRules(["a", "!a/b", "a/b/c/d"])
    paths = ("a", "a/x", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e", "a/b/x")
    assert [path for path in paths if rules.excludes(path)] == ["a", "a/x", "a/b/c/d", "a/b/c/d/e"]


def test_a_rule_that_changes_nothing_is_not_passed_on() -> None:
    rules = IgnoreRules(["a", "!a/b", "a"])
    assert [path for path in ("a", "a/b", "a/b/c", "a/c") if rules.excludes(path)] == ["a", "a/c"]


@pytest.mark.parametrize(
    ("patterns", "pruned", "entered"),
    [
        (["a"], ["a", "a/b"], ["b", "."]),
        (["*"], ["a"], []),
        (["a", "!a/b"], ["a/x", "a/c/d"], ["a"]),
        (["*", "!a/*/c"], ["b", "a/x/y"], ["a", "a/x"]),
        (["*", "!**/c"], [], ["a", "a/b"]),
        (["*", "!a/**"], ["b"], ["a"]),
        (["*", "!c"], ["a", "a/b"], ["c"]),
        (["a", "!b"], ["a"], ["b"]),
        (["**", "!src/[a-b]/x"], ["b"], ["src"]),
    ],
)
def test_directories_that_a_walk_need_not_enter(patterns: list[str], pruned: list[str], entered: list[str]) -> None:
    rules = IgnoreRules(patterns)
    assert [path for path in pruned + entered if rules.prunes(path)] == pruned


def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    asked = IgnoreRules.parse(RULES)
    paths = ["docs", "docs/a", "docs/README.md", "keep", "keep/node_modules", "keep/node_modules/a", "build", "build/x/y"]
    for path in paths:
        asked.excludes(path, True)
    assert [asked.excludes(path) for path in paths] == [IgnoreRules.parse(RULES).excludes(path) for path in paths]


def test_mistakes_name_the_line() -> None:
    with pytest.raises(InvalidInput, match=r"\.dockerignore:2: '\[' is no pattern of file names"):
        IgnoreRules.parse("a\n[\n")
    with pytest.raises(InvalidInput, match=r"\.dockerignore:1: the rule '!' has no pattern"):
        IgnoreRules.parse("!\n")
    with pytest.raises(InvalidInput, match="has 5000 characters"):
        IgnoreRules.parse("a" * 5000)
