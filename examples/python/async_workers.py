"""A service in asyncio that hands its computing to worker processes: thousands of requests wait at once, and no thread does.

    pip install .
    python examples/python/async_workers.py [REQUESTS]

Each request is a task.  It puts its question into a queue, waits for its answer, and gives up on it after a while, as clients do.
Workers are plain processes that lease questions and put answers.  A task in the service reads the answers and hands each to who
asked.  One worker is killed (kill -9) on the way: what it had leased goes to another one, so nobody notices.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from multiprocessing import get_context

from sage_queue import SageQueue, ShutDown

WORKERS, IMPATIENT = 3, 0.1  # one request in ten does not wait for its answer


def work(questions: SageQueue, answers: SageQueue) -> None:
    while True:
        try:
            with questions.lease() as message:  # leaving acknowledges; if we die, another one gets it
                number, limit = message.value
                answers.put((number, sum(value * value for value in range(limit))))
        except ShutDown:
            return


class Service:
    def __init__(self, questions: SageQueue, answers: SageQueue) -> None:
        self.questions = questions
        self.answers = answers
        self.numbers = itertools.count()
        self.asked: dict[int, asyncio.Future[int]] = {}

    async def ask(self, limit: int) -> int:
        """The sum of the squares below `limit`, from one of the workers."""
        number = next(self.numbers)
        answer = self.asked[number] = asyncio.get_running_loop().create_future()
        try:
            await self.questions.put_async((number, limit))  # waits while the workers have enough to do
            return await answer
        finally:
            del self.asked[number]

    async def read_answers(self) -> None:
        async for number, result in self.answers:
            if (answer := self.asked.get(number)) and not answer.done():  # else nobody waits for it any more
                answer.set_result(result)


async def client(service: Service, limit: int) -> bool:
    impatient = random.random() < IMPATIENT
    try:
        result = await asyncio.wait_for(service.ask(limit), 0.02 if impatient else None)
    except asyncio.TimeoutError:
        return False
    assert result == (limit - 1) * limit * (2 * limit - 1) // 6
    return True


async def serve(service: Service, requests: int, victim) -> int:
    reader = asyncio.ensure_future(service.read_answers())
    clients = [asyncio.ensure_future(client(service, 1 + number % 500)) for number in range(requests)]
    await clients[requests // 4]
    victim.kill()
    answered = sum(await asyncio.gather(*clients))
    service.questions.shutdown()
    service.answers.shutdown()
    await reader
    return answered


def main(requests: int = 5000) -> None:
    context = get_context("spawn" if sys.platform == "darwin" else "fork")
    with SageQueue(maxsize=100) as questions, SageQueue() as answers:
        workers = [context.Process(target=work, args=(questions, answers)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        answered = asyncio.run(serve(Service(questions, answers), requests, workers[0]))
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers[1:]] == [0] * (WORKERS - 1)
    print(f"{requests} requests, {answered} answered, {requests - answered} given up, one worker killed")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
