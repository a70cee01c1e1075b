"""Leases: a message that is worked on comes back if the work fails or the worker dies, and is gone only when it was acknowledged."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest
from helpers import SOON, Run, clean

import sage_queue
from sage_queue import Empty, SageQueue, SageQueueError, _native, open_queue


def counts(q: SageQueue[Any]) -> tuple[int, int, int]:
    stats = q.get_stats()
    return stats["items"], stats["leased"], stats["unfinished"]


ITEMS = {"small": "job", "in the ring": b"x" * 30_000, "in the arena": b"x" * 300_000}
every_size = pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)


# ---- ack and nack ----


@every_size
def test_leaving_the_with_acknowledges_and_marks_the_task_as_done(item: Any) -> None:
    with SageQueue[Any]() as q:
        q.put(item)
        with q.lease() as message:
            assert (message.value, message.attempts) == (item, 1)
            assert counts(q) == (0, 1, 1)
        assert counts(q) == (0, 0, 0)
        assert message.value == item  # an object of its own
        q.join()
        with pytest.raises(Empty):
            q.get_nowait()
        assert clean(q)


@every_size
def test_an_exception_gives_the_message_back_before_younger_ones(item: Any) -> None:
    with SageQueue[Any]() as q:
        q.put(item)
        q.put("younger")
        for attempt in (1, 2, 3):
            with pytest.raises(ZeroDivisionError), q.lease() as message:
                assert (message.value, message.attempts) == (item, attempt)
                1 / 0
            assert counts(q) == (2, 0, 2)
            with pytest.raises(ValueError, match="given back"):
                message.value
        with pytest.raises(KeyboardInterrupt), q.lease():
            raise KeyboardInterrupt
        with q.lease() as message:
            assert (message.value, message.attempts) == (item, 5)
        assert q.get() == "younger"
        assert clean(q)


def test_ack_and_nack_by_hand_end_a_lease_once() -> None:
    with SageQueue[str]() as q:
        q.put("job")
        message = q.lease()
        message.nack()
        for call in (message.ack, message.nack):
            with pytest.raises(ValueError, match="the lease has ended"):
                call()
        message = q.lease()
        assert message.attempts == 2
        message.ack()
        for call in (message.ack, message.nack):
            with pytest.raises(ValueError, match="the lease has ended"):
                call()
        assert message.value == "job"
        assert counts(q) == (0, 0, 0)


def test_a_lease_that_was_ended_by_hand_is_not_ended_again_by_leaving_the_with() -> None:
    with SageQueue[int]() as q:
        q.put(1)
        with q.lease() as message:
            message.nack()
        assert counts(q) == (1, 0, 1)
        with pytest.raises(ZeroDivisionError), q.lease() as message:
            message.ack()
            1 / 0
        assert counts(q) == (0, 0, 0)


def test_a_lease_that_is_dropped_gives_back() -> None:
    with SageQueue[int]() as q:
        q.put(1)
        message = q.lease()
        assert counts(q) == (0, 1, 1)
        assert "attempt 1, held" in repr(message)
        del message
        gc.collect()
        assert counts(q) == (1, 0, 1)
        with q.lease() as again:
            assert again.attempts == 2
        assert "ended" in repr(again)


def test_closing_the_queue_gives_leases_back_and_their_end_says_so(name: str) -> None:
    with SageQueue[int](name) as other:
        q = SageQueue[int](name)
        for number in range(3):
            q.put(number)
        one, two, three = q.lease(), q.lease(), q.lease()
        q.close()
        assert counts(other) == (3, 0, 3)
        with pytest.raises(sage_queue.QueueClosed):
            one.ack()
        two.nack()
        with pytest.raises(sage_queue.QueueClosed), three:
            pass
        assert [other.get() for _ in range(3)] == [0, 1, 2]


def test_a_lease_keeps_its_queue_open() -> None:
    q = SageQueue[int]()
    q.put(1)
    message = q.lease()
    del q
    gc.collect()
    assert message.value == 1
    message.ack()


def test_a_lease_can_be_ended_in_another_thread() -> None:
    with SageQueue[int]() as q:
        for number in range(100):
            q.put(number)
        leases = [q.lease() for _ in range(100)]
        threads = [threading.Thread(target=lambda part=part: [each.ack() for each in part]) for part in (leases[:50], leases[50:])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts(q) == (0, 0, 0)
        assert clean(q)


def test_waiting_polling_and_shutdown_work_as_for_get() -> None:
    with SageQueue[int]() as q:
        with pytest.raises(Empty, match="^Queue is empty$"):
            q.lease(False)
        with pytest.raises(Empty, match="^Get operation timed out$"):
            q.lease(timeout=0.02)
        with pytest.raises(ValueError, match="non-negative"):
            q.lease(timeout=-1)
        timer = threading.Timer(0.05, q.put, (1,))
        timer.start()
        message = q.lease(timeout=SOON)
        timer.join()
        q.shutdown()
        message.nack()
        with q.lease() as message:
            assert message.value == 1
        with pytest.raises(sage_queue.ShutDown):
            q.lease()
    with pytest.raises(sage_queue.QueueClosed):
        q.lease()


# ---- views ----


def test_a_lease_with_views_keeps_its_memory_for_them_after_the_end() -> None:
    numpy = pytest.importorskip("numpy")
    with SageQueue[Any]() as q:
        q.put(numpy.full(300_000, 5, "u1"))
        with q.lease(copy=False) as message:
            view = message.value
            assert not view.flags.writeable
            assert q.get_stats()["leased"] == 1
        assert (q.get_stats()["leased"], q.get_stats()["held"]) == (0, 1)
        del message
        assert (view == 5).all() and q.get_stats()["held"] == 1
        del view
        assert clean(q)


def test_what_a_writable_view_has_written_is_there_at_the_next_attempt() -> None:
    numpy = pytest.importorskip("numpy")
    with SageQueue[Any]() as q:
        q.put(numpy.zeros(300_000, "u1"))
        for attempt in (1, 2, 3):
            with pytest.raises(ZeroDivisionError), q.lease(copy=False, writable=True) as message:
                assert (message.value == attempt - 1).all()
                message.value[:] = attempt
                1 / 0
            del message
            gc.collect()
        assert (q.get() == 3).all()
        assert clean(q)


def test_a_view_of_a_message_that_was_given_back_and_taken_by_another_does_not_crash(name: str) -> None:
    numpy = pytest.importorskip("numpy")
    q = SageQueue[Any](name)
    q.put(numpy.full(300_000, 5, "u1"))
    message = q.lease(copy=False)
    view = message.value
    message.nack()
    assert (q.get() == 5).all()
    q.close()
    view.sum()


# ---- death ----


def _hold(name: str, count: int, ready: Any) -> None:
    q = open_queue(name)
    kept = [q.lease() for _ in range(count)]
    ready.put([message.value for message in kept])
    time.sleep(SOON)


def test_what_a_killed_process_had_leased_comes_to_others_with_the_attempts_counted(name: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    with SageQueue[Any](name) as q, SageQueue[Any]() as ready:
        items = [b"x" * size for size in (10, 5_000, 30_000, 100_000, 1_000_000)]
        for item in items:
            q.put(item)
        for attempt in range(1, 4):
            worker = spawn.Process(target=_hold, args=(name, 5, ready))
            worker.start()
            assert sorted(map(len, ready.get(timeout=SOON))) == [10, 5_000, 30_000, 100_000, 1_000_000]
            with pytest.raises(Empty):
                q.lease(False)
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        messages = [q.lease(timeout=SOON) for _ in range(5)]
        assert sorted(len(message.value) for message in messages) == [10, 5_000, 30_000, 100_000, 1_000_000]
        assert {message.attempts for message in messages} == {4}
        for message in messages:
            message.ack()
        assert clean(q)
        q.join()


def test_a_stopped_process_keeps_its_leases(name: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    with SageQueue[Any](name) as q, SageQueue[Any]() as ready:
        q.put("job")
        worker = spawn.Process(target=_hold, args=(name, 1, ready))
        worker.start()
        assert ready.get(timeout=SOON) == ["job"]
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(Empty):
            q.lease(timeout=0.5)
        os.kill(worker.pid, signal.SIGKILL)
        with q.lease(timeout=SOON) as message:
            assert (message.value, message.attempts) == ("job", 2)
        worker.join()


def test_a_forked_child_cannot_end_its_parents_lease_and_dropping_it_there_changes_nothing() -> None:
    fork = multiprocessing.get_context("fork")

    def child(answers: SageQueue[Any]) -> None:
        nonlocal message
        assert message is not None
        try:
            message.ack()
        except ValueError as error:
            answers.put(str(error))
        message = None
        gc.collect()
        answers.put(q.qsize())

    with SageQueue[Any]() as q, SageQueue[Any]() as answers:
        q.put(1)
        message = q.lease()
        process = fork.Process(target=child, args=(answers,))
        process.start()
        process.join(SOON)
        assert answers.get(timeout=SOON) == "this message belongs to the process that took it, and that is another one"
        assert answers.get(timeout=SOON) == 0
        assert counts(q) == (0, 1, 1)
        message.ack()
        assert counts(q) == (0, 0, 0)


def test_a_lease_that_is_interrupted_before_the_program_has_it_goes_back(name: str) -> None:
    class Alarm(Exception):
        pass

    def alarm(number: int, frame: Any) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with SageQueue[int](name) as q:
            q.put(1)
            interrupted = 0
            for attempt in range(300):
                try:
                    # Again and again, for what a callback of the garbage collector raises is lost.
                    signal.setitimer(signal.ITIMER_REAL, 0.00005 + 0.000001 * attempt, 0.01)
                    while True:
                        q.lease().nack()
                except Alarm:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    interrupted += 1
            gc.collect()
            assert interrupted == 300
            assert counts(q) == (1, 0, 1)
            assert q.get() == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- holding ----


def test_leases_are_held_while_the_ring_turns_over_many_times() -> None:
    with SageQueue[Any](capacity=65536) as q:
        for number in range(100):
            q.put(("held", number))
        leases = [q.lease() for _ in range(100)]
        for number in range(20_000):
            q.put(("passing", number, "x" * (number % 200)))
            assert q.get()[1] == number
        assert [message.value for message in leases] == [("held", number) for number in range(100)]
        assert q.get_stats()["leased"] == 100
        for message in leases[::2]:
            message.ack()
        for message in leases[1::2]:
            message.nack()
        assert sorted(q.get()[1] for _ in range(50)) == list(range(1, 100, 2))
        assert clean(q)


def test_a_lease_without_room_in_the_arena_stays_in_the_ring_and_works_the_same() -> None:
    with SageQueue[Any](capacity=65536, arena=0) as q:
        for attempt in (1, 2):
            q.put("job")
            message = q.lease()
            assert (message.value, message.attempts) == ("job", 1)
            message.nack()
            with q.lease(copy=False) as again:
                assert (again.value, again.attempts) == ("job", 2)
        assert q.empty()


def test_join_waits_for_leased_work() -> None:
    with SageQueue[int]() as q:
        q.put(1)
        message = q.lease()
        joined = threading.Event()
        thread = threading.Thread(target=lambda: (q.join(), joined.set()))
        thread.start()
        assert not joined.wait(0.3)
        message.nack()
        assert not joined.wait(0.3)
        q.lease().ack()
        assert joined.wait(SOON)
        thread.join()


# ---- messages that cannot be decoded ----


def _explode() -> None:
    raise RuntimeError("boom")


class Explosive:
    def __reduce__(self) -> Any:
        return _explode, ()


def test_a_message_that_cannot_be_decoded_is_consumed_and_done() -> None:
    with SageQueue[Any]() as q:
        q.put(Explosive())
        q.put("after")
        with pytest.raises(ValueError, match="^Failed to deserialize item: boom$"):
            q.lease()
        assert counts(q) == (1, 0, 1)
        with q.lease() as message:
            assert message.value == "after"
        q.join()
        assert clean(q)


# ---- max_attempts ----


def letters(name: str) -> list[Any]:
    with open_queue(name) as dead:
        return [dead.get_nowait() for _ in range(dead.qsize())]


@every_size
def test_a_message_that_has_had_its_attempts_goes_to_the_dead_letter_queue(name: str, item: Any) -> None:
    with SageQueue[Any](name, max_attempts=3, dead_letter=f"{name}-dead") as q:
        assert (q.max_attempts, q.dead_letter) == (3, f"{name}-dead")
        q.put(item)
        q.put("after")
        for attempt in (1, 2, 3):
            with pytest.raises(ZeroDivisionError), q.lease() as message:
                assert (message.value, message.attempts) == (item, attempt)
                1 / 0
        with q.lease() as message:
            assert (message.value, message.attempts) == ("after", 1)
        with pytest.raises(Empty):
            q.lease(False)
        q.join()  # the dead letter is done with here
        assert clean(q)
    assert letters(f"{name}-dead") == [item]


def test_a_message_whose_getters_die_or_fail_is_moved_by_get_too(name: str, run_python: Run) -> None:
    code = """
import os, signal, sys
from sage_queue import SageQueue
class Deadly:
    def __reduce__(self):
        return exec, ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",)
q = SageQueue(sys.argv[1])
if sys.argv[2] == "put":
    q.put(Deadly())
else:
    print(q.get(timeout=20))
"""
    with SageQueue[Any](name, max_attempts=2, dead_letter=f"{name}-dead") as q:
        run_python(code, name, "put")
        q.put("after")
        for _ in range(2):
            assert run_python(code, name, "get", check=False).returncode == -signal.SIGKILL
        assert run_python(code, name, "get").stdout == "after\n"
        assert q.empty()
    with open_queue(f"{name}-dead") as dead:
        assert dead.qsize() == 1
        dead.destroy()


def test_a_message_that_cannot_be_decoded_has_its_attempts_and_arrives_in_the_dead_letters_byte_for_byte(name: str) -> None:
    with SageQueue[Any](name, max_attempts=3, dead_letter=f"{name}-dead") as q:
        q.put(("content", Explosive()))
        q.put("after")
        for call in (q.get, q.lease, lambda: q.get(copy=False)):
            with pytest.raises(ValueError, match="^Failed to deserialize item: boom$"):
                call()
        assert q.get() == "after"
    with open_queue(f"{name}-dead") as dead:
        ffi, lib = _native.ffi, _native.lib
        size, buffer = ffi.new("size_t *"), ffi.new("char[]", 10_000)
        assert lib.ringbuf_get(dead._handle, size, buffer, 10_000, 0) == 0
        assert bytes(ffi.buffer(buffer, size[0])) == pickle.dumps(("content", Explosive()), 5)


def test_every_opener_has_the_bound_and_may_name_the_same_but_no_other(name: str) -> None:
    wanted: dict[str, Any] = {"max_attempts": 2, "dead_letter": "dead"}
    with SageQueue[Any](name, namespace="n", **wanted) as q:
        for again in (open_queue(f"n/{name}"), q.get_reference().get_queue(), pickle.loads(pickle.dumps(q))):
            with again:
                assert (again.max_attempts, again.dead_letter) == (2, "n/dead")
        with SageQueue[Any](name, namespace="n", **wanted) as same:
            assert same.max_attempts == 2
        for other in ({"max_attempts": 3, "dead_letter": "dead"}, {"max_attempts": 2, "dead_letter": "other"}):
            with pytest.raises(ValueError, match=r"was made with max_attempts=2, dead_letter='n/dead'; .* not max_attempts="):
                SageQueue(name, namespace="n", **other)  # type: ignore[arg-type]
        assert q.get_stats()["participants"] == 1
    with SageQueue[Any](name) as q, pytest.raises(ValueError, match="was made with max_attempts=0, dead_letter=None; "):
        SageQueue(name, **wanted)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_attempts": 3}, ValueError, "needs dead_letter"),
        ({"dead_letter": "dead"}, ValueError, "max_attempts=0 must be from 1"),
        ({"max_attempts": -1, "dead_letter": "dead"}, ValueError, "must be from 1"),
        ({"max_attempts": 65535, "dead_letter": "dead"}, ValueError, "must be from 1 to 65534"),
        ({"max_attempts": 1.5, "dead_letter": "dead"}, TypeError, "max_attempts must be an int"),
        ({"max_attempts": 1, "dead_letter": ""}, ValueError, "cannot be empty"),
        ({"max_attempts": 1, "dead_letter": "me"}, ValueError, "is the queue itself"),
        ({"max_attempts": 1, "dead_letter": "x" * 480}, ValueError, "too long"),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SageQueue("me", **options)


def test_a_message_stays_where_it_is_while_the_dead_letter_queue_cannot_take_it(name: str) -> None:
    with SageQueue[Any](name, max_attempts=1, dead_letter=f"{name}-dead") as q:
        with SageQueue[Any](f"{name}-dead", maxsize=1) as dead:
            dead.put("full")
            q.put("job")
            q.lease().nack()
            for call in (q.get, q.lease):
                with pytest.raises(SageQueueError, match=f"handed out . times in vain, .* '{name}-dead': it is full; it stays") as caught:
                    call()
                assert isinstance(caught.value.__cause__, sage_queue.Full)
                assert q.qsize() == 1
            assert dead.get() == "full"
            with pytest.raises(Empty):
                q.get_nowait()
            assert dead.get() == "job"
        with SageQueue[Any](f"{name}-dead", serializer="raw"):
            q.put("job")
            q.lease().nack()
            with pytest.raises(SageQueueError, match="was made with serializer='raw', not 'pickle'"):
                q.get()
            assert q.qsize() == 1
        with SageQueue[Any](f"{name}-dead") as dead:
            dead.shutdown()
            with pytest.raises(SageQueueError, match="Queue is shut down; it stays") as caught:
                q.get()
            assert isinstance(caught.value.__cause__, sage_queue.ShutDown)
            assert q.qsize() == 1
        q.destroy()


def test_the_dead_letter_queue_is_made_like_the_queue_itself(name: str) -> None:
    options: dict[str, Any] = {"capacity": "64 KiB", "arena": "1 MiB", "serializer": "raw", "permissions": 0o660}
    with SageQueue[Any](name, max_attempts=1, dead_letter=f"{name}-dead", **options) as q:
        q.put(b"job")
        q.lease().nack()
        with pytest.raises(Empty):
            q.get_nowait()
        with open_queue(f"{name}-dead", serializer="raw", permissions=0o660) as dead:
            assert (dead.capacity, dead.arena, dead.max_attempts) == (q.capacity, q.arena, 0)
            assert dead.get_reference().permissions == 0o660
            assert dead.get() == b"job"


def test_a_note_that_another_program_made_means_nothing(name: str) -> None:
    for note in ("hello", "{}", '{"max_attempts": -1, "dead_letter": "x"}', '{"max_attempts": 3}', "{nonsense", "[1]", '{"max_attempts": null, "dead_letter": 1}'):
        handle = _native.create(
            name, mode="fresh", maxsize=0, capacity=4096, arena=0, auto_cleanup=False, persistent=False, permissions=0o600,
            label=None, tag="pickle", note=note,
        )
        with open_queue(name) as q:
            assert (q.max_attempts, q.dead_letter) == (0, None)
        _native.close(handle)


# ---- everything at once ----


def _work(name: str, done: SageQueue[Any], seed: int) -> None:
    import random

    chance = random.Random(seed)
    q = open_queue(name)
    while True:
        try:
            with q.lease(timeout=SOON) as message:
                if chance.random() < 0.1:
                    raise RuntimeError("failed")
                number, content = message.value
                assert content == bytes([number % 256]) * (100 * 3 ** (number % 9))
                if chance.random() < 0.05:
                    os.kill(os.getpid(), signal.SIGKILL)
                done.put(number)
        except RuntimeError:
            pass
        except sage_queue.ShutDown:
            return


def test_workers_that_die_and_fail_at_random_do_every_job(name: str) -> None:
    """A job may be done twice (a worker dies between doing and acknowledging); none is lost, and in the end nothing is left over."""
    fork = multiprocessing.get_context("fork")
    jobs = 400
    with SageQueue[Any](name, arena="16 MiB") as q, SageQueue[Any]() as done:

        def put_all() -> None:
            for number in range(jobs):
                q.put((number, bytes([number % 256]) * (100 * 3 ** (number % 9))))

        def hire(seed: int) -> Any:
            worker = fork.Process(target=_work, args=(name, done, seed))
            worker.start()
            return worker

        workers = [hire(seed) for seed in range(3)]
        producer = threading.Thread(target=put_all)
        producer.start()
        hired = len(workers)
        while producer.is_alive() or q.get_stats()["unfinished"]:
            for index, worker in enumerate(workers):
                if not worker.is_alive():
                    assert worker.exitcode == -signal.SIGKILL
                    workers[index] = hire(hired)
                    hired += 1
            time.sleep(0.005)
        producer.join()
        q.shutdown()
        for worker in workers:
            worker.join()
        assert hired > 3
        seen = [done.get() for _ in range(done.qsize())]
        assert sorted(set(seen)) == list(range(jobs))
        q.join()
        stats = q.get_stats()
        assert (stats["items"], stats["leased"], stats["held"], stats["unfinished"]) == (0, 0, 0, 0)
        assert clean(q)
