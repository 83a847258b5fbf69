"""Between a request and a job: a body that goes to it, bytes that come from it, its words as a stream of documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from bulle.api import failures
from bulle.api.call import JSON, Call
from bulle.api.jobs import Job

Headers = Sequence[tuple[str, str]]


def _none(_found: Any) -> Headers:
    return ()


async def stream_out(call: Call, job: Job, content_type: str, headers: Callable[[Any], Headers] = _none) -> None:
    """Answer with the bytes that a job writes; its first word says that they come, and what the headers are made of."""
    words = job.words()
    first = await anext(words, None)
    await call.begin(content_type, headers=headers(first))
    while data := await job.read():
        await call.write(data)
    async for _word in words:  # an error in the middle breaks the answer off
        pass
    await call.finish()


async def feed(job: Job, call: Call) -> Any:
    """Give a job the body of the request, and wait for its result."""
    done = asyncio.ensure_future(job.done())
    feeding = asyncio.ensure_future(job.feed(call.chunks()))
    try:
        await asyncio.wait([done, feeding], return_when=asyncio.FIRST_EXCEPTION)
        if not done.done():
            await feeding  # raises why the body did not come whole
        return await done
    finally:
        for task in (done, feeding):
            task.cancel()


def _fed_meanwhile(call: Call, job: Job) -> asyncio.Task[None]:
    """Give a job the body while its words are shown. A body that does not come whole ends the request: the job would wait for ever."""
    mine, feeding = asyncio.current_task(), asyncio.ensure_future(job.feed(call.chunks()))

    def look(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and done.exception() is not None and mine is not None:
            mine.cancel()

    feeding.add_done_callback(look)
    return feeding


async def show_words(call: Call, job: Job, *, fed: bool = False, at_end: Callable[[Any], Sequence[object]] = lambda _result: ()) -> None:
    """Answer with what a job says, a document each, as it is said; an error is the last of them, as Docker's clients know it.

    With ``fed`` it is given the body of the request. ``at_end`` makes the last documents of its result.
    """
    feeding = _fed_meanwhile(call, job) if fed else None
    try:
        if feeding is None:
            await call.begin(JSON)
        async for word in job.words():
            if not call.begun:
                await call.begin(JSON)
            await call.write_document(word)
        for document in at_end(job.result):
            if not call.begun:
                await call.begin(JSON)
            await call.write_document(document)
        if not call.begun:
            await call.begin(JSON)
    except failures.FAILURES as error:
        if not call.begun:
            raise
        said = failures.described(error)
        await call.write_document({"errorDetail": {"message": said.message}, "error": said.message})
    finally:
        if feeding is not None:
            feeding.cancel()
    await call.finish()
