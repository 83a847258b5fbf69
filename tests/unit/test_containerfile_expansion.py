"""Variables, quotes and escapes in instructions: which parts are replaced, and every form of ``${…}``."""

from __future__ import annotations

import pytest

from bulle.build import instructions as known
from bulle.build.expansion import expand_text, expanded
from bulle.build.instructions import Instruction, Location
from bulle.build.parsing import parse, parse_one
from bulle.errors import BuildSyntaxError

VARIABLES = {"a": "1", "empty": "", "path": "/usr/local/lib/x.tar.gz", "words": "b c", "long": "aXbXc", "back": "c:\\x", "lines": "p\nq"}


def one(text: str) -> Instruction:
    """The instruction that a text holds."""
    return parse_one(text, Location("Containerfile", 7, 7))


def word(text: str, escape: str = "\\") -> str:
    """A text of a file, expanded."""
    return expand_text(text, known.User(text, escape=escape, location=Location("Containerfile", 7, 7)), VARIABLES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$a", "1"),
        ("${a}", "1"),
        ("x$a/y", "x1/y"),
        ("$a$a", "11"),
        ("$unset", ""),
        ("x${unset}y", "xy"),
        ("$a-b", "1-b"),
        ("$1a", "a"),
        ("$12", ""),
        ("a$", "a$"),
        ("$", "$"),
        ("$/", "$/"),
        ("$$", ""),
        ("\\$a", "$a"),
        ("\\\\$a", "\\1"),
        ("'$a'", "$a"),
        ('"$a"', "1"),
        ('"\\$a"', "$a"),
        ('"\\x"', "\\x"),
        ('"\\""', '"'),
        ("a\\ b", "a b"),
        ("a\\b", "ab"),
        ("a\\", "a"),
        ("'a\\'", "a\\"),
        ("\"it's\"", "it's"),
        ("'\"'", '"'),
        ("$words", "b c"),
        ("<a <<b", "<a <<b"),
        ("${unset:-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${unset-d}", "d"),
        ("${a:-d}", "1"),
        ("${a:+d}", "d"),
        ("${empty:+d}", ""),
        ("${empty+d}", "d"),
        ("${unset+d}", ""),
        ("${a:?m}", "1"),
        ("${empty?m}", ""),
        ("${unset:-$a}", "1"),
        ("${unset:-${other:-z}}", "z"),
        ("${unset:-'x}y'}", "x}y"),
        ('${unset:-"x y"}', "x y"),
        ("${unset:-a\\}b}", "a}b"),
        ("${unset:-}", ""),
        ("${path#*/}", "usr/local/lib/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "/usr/local/lib/x.tar"),
        ("${path%%.*}", "/usr/local/lib/x"),
        ("${path#/usr}", "/local/lib/x.tar.gz"),
        ("${path%gz}", "/usr/local/lib/x.tar."),
        ("${path#nothing}", "/usr/local/lib/x.tar.gz"),
        ("${path#?usr}", "/local/lib/x.tar.gz"),
        ("${long#a*X}", "bXc"),
        ("${long##a*X}", "c"),
        ("${long%X*}", "aXb"),
        ("${long%%X*}", "a"),
        ("${long/X/-}", "a-bXc"),
        ("${long//X/-}", "a-b-c"),
        ("${long//X/}", "abc"),
        ("${long/X*/-}", "a-"),
        ("${long//?X/_}", "__c"),
        ("${path//\\//:}", ":usr:local:lib:x.tar.gz"),
        ("${long/$empty/x}", "xaXbXc"),
        ("${back#*\\\\}", "x"),
        ("${unset#x}", ""),
        ("${unset/x/y}", ""),
        ("${lines#*}", "p\nq"),
        ("${lines##*}", "\nq"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert word(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("c:\\x", "c:\\x"), ("`$a", "$a"), ('"`""', '"'), ("a` b", "a b"), ("\\$a", "\\1")])
def test_words_with_the_other_escape_character(text: str, expected: str) -> None:
    assert word(text, "`") == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("${a", "a } is missing"),
        ("${", "a } is missing"),
        ("${a:-x", "a } is missing"),
        ("${}", "${ wants the name of a variable"),
        ("${:-x}", "${ wants the name of a variable"),
        ("${a!x}", "${a is followed by !"),
        ("${a:x}", "${a is followed by :x"),
        ("${a:#x}", "${a is followed by :#"),
        ("'x", "a single quote is not closed"),
        ('"x', "a double quote is not closed"),
        ("${unset:?give it}", "unset: give it"),
        ("${unset?}", "unset: must be set"),
        ("${empty:?}", "empty: must be set"),
        ("${long#\\x}", "a backslash before 'x'"),
        ("${long/X", "a / is missing"),
        ("${a:-" * 60 + "}" * 60, "more than 50 deep"),
    ],
)
def test_words_that_cannot_be_read(text: str, sentence: str) -> None:
    with pytest.raises(BuildSyntaxError) as caught:
        word(text)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("Containerfile:7: ")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("FROM image:$a AS x", "image", "image:1"),
        ("FROM --platform=linux/${long#aXb} x", "platform", "linux/Xc"),
        ("ENV x=$a $a='$a' y=\"$words\"", "pairs", (("x", "1"), ("1", "$a"), ("y", "b c"))),
        ("ENV x $a b", "pairs", (("x", "1 b"),)),
        ("LABEL $a=$a", "pairs", (("1", "1"),)),
        ("ARG x=$a y=$x z", "names", (("x", "1"), ("y", "1"), ("z", None))),
        ("COPY --chown=$a:${a} --chmod=$a $a b\\$ /$a", "sources", ("1", "b$")),
        ("COPY --chown=$a:${a} x /$a", "chown", "1:1"),
        ("COPY --chmod=$a x /$a", "chmod", "1"),
        ("COPY x /$a", "destination", "/1"),
        ('COPY ["$a", "x y", "/$a"]', "sources", ("1", "x y")),
        ("COPY --exclude=$a x y", "excludes", ("$a",)),
        ("ADD --checksum=sha256:$a x y", "checksum", "sha256:1"),
        ("EXPOSE $a 2 $words $unset", "ports", ("1", "2", "b", "c")),
        ("VOLUME /$a $words", "paths", ("/1", "b c")),
        ("USER $a:$unset", "user", "1:"),
        ('WORKDIR "/a b/$a"', "path", "/a b/1"),
        ("STOPSIGNAL $a", "signal", "1"),
        ("RUN echo $a", "command", ("echo $a",)),
        ("CMD echo $a", "command", ("echo $a",)),
        ('ENTRYPOINT ["$a"]', "command", ("$a",)),
        ('SHELL ["$a"]', "command", ("$a",)),
        ("HEALTHCHECK CMD $a", "test", ("CMD-SHELL", "$a")),
        ("ONBUILD ENV a=$a", "text", "ENV a=$a"),
        ("MAINTAINER $a", "name", "$a"),
    ],
)
def test_what_is_expanded_in_which_instruction(text: str, name: str, expected: object) -> None:
    before = one(text)
    after = expanded(before, VARIABLES)
    assert getattr(after, name) == expected
    assert (type(after), after.location, after.original) == (type(before), before.location, before.original)


def test_mounts_are_expanded() -> None:
    found = expanded(one("RUN --mount=type=$t,target=/$a,uid=$a,sharing=${s:-locked},ro=${empty:-true} $a"), VARIABLES | {"t": "cache"})
    assert isinstance(found, known.Run)
    (mount,) = found.mounts
    assert (mount.type, mount.target, mount.id, mount.uid, mount.sharing, mount.read_only) == ("cache", "/1", "/1", 1, "locked", True)
    with pytest.raises(BuildSyntaxError, match="Containerfile:7: uid of a mount is a number, not 'b c'"):
        expanded(one("RUN --mount=type=cache,target=/x,uid=$words y"), VARIABLES)
    with pytest.raises(BuildSyntaxError, match="a mount of type bind has no sharing"):
        expanded(one("RUN --mount=type=$t,target=/x,sharing=locked y"), {"t": "bind"})


def test_heredocs_are_expanded_unless_their_name_is_quoted() -> None:
    text = "COPY <<A <<'B' /x\n$a \"$a\" '$a' \\$a ${unset:-d}\nA\n$a\nB"
    found = expanded(one(text), VARIABLES)
    assert isinstance(found, known.Copy)
    assert [heredoc.content for heredoc in found.heredocs] == ["1 \"1\" '1' $a d\n", "$a\n"]
    with pytest.raises(BuildSyntaxError, match=r"Containerfile:7: the heredoc A cannot be expanded: .* quote its delimiter"):
        expanded(one("COPY <<A /x\n${a!}\nA"), VARIABLES)
    run = one("RUN <<A\n$a\nA")
    assert expanded(run, VARIABLES) == run


def test_missing_names_are_gathered() -> None:
    missing: set[str] = set()
    expanded(one("ENV x=$a y=$unset z=${other:-d} '$no'=1"), VARIABLES, missing)
    assert missing == {"unset", "other"}


def test_image_must_not_be_empty() -> None:
    with pytest.raises(BuildSyntaxError, match="is empty, and FROM wants an image: write ARG with a default"):
        expanded(one("FROM $unset"), {})
    with pytest.raises(BuildSyntaxError, match=r"--platform=.unset is empty"):
        expanded(one("FROM --platform=$unset a"), {})


def _pairs(instruction: Instruction) -> tuple[tuple[str, str], ...]:
    assert isinstance(instruction, known.Env)
    return instruction.pairs


def test_escape_character_of_the_file_counts() -> None:
    env = parse("# escape=`\nFROM a\nENV x=c:\\$a y=`$a").instructions[1]
    assert _pairs(expanded(env, VARIABLES)) == (("x", "c:\\1"), ("y", "$a"))


def test_growth_and_work_are_bounded() -> None:
    variables = {"a": "a" * 1000, "b": "ab" * 40_000}
    with pytest.raises(BuildSyntaxError, match="grows beyond"):
        expanded(one("ENV x=${b//a/$b}"), variables)
    with pytest.raises(BuildSyntaxError, match="too long"):
        expanded(one("ENV x=${b##*a*a*a*a*a*a*a*a*a*a*c}"), variables)
    # A pattern on which a regular expression would need longer than anyone lives.
    assert _pairs(expanded(one(f"ENV x=${{a##{'*a' * 30}c}}"), variables)) == (("x", "a" * 1000),)
