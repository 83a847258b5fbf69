"""How a failure is said: the status and the sentence that Docker's clients know.

They look for words (``No such image``, ``executable file not found``), so some sentences are turned towards Docker's; nothing of ours is left out.
"""

from __future__ import annotations

import msgspec

from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound, Unsupported

_NOT_FOUND_WORDS = "executable file not found in $PATH"
_NOT_EXECUTABLE_WORDS = "permission denied"


class ApiError(Exception):
    """An answer that is no success: a status and the sentence for it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


FAILURES = (ApiError, BulleError, msgspec.MsgspecError)
"""What a handler may raise."""


def not_modified() -> ApiError:
    """What was asked for is so already."""
    return ApiError(304, "")


def described(error: BaseException) -> ApiError:
    """Any failure as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, msgspec.ValidationError):
        return ApiError(400, f"invalid request: {error}")
    if isinstance(error, msgspec.DecodeError):
        return ApiError(400, f"invalid JSON: {error}")
    if isinstance(error, RecursionError):
        return ApiError(400, "invalid JSON: it is nested too deeply")
    if not isinstance(error, BulleError):
        return ApiError(500, f"{type(error).__name__}: {error}")
    return ApiError(error.http_status, sentence(error))


def sentence(error: BulleError) -> str:
    """The error in one sentence, with the words in it by which Docker's clients know it."""
    text = str(error)
    if text.startswith("no such "):
        return f"N{text[1:]}"
    if isinstance(error, CommandNotFound) and _NOT_FOUND_WORDS not in text:
        return f"{text} ({_NOT_FOUND_WORDS})"
    if isinstance(error, CommandNotExecutable) and _NOT_EXECUTABLE_WORDS not in text:
        return f"{text} ({_NOT_EXECUTABLE_WORDS})"
    if isinstance(error, Unsupported):
        return text[0].upper() + text[1:]
    return text


def body(error: ApiError) -> bytes:
    """The document of an error."""
    return msgspec.json.encode({"message": error.message}) + b"\n"
