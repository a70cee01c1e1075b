"""How a typed program uses the package.  Not run: test_typing.py has mypy and pyright check it."""

from __future__ import annotations

from collections.abc import Awaitable

from typing_extensions import assert_type

import sage_queue
from sage_queue import Lease, SageQueue, SageQueueRef


class Job:
    number: int = 0


def plain(jobs: SageQueue[Job]) -> None:
    jobs.put(Job())
    jobs.put(Job(), timeout=1.0)
    jobs.put("no job")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(jobs.get(), Job)
    assert_type(jobs.get(timeout=0.5, copy=False), Job)
    assert_type(jobs.get_nowait().number, int)
    assert_type(jobs.get_reference(), SageQueueRef)
    jobs.get(True, None, False)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with jobs.lease() as message:
        assert_type(message, Lease[Job])
        assert_type(message.value, Job)


def batches(jobs: SageQueue[Job]) -> None:
    jobs.put_many([Job(), Job()])
    jobs.put_many(Job() for _ in range(3))
    jobs.put_many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    assert_type(jobs.get_many(10), list[Job])
    assert_type(jobs.drain(), list[Job])
    for job in jobs:
        assert_type(job, Job)


async def coroutines(jobs: SageQueue[Job]) -> None:
    await jobs.put_async(Job())
    assert_type(await jobs.get_async(), Job)
    assert_type(await jobs.get_many_async(5), list[Job])
    async for job in jobs:
        assert_type(job, Job)
    waiting: Awaitable[None] = jobs.join_async()
    await waiting


def made() -> None:
    queue: SageQueue[bytes] = SageQueue("name", 10, serializer="raw", capacity="1 MiB")
    assert_type(queue.get(), bytes)
    SageQueue("name", mode="reopen")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    reference: SageQueueRef = queue.get_reference()
    again: SageQueue[bytes] = reference.get_queue()
    sage_queue.wait([queue, again], timeout=0)
    try:
        queue.get_nowait()
    except (sage_queue.Empty, sage_queue.ShutDown):
        pass
