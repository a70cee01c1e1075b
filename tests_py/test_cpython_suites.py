"""CPython's own tests of its queues, run against SageQueue as they stand in the running interpreter's installation.

Nothing of them is copied: the classes below inherit the tests and say which queue they are about.  From `test.test_queue`: the
tests of `Queue`, of `SimpleQueue`, and of a `Queue` whose hooks fail; on 3.13 they include shutdown's.  From
`test._test_multiprocessing`: those of `Queue` and `JoinableQueue`, with threads and with processes of every start method, and
those of `SimpleQueue`.

What cannot hold is in `DEVIATIONS`, with the reason, and in the table of docs/guarantees.md; the tests at the end see to it that
the two agree, and that nothing else is left out.
"""

from __future__ import annotations

import collections
import importlib
import inspect
import multiprocessing
import pathlib
import re
import sys
import types
import unittest
import unittest.mock
from collections.abc import Iterator
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue

pytest.importorskip("test.test_queue", reason="this Python was installed without its own tests")

# Any: the standard library's tests have no types.
upstream_queue: Any = importlib.import_module("test.test_queue")
upstream_multiprocessing: Any = importlib.import_module("test._test_multiprocessing")

NO_FEEDER = "there is no feeder thread: put() serializes in the caller, and raises there"
NOT_OSERROR = "every call on a closed queue, used or not, raises QueueClosed: a RuntimeError and a ValueError, and no OSError"

#: Upstream class and test, and why SageQueue does not do what it asks for.
DEVIATIONS = {
    "FailingQueueTest.test_failing_queue": "there are no hooks _put and _get to override: the items are in shared memory",
    "BaseSimpleQueueTest.test_references": "items are serialized, so what comes out is never the object that went in",
    "CSimpleQueueTest.test_reentrancy": "a finalizer's put in the middle of a put comes before it: serializing makes objects",
    "_TestQueue.test_queue_feeder_donot_stop_onexc": NO_FEEDER,
    "_TestQueue.test_queue_feeder_on_queue_feeder_error": NO_FEEDER,
    "_TestQueue.test_closed_queue_empty_exceptions": NOT_OSERROR,
    "TestSimpleQueue.test_empty_exceptions": NOT_OSERROR,
    "TestSimpleQueue.test_closed": "there is no pipe whose two ends could be looked at",
}

#: Deviations that the tests of older interpreters need not ask about.
SINCE = {"_TestQueue.test_closed_queue_empty_exceptions": (3, 13), "TestSimpleQueue.test_empty_exceptions": (3, 13)}

#: Upstream classes about queues that are not about ours.
NOT_OURS = {
    "LifoQueueTest": "a stack; SageQueue is first in, first out",
    "PyLifoQueueTest": "a stack; SageQueue is first in, first out",
    "CLifoQueueTest": "a stack; SageQueue is first in, first out",
    "PriorityQueueTest": "a heap; SageQueue is first in, first out",
    "PyPriorityQueueTest": "a heap; SageQueue is first in, first out",
    "CPriorityQueueTest": "a heap; SageQueue is first in, first out",
    "PyQueueTest": "QueueTest, bound to the standard library's queue in Python",
    "CQueueTest": "QueueTest, bound to the standard library's queue with its part in C",
    "PyFailingQueueTest": "FailingQueueTest, bound to the standard library's queue in Python",
    "CFailingQueueTest": "FailingQueueTest, bound to the standard library's queue with its part in C",
    "PySimpleQueueTest": "BaseSimpleQueueTest, bound to the standard library's simple queue in Python",
}


made: list[SageQueue[Any]] = []  # by the test that runs


def make(maxsize: int = 0) -> SageQueue[Any]:
    made.append(SageQueue(maxsize=maxsize))
    return made[-1]


class Queue(SageQueue[Any]):
    """SageQueue with the name and the one argument that the tests know queue.Queue by."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize=maxsize)
        made.append(self)


def close_all() -> None:
    while made:
        made.pop().close()


#: In place of the module `queue`.
ours = types.SimpleNamespace(
    Queue=Queue, SimpleQueue=make, Empty=sage_queue.Empty, Full=sage_queue.Full, ShutDown=sage_queue.ShutDown
)

#: (class, test) -> "passed", "skipped: why" or "failed"
outcomes: dict[tuple[str, str], str] = {}


def origin(case: type, test: str) -> str:
    """The upstream class that a test is written in, and its name: the keys of DEVIATIONS."""
    (owner,) = [base.__name__ for base in case.__mro__ if test in vars(base)][-1:]
    return f"{owner}.{test}"


class _Watched:
    """A unittest result that writes down what became of the test."""

    def __init__(self, result: Any, key: tuple[str, str]) -> None:
        self._result, self._key = result, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)

    def addSuccess(self, test: Any) -> None:
        outcomes[self._key] = "passed"
        self._result.addSuccess(test)

    def addSkip(self, test: Any, reason: str) -> None:
        outcomes[self._key] = f"skipped: {reason}"
        self._result.addSkip(test, reason)


class Suite:
    """What the classes below have in common: deviations are skipped by name, and outcomes are counted."""

    _testMethodName: str

    def setUp(self) -> None:
        reason = DEVIATIONS.get(origin(type(self), self._testMethodName))
        if reason is not None:
            raise unittest.SkipTest(reason)
        self.addCleanup(close_all)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]

    def run(self, result: Any = None) -> Any:
        key = (type(self).__name__, self._testMethodName)
        outcomes[key] = "failed"
        return super().run(_Watched(result, key))  # type: ignore[misc]


# ---- from test_queue.py ----


class TestQueue(Suite, upstream_queue.QueueTest, unittest.TestCase):  # type: ignore[misc]
    queue = ours


class TestFailingQueue(Suite, upstream_queue.FailingQueueTest, unittest.TestCase):  # type: ignore[misc]
    queue = ours


class TestSimpleQueue(Suite, upstream_queue.CSimpleQueueTest):  # type: ignore[misc]
    queue = ours


# ---- from _test_multiprocessing.py ----


class _Multiprocessing(Suite):
    """Where a test asks multiprocessing itself for a queue, it gets ours, too."""

    Queue = staticmethod(make)
    JoinableQueue = staticmethod(make)
    start_method: str | None = None

    def setUp(self) -> None:
        replaced = unittest.mock.patch.multiple(multiprocessing, Queue=make, JoinableQueue=make, SimpleQueue=make)
        replaced.start()
        self.addCleanup(replaced.stop)  # type: ignore[attr-defined]
        if self.start_method is not None:
            before = multiprocessing.get_start_method(allow_none=True)
            multiprocessing.set_start_method(self.start_method, force=True)
            self.addCleanup(multiprocessing.set_start_method, before, force=True)  # type: ignore[attr-defined]
        super().setUp()


OfQueues: Any = upstream_multiprocessing._TestQueue
InThreads: Any = upstream_multiprocessing.ThreadsMixin
InProcesses: Any = upstream_multiprocessing.ProcessesMixin


class TestQueueOfThreads(_Multiprocessing, OfQueues, InThreads, unittest.TestCase):  # type: ignore[misc]
    pass


class TestQueueOfForkedProcesses(_Multiprocessing, OfQueues, InProcesses, unittest.TestCase):  # type: ignore[misc]
    start_method = "fork"


class TestQueueOfSpawnedProcesses(_Multiprocessing, OfQueues, InProcesses, unittest.TestCase):  # type: ignore[misc]
    start_method = "spawn"


class TestQueueOfServedProcesses(_Multiprocessing, OfQueues, InProcesses, unittest.TestCase):  # type: ignore[misc]
    start_method = "forkserver"


class TestSimpleQueueOfForkedProcesses(_Multiprocessing, upstream_multiprocessing.TestSimpleQueue):  # type: ignore[misc]
    start_method = "fork"


class TestSimpleQueueOfSpawnedProcesses(_Multiprocessing, upstream_multiprocessing.TestSimpleQueue):  # type: ignore[misc]
    start_method = "spawn"


class TestSimpleQueueOfServedProcesses(_Multiprocessing, upstream_multiprocessing.TestSimpleQueue):  # type: ignore[misc]
    start_method = "forkserver"


SUITES: list[Any] = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Suite) and issubclass(value, unittest.TestCase)
]


# ---- that nothing is left out, and that the document says the same ----


def names_in(suite: Any) -> list[str]:
    return list(unittest.TestLoader().getTestCaseNames(suite))


def upstream_classes() -> Iterator[type]:
    """Every class of the two files that has to do with queues and has tests of its own."""
    for module in (upstream_queue, upstream_multiprocessing):
        for name, value in vars(module).items():
            about = isinstance(value, type) and value.__module__ == module.__name__ and "Queue" in name
            if about and any(test.startswith("test") for test in dir(value)):
                yield value


def test_every_upstream_class_about_queues_runs_or_is_named_as_not_ours() -> None:
    inherited = {base.__name__ for suite in SUITES for base in suite.__mro__}
    classes = {each.__name__ for each in upstream_classes()}
    assert classes and classes == {name for name in classes if name in inherited or name in NOT_OURS}
    assert set(NOT_OURS) <= classes and not set(NOT_OURS) & inherited


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__)
def test_every_upstream_test_is_inherited_as_it_stands(suite: Any) -> None:
    assert names_in(suite)
    for test in names_in(suite):
        module = inspect.unwrap(getattr(suite, test)).__module__
        assert module in (upstream_queue.__name__, upstream_multiprocessing.__name__), f"{test} is of {module}"


def test_every_deviation_is_from_an_upstream_test() -> None:
    asked = {origin(suite, test) for suite in SUITES for test in names_in(suite)}
    assert set(DEVIATIONS) - asked <= {key for key, since in SINCE.items() if sys.version_info < since}


def test_the_deviations_are_those_in_the_guarantees() -> None:
    text = (pathlib.Path(__file__).parent.parent / "docs" / "guarantees.md").read_text(encoding="utf-8")
    section = text.split("## Where SageQueue differs", 1)[1]
    rows = [row for row in section.splitlines() if row.startswith("| ") and not row.startswith("| Theirs")]
    named = [name for row in rows for name in re.findall(r"`(\w+\.test_\w+)`", row)]
    assert sorted(named) == sorted(DEVIATIONS)
    left_out = {name for row in rows for name in re.findall(r"`(\w+QueueTest)`", row)}
    assert left_out == {"LifoQueueTest", "PriorityQueueTest"} <= set(NOT_OURS)


def test_all_that_ran_passed_or_was_skipped_for_a_reason_that_is_named(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    selected = {
        (item.cls.__name__, item.name)
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.cls in SUITES and item.cls is not None
    }
    if not selected:
        pytest.skip("none of the standard library's tests were selected")
    assert selected <= set(outcomes), "a test was selected and did not run"
    by_name = {suite.__name__: suite for suite in SUITES}
    passed = {key for key in selected if outcomes[key] == "passed"}
    skipped = {key for key in selected if outcomes[key] == f"skipped: {DEVIATIONS.get(origin(by_name[key[0]], key[1]))}"}
    assert passed | skipped == selected, {key: outcomes[key] for key in selected - passed - skipped}
    assert passed
    counts = collections.Counter(origin(by_name[case], test) for case, test in skipped)
    with capsys.disabled():
        print(f"\nCPython's own queue tests: {len(selected)} selected, {len(passed)} passed, {len(skipped)} skipped")
        for deviation, times in sorted(counts.items()):
            print(f"  {times} x {deviation}: {DEVIATIONS[deviation]}")
