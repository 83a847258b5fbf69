"""Containerfiles as instructions: what each says, and the sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulle.build import instructions as known
from bulle.build.instructions import Heredoc, Instruction, Location, RunMount
from bulle.build.parsing import KEYWORDS, parse, parse_one
from bulle.errors import BuildSyntaxError, InvalidInput, from_parts, to_parts

CORPUS = sorted((Path(__file__).parent / "containerfiles").glob("*.Containerfile"))
# These hold mistakes on purpose; the sentences for them are tested one by one below.
MISTAKEN = {"004", "039", "068", "069", "070", "071", "072", "073", "074", "086", "026", "027", "046", "102"}


def one(text: str) -> Instruction:
    """The instruction that a text holds."""
    return parse_one(text, Location("Containerfile", 1, 1))


def refused(text: str | bytes) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(BuildSyntaxError) as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.parametrize("path", [path for path in CORPUS if path.name[:3] not in MISTAKEN], ids=lambda path: path.stem)
def test_corpus_has_meaning(path: Path) -> None:
    """Instructions stand at lines that begin with their keyword, in order."""
    text = path.read_bytes()
    lines = text.decode().removeprefix("\ufeff").split("\n")
    found = parse(text, path.name)
    assert found.instructions
    last = 0
    for instruction in found.instructions:
        assert instruction.location.line > last
        assert instruction.original.upper().startswith(instruction.keyword)
        begin = lines[instruction.location.line - 1].strip().upper()
        assert begin.startswith((instruction.keyword, "\\"))
        last = instruction.location.end_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM debian", known.From("debian")),
        ("FROM --platform=linux/arm64 a/b:c AS Stage-1.x_y", known.From("a/b:c", "linux/arm64", "stage-1.x_y")),
        ("ARG a", known.Arg((("a", None),))),
        ("ARG a=1 b c= d=x=y", known.Arg((("a", "1"), ("b", None), ("c", ""), ("d", "x=y")))),
        ("ENV a=b c=d", known.Env((("a", "b"), ("c", "d")))),
        ("ENV a b c=d", known.Env((("a", "b c=d"),))),
        ('LABEL "a b"="c d" e=f\\ g', known.Label((('"a b"', '"c d"'), ("e", "f\\ g")))),
        ("RUN a  b | c", known.Run(("a  b | c",), True)),
        ('RUN ["a", "b c"]', known.Run(("a", "b c"), False)),
        ("RUN --network=none --security=insecure a", known.Run(("a",), True, network="none", security="insecure")),
        ("COPY a b c", known.Copy(("a", "b"), "c")),
        (
            "COPY --from=x --chown=1:2 --chmod=644 --link --parents --exclude=*.o --exclude=b a /c",
            known.Copy(("a",), "/c", from_="x", chown="1:2", chmod="644", link=True, parents=True, excludes=("*.o", "b")),
        ),
        ('COPY ["a b", "c d"]', known.Copy(("a b",), "c d")),
        (
            "ADD --checksum=sha256:0 --keep-git-dir --unpack=false --link=FALSE a b",
            known.Add(("a",), "b", checksum="sha256:0", keep_git_dir=True, unpack=False),
        ),
        ("CMD a b", known.Cmd(("a b",), True)),
        ('CMD ["a", "b"]', known.Cmd(("a", "b"), False)),
        ("CMD []", known.Cmd((), False)),
        ("ENTRYPOINT exec a", known.Entrypoint(("exec a",), True)),
        ('SHELL ["bash", "-c"]', known.Shell(("bash", "-c"))),
        ("EXPOSE 80 53/udp", known.Expose(("80", "53/udp"))),
        ("VOLUME /a /b", known.Volume(("/a", "/b"))),
        ('VOLUME ["/a b"]', known.Volume(("/a b",))),
        ("USER a b", known.User("a b")),
        ("WORKDIR /a b", known.Workdir("/a b")),
        ("STOPSIGNAL SIGINT", known.StopSignal("SIGINT")),
        ("HEALTHCHECK none", known.Healthcheck(("NONE",))),
        ('HEALTHCHECK CMD ["a", "b"]', known.Healthcheck(("CMD", "a", "b"))),
        (
            "HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=2h --start-interval=5ms --retries=4 CMD a b",
            known.Healthcheck(("CMD-SHELL", "a b"), 90 * 10**9, 1_500_000_000, 7200 * 10**9, 5_000_000, 4),
        ),
        ("ONBUILD COPY . /app", known.Onbuild("COPY . /app")),
        ("MAINTAINER Some One", known.Maintainer("Some One")),
    ],
)
def test_every_instruction(text: str, expected: Instruction) -> None:
    found = one(text)
    assert type(found) is type(expected)
    assert found.location == Location("Containerfile", 1, 1) and found.original == text
    for name in type(expected).__dataclass_fields__:
        if name not in ("location", "original", "escape"):
            assert getattr(found, name) == getattr(expected, name), name


def test_every_keyword_has_an_instruction() -> None:
    classes = {kind.keyword for kind in vars(known).values() if isinstance(kind, type) and issubclass(kind, Instruction)}
    assert classes - {""} == set(KEYWORDS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("target=/a", RunMount("bind", "/a", read_only=True)),
        ("type=bind,from=x,src=/b,dst=/a,rw", RunMount("bind", "/a", "/b", "x", read_only=False)),
        ("type=bind,target=/a,readonly=false", RunMount("bind", "/a", read_only=False)),
        ("type=cache,target=/a/,sharing=locked", RunMount("cache", "/a/", id="/a", read_only=False, sharing="locked")),
        ("type=CACHE,destination=/a,id=i,ro,mode=755,uid=1,gid=2", RunMount("cache", "/a", id="i", read_only=True, mode=0o755, uid=1, gid=2)),
        ("type=tmpfs,target=/a,size=64m", RunMount("tmpfs", "/a", read_only=False, size_bytes=64 << 20)),
        ("type=secret,id=i", RunMount("secret", "/run/secrets/i", id="i", read_only=True)),
        ("type=secret,src=d/i,required", RunMount("secret", "/run/secrets/i", id="d/i", read_only=True, required=True)),
        ("type=secret,target=/etc/i,mode=0400", RunMount("secret", "/etc/i", id="i", read_only=True, mode=0o400)),
        ("type=secret,id=i,env=E", RunMount("secret", "", id="i", read_only=True, env="E")),
        ("type=secret,id=i,env=", RunMount("secret", "", id="i", read_only=True, env="i")),
        ("type=ssh,required=true,id=i", RunMount("ssh", id="i", read_only=True, required=True)),
        ('type=bind,"source=a,b",target=/c', RunMount("bind", "/c", "a,b", read_only=True)),
        ("type=cache,target=/a/$x,uid=$u", RunMount("cache", "/a/$x", id="/a/$x", read_only=False)),
    ],
)
def test_mounts(options: str, expected: RunMount) -> None:
    found = one(f"RUN --mount='{options}' true")
    assert isinstance(found, known.Run)
    assert found.mounts == (expected,)


def test_heredocs_of_run_become_the_script() -> None:
    alone = one("RUN <<EOF\na\n  b\nEOF")
    assert isinstance(alone, known.Run)
    assert alone.command == ("a\n  b\n",) and alone.shell and alone.script is None
    assert alone.heredocs == (Heredoc("EOF", "a\n  b\n", True),)
    stripped = one("RUN <<-EOF\n\ta\n\t\tb\n\tEOF")
    assert isinstance(stripped, known.Run) and stripped.command == ("a\nb\n",)
    within = one("RUN cat <<A && cat <<-'B'\na\nA\n\tb\n\tB")
    assert isinstance(within, known.Run)
    assert within.command == ("cat <<A && cat <<-'B'\na\nA\n\tb\nB",)
    assert within.heredocs == (Heredoc("A", "a\n", True), Heredoc("B", "b\n", False))
    script = one("RUN <<EOF\n#!/bin/python\nx\nEOF")
    assert isinstance(script, known.Run)
    assert script.script == Heredoc("EOF", "#!/bin/python\nx\n", True)


def test_heredocs_of_files() -> None:
    found = one("COPY --chmod=755 <<-A b <<'C' /x/\n\t\ta\n\tA\n$c\nC")
    assert isinstance(found, known.Copy)
    assert (found.sources, found.destination, found.chmod) == (("b",), "/x/", "755")
    assert found.heredocs == (Heredoc("A", "a\n", True), Heredoc("C", "$c\n", False))
    plain = one('ADD ["<<A", "/x"]')
    assert isinstance(plain, known.Add) and plain.sources == ("<<A",)


def test_heredoc_of_on_build_is_carried_with_it() -> None:
    found = parse("FROM a\nONBUILD RUN <<-EOF\n\tx\n\tEOF\nCMD y")
    trigger = found.instructions[1]
    assert isinstance(trigger, known.Onbuild) and trigger.text == "RUN <<-EOF\n\tx\nEOF"
    assert trigger.location == Location("Containerfile", 2, 4)
    later = parse_one(trigger.text, Location("base image", 1, 1))
    assert isinstance(later, known.Run) and later.command == ("x\n",)


def test_lines_and_original() -> None:
    found = parse("\n# a\nFROM x\nRUN a \\\n  # b\n  && c\nCOPY <<E /d\ne\nE\n")
    assert [(str(each.location), each.location.end_line) for each in found.instructions] == [
        ("Containerfile:3", 3),
        ("Containerfile:4", 6),
        ("Containerfile:7", 9),
    ]
    assert found.instructions[1].original == "RUN a   && c"


def test_directives() -> None:
    found = parse(b"\xef\xbb\xbf# syntax=docker/dockerfile:1\r\n# Escape = `\r\n# check=skip=all\r\nFROM x\r\nRUN a `\r\n  b\r\n")
    assert found.directives == {"syntax": "docker/dockerfile:1", "escape": "`", "check": "skip=all"}
    assert found.instructions[1].original == "RUN a   b"
    assert found.instructions[1].escape == "`"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("FROM a\nCOPPY x y", 'Containerfile:2: unknown instruction "COPPY": did you mean COPY?'),
        ("FROM a\nXYZZY", 'Containerfile:2: unknown instruction "XYZZY": a line begins with one of ADD'),
        ("", "Containerfile:1: there is no instruction in it: a Containerfile begins with FROM and an image"),
        ("# only a comment\n", "there is no instruction in it"),
        ("RUN x", "Containerfile:1: RUN stands before the first FROM: begin with FROM"),
        ("ARG x\nARG y", "Containerfile:2: there is no FROM in the file: write FROM and an image"),
        ("FROM", "FROM has nothing after it: write FROM and an image"),
        ("FROM a b", "write FROM a AS b"),
        ("FROM a AS", "FROM wants an image, or an image and AS name"),
        ("FROM a AS 1", "'1' is no name for a stage: names begin with a letter"),
        ("FROM a\nCOPY --chwon=1 a b", "Containerfile:2: COPY has no flag --chwon: did you mean --chown?"),
        ("FROM a\nCOPY --from a b", "--from wants a value: write --from=value"),
        ("FROM a\nCOPY --link=maybe a b", "--link is true or false"),
        ("FROM a\nCOPY --from=a --from=b c d", "--from stands there twice"),
        ("FROM a\nCOPY --from=$x a b", "FROM $x AS name, and write --from=name"),
        ("FROM a\nCOPY a", "COPY has a source and no destination: write COPY a and where to"),
        ("FROM a\nADD", "ADD has nothing after it"),
        ("FROM a\nCOPY a <<EOF\nEOF", "heredoc at the wrong place"),
        ("FROM a\nCOPY << EOF /x\nEOF", "without a space in <<EOF"),
        ("FROM a\nENV a", "ENV wants a name and a value: write ENV a=value"),
        ("FROM a\nENV a=b c", "c has no =: put quotes around a value with spaces"),
        ("FROM a\nENV =b", "ENV has a value without a name"),
        ("FROM a\nARG =b", "ARG has a value without a name"),
        ("FROM a\nARG", "ARG has nothing after it: write ARG name or name=default"),
        ("FROM a\nRUN", "RUN has no command"),
        ("FROM a\nRUN [1]", "a JSON form has texts only, and 1 is none: put double quotes around it"),
        ('FROM a\nCMD ["\\u0000"]', "NUL"),
        ("FROM a\nRUN <<EOF\nx", "Containerfile:2: the heredoc EOF is not ended: end it with a line that has nothing but EOF"),
        ("FROM a\nRUN --mount=type=cash,target=/a b", "there is no type of mount 'cash': did you mean cache?"),
        ("FROM a\nRUN --mount=tagret=/a b", "--mount has no option tagret: did you mean target?"),
        ("FROM a\nRUN --mount=type=cache b", "the mount of type cache has no target"),
        ("FROM a\nRUN --mount=type=bind,target=/a,size=1 b", "a mount of type bind has no size: write type=tmpfs before it"),
        ("FROM a\nRUN --mount=type=bind,target=/a,mode=1 b", "a mount of type bind has no mode"),
        ("FROM a\nRUN --mount=type=bind,target=/a,sharing=locked b", "a mount of type bind has no sharing"),
        ("FROM a\nRUN --mount=type=cache,target=/a,mode=9 b", "mode of a mount is a number, not '9'"),
        ("FROM a\nRUN --mount=type=cache,target=/a,uid=-1 b", "uid of a mount is a number"),
        ("FROM a\nRUN --mount=type=tmpfs,target=/a,size=big b", "'big' is no size: write it as 512k"),
        ("FROM a\nRUN --mount=type=secret b", "the secret has no name"),
        ("FROM a\nRUN --mount=type=secret,id=a,from=b c", "a secret comes from no stage"),
        ("FROM a\nRUN --mount=target=/a,from=$x b", "from= of a mount has no variables"),
        ("FROM a\nRUN --mount=target b", "the mount option target wants a value"),
        ('FROM a\nRUN --mount=\'target=/a,"b\' c', "cannot be cut at its commas"),
        ("FROM a\nRUN --network=lan b", "write default, none or host"),
        ("FROM a\nRUN --security=none b", "write sandbox or insecure"),
        ("FROM a\nCMD --verbose", "CMD has no flag --verbose: CMD takes no flags, a command that begins with -- is written as JSON"),
        ("FROM a\nSHELL sh -c", 'write SHELL ["sh", "-c"]'),
        ("FROM a\nUSER", "USER has nothing after it"),
        ('FROM a\nVOLUME ["/a", " "]', "VOLUME has an empty path"),
        ("FROM a\nHEALTHCHECK --interval=5s", "HEALTHCHECK has nothing after it"),
        ("FROM a\nHEALTHCHECK CMD", "HEALTHCHECK CMD has no command"),
        ("FROM a\nHEALTHCHECK curl x", "HEALTHCHECK curl is not known: write HEALTHCHECK CMD"),
        ("FROM a\nHEALTHCHECK NONE x", "HEALTHCHECK NONE has a command"),
        ("FROM a\nHEALTHCHECK --interval=5 CMD x", "'5' is no duration: write it as 30s"),
        ("FROM a\nHEALTHCHECK --timeout=1us CMD x", "it is 1ms at least"),
        ("FROM a\nHEALTHCHECK --timeout=-1s CMD x", "it is 1ms at least"),
        ("FROM a\nHEALTHCHECK --interval=999999999999h CMD x", "longer than 292 years"),
        ("FROM a\nHEALTHCHECK --retries=-1 CMD x", "write --retries=3"),
        ("FROM a\nONBUILD", "ONBUILD has nothing after it"),
        ("FROM a\nONBUILD FROM b", "FROM cannot stand in an ONBUILD"),
        ("FROM a\nONBUILD ONBUILD RUN x", "an ONBUILD cannot stand in an ONBUILD"),
        ("FROM a\nONBUILD COPPY x y", 'Containerfile:2: unknown instruction "COPPY": did you mean COPY?'),
        ("# escape=x\nFROM a", "x cannot be the escape character"),
        ("# syntax=a\n# syntax=b\nFROM a", "Containerfile:2: the directive syntax stands there twice"),
        ("FROM a\n\\", "Containerfile:2: the line continues and nothing follows: take the \\ away"),
        (b"FROM a\nENV a=\xff", "Containerfile:2: it is not UTF-8"),
        (b"FROM a\nRUN a\0b", "NUL"),
        (b"FROM a\nRUN <<E\n\xff\nE", "Containerfile:2: it is not UTF-8"),
        ("# check=error=true\nFROM a\nMAINTAINER b", "check=error=true"),
    ],
)
def test_mistakes_are_told_with_what_to_write_instead(text: str | bytes, sentence: str) -> None:
    assert sentence in refused(text)


def test_errors_cross_processes() -> None:
    with pytest.raises(BuildSyntaxError) as caught:
        parse("RUN x", "my/file")
    again = from_parts(to_parts(caught.value))
    assert isinstance(again, BuildSyntaxError) and isinstance(again, InvalidInput)
    assert str(again) == str(caught.value) and str(again).startswith("my/file:1: ")


def test_comments_may_be_of_any_encoding() -> None:
    assert len(parse(b"# caf\xe9\nFROM a\nRUN a \\\n# \xe9\n b\n").instructions) == 2


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("RUN a \\\n\n b", "Containerfile:2: an empty line is within the instruction"),
        ("CMD ['a', 'b']", "CMD resembles JSON and is none"),
        ('CMD [ "a", b ]', "CMD resembles JSON and is none"),
        ("ENV a b", "write ENV a=value"),
        ("MAINTAINER a", "MAINTAINER is deprecated"),
        ("FROM b AS c\nFROM d AS C", "Containerfile:3: an earlier stage is called c too"),
        ("FROM b AS scratch", "scratch is a name with a meaning of its own"),
        ("CMD a\nCMD b", "Containerfile:3: only the last CMD of a stage counts"),
        ("WORKDIR b", "WORKDIR b depends on the image before it"),
        ("ARG API_TOKEN", "ARG API_TOKEN stays in the image for everyone to read"),
    ],
)
def test_warnings(text: str, warning: str) -> None:
    assert any(warning in each for each in parse(f"FROM a\n{text}").warnings)
    assert not parse(f"# check=skip=all\nFROM a\n{text}").warnings


@pytest.mark.parametrize(
    "text", ['RUN [ "$a" = "b" ]', "RUN [ -f x ]", "CMD a\nFROM b\nCMD c", "WORKDIR /a\nWORKDIR b", "ENV PUBLIC_KEY=a", "ENV a=b"]
)
def test_no_warnings_for_what_is_meant(text: str) -> None:
    assert not parse(f"FROM a\n{text}").warnings


def test_one_warning_can_be_skipped() -> None:
    text = "# check=skip=MaintainerDeprecated;error=false\nFROM a\nMAINTAINER b\nENV c d"
    assert len(parse(text).warnings) == 1


def test_parse_one_takes_one_instruction_and_no_directives() -> None:
    place = Location("--change", 1, 1)
    assert one("CMD a # b").original == "CMD a # b"
    with pytest.raises(BuildSyntaxError, match="more than one instruction"):
        parse_one("USER a\nUSER b", place)
    with pytest.raises(BuildSyntaxError, match="--change:1: unknown instruction"):
        parse_one("NOTHING", place)
    with pytest.raises(BuildSyntaxError, match="no instruction"):
        parse_one("# escape=`", place)
