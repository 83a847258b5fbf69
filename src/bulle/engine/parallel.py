"""Doing the same to several layers at once."""

from __future__ import annotations

from collections.abc import Callable


def each(work: Callable[[int], object], count: int, leave: Callable[[], object], stop: Callable[[], object], at_once: int = 2) -> None:
    """Do the work for every number below ``count``, some at once, each followed by ``leave`` in a thread of its own.

    The first error (also that the user wants no more of it) ends it: what has not begun does not, and ``stop`` tells what has.
    Two at once by default: as many as the smallest machines have processors; more would only wait for the disk.
    """
    if count <= 1:
        for number in range(count):
            work(number)
        return
    import concurrent.futures  # a moment that only transfers need

    def do(number: int) -> None:
        try:
            work(number)
        finally:
            leave()  # else the thread's connection to the database would last until garbage is collected

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(do, number) for number in range(count)]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            stop()
            raise
