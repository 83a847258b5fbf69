"""From the text of a Containerfile to its instructions: :func:`parse` a file, :func:`parse_one` a single instruction.

Called by the executor of builds, and for what an image or a flag brings along (ONBUILD, ``commit --change``). Every mistake is a BuildSyntaxError
with file, line and what to write instead; nothing is looked up, neither images nor files. What depends on variables is checked when they are known
(:mod:`bulle.build.expansion`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypedDict

from bulle.build import instructions as known
from bulle.build.advice import advise
from bulle.build.flags import Flags, nearest
from bulle.build.instructions import Containerfile, Heredoc, Instruction, Location
from bulle.build.mounts import MountError, read_mount
from bulle.build.shell_words import WordError
from bulle.build.syntax import HeredocText, SourceText, Statement, parse_heredoc, read, refusal
from bulle.model.quantities import duration_ns

KEYWORDS = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "RUN", "SHELL"),
    *("STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)


def parse(text: bytes | str, name: str = "Containerfile") -> Containerfile:
    """The instructions of a file; ``name`` is what messages call it. Raises BuildSyntaxError."""
    source = read(text, name)
    found = tuple(_instruction(statement) for statement in source.statements)
    _require_stages(found)
    warnings = _advice(source, found)
    return Containerfile(source.directives, found, warnings)


def parse_one(text: str, location: Location) -> Instruction:
    """The one instruction that a text holds, such as an ONBUILD's or that of ``--change``; it takes the location given. Raises BuildSyntaxError."""
    statements = read(text, location.file, first_line=location.line, directives=False).statements
    if len(statements) > 1:
        raise refusal(location, f"there is more than one instruction in {text.splitlines()[0][:60]!r}", "give them one by one")
    return _instruction(statements[0], location)


def _require_stages(found: tuple[Instruction, ...]) -> None:
    for instruction in found:
        if isinstance(instruction, known.From):
            return
        if not isinstance(instruction, known.Arg):
            what = f"{instruction.keyword} stands before the first FROM"
            raise refusal(instruction.location, what, "begin with FROM and an image; only ARG may stand before it")
    raise refusal(found[-1].location, "there is no FROM in the file", "write FROM and an image, or FROM scratch")


def _advice(source: SourceText, found: tuple[Instruction, ...]) -> tuple[str, ...]:
    """The warnings, as the directive ``check`` wants them: without those it skips, or as an error."""
    options = dict(option.strip().partition("=")[::2] for option in source.directives.get("check", "").split(";"))
    skipped = {rule.strip().lower() for rule in options.get("skip", "").split(",")}
    if "all" in skipped:
        return ()
    warnings = [*source.warnings, *advise(source.statements, found)]
    kept = tuple(text for rule, text in warnings if rule.lower() not in skipped)
    if kept and options.get("error", "").lower() == "true":
        place, _, what = kept[0].partition(": ")
        raise refusal(place, what, "the file's directive check=error=true makes this an error")
    return kept


def _instruction(statement: Statement, location: Location | None = None) -> Instruction:
    keyword = statement.keyword.upper() if statement.keyword.isascii() else statement.keyword
    location = location or statement.location
    make = _MAKERS.get(keyword)
    if make is None:
        close = nearest(statement.keyword, KEYWORDS)
        if not statement.keyword:
            raise refusal(location, "the line continues and nothing follows", f"take the {statement.escape} away")
        remedy = f"did you mean {close}?" if close else f"a line begins with one of {', '.join(KEYWORDS)}"
        raise refusal(location, f'unknown instruction "{statement.keyword[:40]}"', remedy)
    return make(_Request(statement, location, keyword))


class _Request:
    """A statement on its way to an instruction, with what all of them need."""

    def __init__(self, statement: Statement, location: Location, keyword: str) -> None:
        self.statement, self.location, self.keyword = statement, location, keyword
        self.words, self.json, self.heredocs = statement.words, statement.json, statement.heredocs
        self.original = statement.line.strip()
        self.escape = statement.escape
        nothing_to_say = keyword == "HEALTHCHECK" and self.words[:1] and self.words[0].upper() == "NONE"
        self.flags = Flags(keyword, () if nothing_to_say else statement.flags, location)

    def refuse(self, what: str, instead: str) -> Exception:
        return refusal(self.location, what, instead)

    def some(self, example: str) -> tuple[str, ...]:
        """The words, of which there must be one."""
        if not self.words:
            raise self.refuse(f"{self.keyword} has nothing after it", f"write {self.keyword} {example}")
        return self.words

    def one(self, example: str) -> str:
        """The whole text, which must not be empty."""
        return self.some(example)[0]

    def duration(self, flag: str) -> int:
        """Nanoseconds of a flag of HEALTHCHECK; 0 where it is not given."""
        text = self.flags.text(flag)
        try:
            value = duration_ns(text) if text else 0
        except ValueError as error:
            raise self.refuse(f"--{flag} of HEALTHCHECK", str(error)) from None
        if value and value < 1_000_000:
            raise self.refuse(f"--{flag} of HEALTHCHECK is {text}", "it is 1ms at least, or 0 for the default")
        return value


def _from(request: _Request) -> Instruction:
    words, name = request.some("and an image, or FROM scratch"), ""
    if len(words) == 3 and words[1].upper() == "AS":
        name = words[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            what = f"{words[2]!r} is no name for a stage"
            raise request.refuse(what, "names begin with a letter and have letters, digits, _ . and -")
    elif len(words) != 1:
        name = f" AS {words[-1]}" if len(words) < 4 else ""
        raise request.refuse("FROM wants an image, or an image and AS name", f"write FROM {words[0]}{name}")
    return known.From(words[0], request.flags.text("platform"), name, **_common(request))


def _arg(request: _Request) -> Instruction:
    pairs = [word.partition("=") for word in request.some("name or name=default")]
    if not all(name for name, _, _ in pairs):
        raise request.refuse("ARG has a value without a name", "write name=value, without a space before the =")
    return known.Arg(tuple((name, value if equals else None) for name, equals, value in pairs), **_common(request))


def _pairs(request: _Request) -> Instruction:
    words = request.some("name=value")
    pairs = tuple(zip(words[::2], words[1::2], strict=True))
    if not all(name for name, _ in pairs):
        raise request.refuse(f"{request.keyword} has a value without a name", "write name=value, without a space before the =")
    return (known.Env if request.keyword == "ENV" else known.Label)(pairs, **_common(request))


def _run(request: _Request) -> Instruction:
    flags = request.flags
    network, security = flags.text("network"), flags.text("security")
    if network not in ("", "default", "none", "host"):
        raise request.refuse(f"--network={network} is not known to RUN", "write default, none or host")
    if security not in ("", "sandbox", "insecure"):
        raise request.refuse(f"--security={security} is not known to RUN", "write sandbox or insecure")
    if not request.words:
        raise request.refuse("RUN has no command", "write what it is to run")
    options = flags.texts("mount")
    try:
        mounts = tuple(read_mount(text) for text in options)
    except MountError as error:
        raise request.refuse(error.what, error.instead) from None
    command = request.words if request.json else (_script(request),)
    return known.Run(
        command,
        not request.json,
        mounts,
        network,
        security,
        tuple(_heredoc(text) for text in request.heredocs),
        flags.texts("device"),
        options,
        **_common(request),
    )


def _script(request: _Request) -> str:
    """What the shell is given: the content of a heredoc that is all there is, or the line with its heredocs after it as they stand."""
    line, heredocs = request.words[0], request.heredocs
    if not heredocs:
        return line
    if _heredoc_name(line) is not None:
        return heredocs[0].content
    return line + "".join(f"\n{heredoc.raw}{heredoc.name}" for heredoc in heredocs)


def _heredoc(text: HeredocText) -> Heredoc:
    return Heredoc(text.name, text.content, text.expand)


def _files(request: _Request) -> Instruction:
    words, flags = request.words, request.flags
    if len(words) < 2:
        what = f"{request.keyword} has a source and no destination" if words else f"{request.keyword} has nothing after it"
        raise request.refuse(what, f"write {request.keyword} {words[0] if words else 'source'} and where to")
    if not request.json and (_heredoc_name(words[-1]) or any(word in ("<<", "<<-") for word in words)):
        what = f"{request.keyword} has its heredoc at the wrong place"
        raise request.refuse(what, f"write {request.keyword} <<EOF /where/to, without a space in <<EOF")
    contents = {heredoc.name: heredoc for heredoc in request.heredocs}
    names = [None if request.json else _heredoc_name(word) for word in words[:-1]]
    sources = tuple(word for word, name in zip(words[:-1], names, strict=True) if name not in contents)
    copy = known.Copy(
        sources,
        words[-1],
        tuple(_heredoc(contents[name]) for name in names if name in contents),
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=bool(flags.switch("link")),
        excludes=flags.texts("exclude"),
        **_common(request),
    )
    if request.keyword == "COPY":
        return replace(copy, from_=_stage(request), parents=bool(flags.switch("parents")))
    return known.Add(
        copy.sources,
        copy.destination,
        copy.heredocs,
        chown=copy.chown,
        chmod=copy.chmod,
        link=copy.link,
        excludes=copy.excludes,
        checksum=flags.text("checksum"),
        keep_git_dir=bool(flags.switch("keep-git-dir")),
        unpack=flags.switch("unpack"),
        **_common(request),
    )


def _heredoc_name(word: str) -> str | None:
    """The name of the heredoc that a word begins; None for other words, also for those that only resemble one."""
    try:
        begin = parse_heredoc(word)
    except WordError:
        return None
    return begin[0] if begin else None


def _stage(request: _Request) -> str:
    name = request.flags.text("from")
    if "$" in name:
        raise request.refuse("--from of COPY has no variables", f"name a stage before it, FROM {name} AS name, and write --from=name")
    return name


def _command(request: _Request) -> Instruction:
    kind = known.Cmd if request.keyword == "CMD" else known.Entrypoint
    return kind(request.words, not request.json and bool(request.words), **_common(request))


def _shell(request: _Request) -> Instruction:
    words = request.some('["/bin/sh", "-c"]')
    if not request.json:
        quoted = ", ".join(f'"{word}"' for word in words[0].split())
        raise request.refuse("SHELL wants its words as JSON", f"write SHELL [{quoted}]")
    return known.Shell(words, **_common(request))


def _healthcheck(request: _Request) -> Instruction:
    kind, *command = request.some("NONE, or HEALTHCHECK CMD and a command")
    flags = request.flags
    if kind.upper() == "NONE":
        if command:
            raise request.refuse("HEALTHCHECK NONE has a command", "write HEALTHCHECK NONE, or HEALTHCHECK CMD and the command")
        return known.Healthcheck(("NONE",), **_common(request))
    if kind.upper() != "CMD":
        raise request.refuse(f"HEALTHCHECK {kind} is not known", "write HEALTHCHECK CMD and a command, its flags before CMD, or HEALTHCHECK NONE")
    if not command:
        raise request.refuse("HEALTHCHECK CMD has no command", "write what finds out whether the container is well")
    retries = flags.text("retries", "0") or "0"
    if not re.fullmatch(r"\+?[0-9]{1,10}", retries) or int(retries) >= 2**31:
        raise request.refuse(f"--retries={retries} of HEALTHCHECK is no number of retries", "write --retries=3")
    return known.Healthcheck(
        ("CMD" if request.json else "CMD-SHELL", *command),
        request.duration("interval"),
        request.duration("timeout"),
        request.duration("start-period"),
        request.duration("start-interval"),
        int(retries),
        **_common(request),
    )


def _onbuild(request: _Request) -> Instruction:
    trigger = request.statement.trigger
    if trigger is None:
        raise request.refuse("ONBUILD has nothing after it", "write an instruction after it, as ONBUILD COPY . /app")
    if trigger.keyword.upper() in ("FROM", "MAINTAINER"):
        raise request.refuse(f"{trigger.keyword} cannot stand in an ONBUILD", "write it as an instruction of its own")
    text = _ONBUILD.sub("", request.original, count=1)
    text += "".join(f"\n{heredoc.raw}{heredoc.name}" for heredoc in request.heredocs)
    # Whoever builds on the image could not mend it; so it is looked at here.
    parse_one(text, request.location)
    return known.Onbuild(text, **_common(request))


def _plain(kind: Callable[..., Instruction], example: str) -> Callable[[_Request], Instruction]:
    return lambda request: kind(request.one(example), **_common(request))


def _expose(request: _Request) -> Instruction:
    return known.Expose(request.some("80"), **_common(request))


def _volume(request: _Request) -> Instruction:
    paths = tuple(word.strip() for word in request.some("/data"))
    if not all(paths):
        raise request.refuse("VOLUME has an empty path", "write VOLUME /data")
    return known.Volume(paths, **_common(request))


_MAKERS: dict[str, Callable[[_Request], Instruction]] = {
    "ADD": _files,
    "ARG": _arg,
    "CMD": _command,
    "COPY": _files,
    "ENTRYPOINT": _command,
    "ENV": _pairs,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _pairs,
    "MAINTAINER": _plain(known.Maintainer, "a name, better LABEL org.opencontainers.image.authors=name"),
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _plain(known.StopSignal, "SIGTERM"),
    "USER": _plain(known.User, "name or name:group"),
    "VOLUME": _volume,
    "WORKDIR": _plain(known.Workdir, "/directory"),
}


class _Common(TypedDict):
    location: Location
    original: str
    escape: str


def _common(request: _Request) -> _Common:
    return {"location": request.location, "original": request.original, "escape": request.escape}
