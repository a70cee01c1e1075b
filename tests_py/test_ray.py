"""Queues and references in real Ray: how they travel, every kind of actor, actors that are killed, and a node that is far away.

Ray runs once for the whole file.  Actors take no CPU of Ray's, so that as many can live as a test wants.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[test]'")

from ray.exceptions import ActorDiedError, RayActorError, RaySystemError  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

import sage_queue  # noqa: E402
from ray_actors import (  # noqa: E402
    SOON,
    Asynchronous,
    Consumer,
    Grouped,
    Job,
    Keeper,
    Producer,
    Survivor,
    Traced,
    Trap,
    Victim,
    journal_of,
    message,
)
from sage_queue import QueueNotFound, QueueNotLocal, SageQueue, SageQueueRef  # noqa: E402
from sage_queue.ray import near, node_of  # noqa: E402

_OBJECT_STORE_BYTES = 100 << 20


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """What Ray's workers inherit, besides the directory for queues: they find ray_actors.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module", autouse=True)
def cluster(environment: None) -> Iterator[dict[str, Any]]:
    """Ray on this machine, with its files in a directory that goes away with it."""
    directory = tempfile.mkdtemp(prefix="ray.", dir="/tmp")  # a short path: Ray makes sockets below it
    context = ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=directory,
    )
    try:
        yield context.address_info
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def far_node(cluster: dict[str, Any], queue_directory: pathlib.Path) -> Iterator[str]:
    """A node of the same cluster with shared memory and a host name of its own, as a container has them.  Its id."""
    apart = ["unshare", "--mount", "--uts"]
    if os.geteuid():
        apart.append("--map-root-user")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this system lets us make no namespaces, and a far node is one")
    script = """
        mount --make-rprivate / && mount -t tmpfs tmpfs "$SAGE_QUEUE_DIR" && hostname far-away &&
        exec "$0" -m ray.scripts.scripts start --address "$1" --num-cpus 1 --object-store-memory "$2" --block
    """
    known = {node["NodeID"] for node in ray.nodes()}
    node = subprocess.Popen(
        [*apart, "sh", "-c", script, sys.executable, cluster["address"], str(_OBJECT_STORE_BYTES)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len([each for each in ray.nodes() if each["Alive"]]) > len(known), "the far node")
        (far,) = {each["NodeID"] for each in ray.nodes()} - known
        yield far
    finally:
        node.terminate()
        node.wait(SOON)


@contextlib.contextmanager
def actors() -> Iterator[Callable[..., Any]]:
    """Start actors, which end afterwards: by themselves, as when Ray drops them, so that they leave their queues properly."""
    started = []

    def start(kind: type, *arguments: Any, **options: Any) -> Any:
        started.append(ray.remote(num_cpus=0, **options)(kind).remote(*arguments))
        return started[-1]

    try:
        yield start
    finally:
        ends = {actor.__ray_terminate__.remote(): actor for actor in started}
        for stuck in ray.wait(list(ends), num_returns=len(ends), timeout=5)[1] if ends else ():
            ray.kill(ends[stuck])


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Start an actor: start(class, *arguments of its constructor, **options of Ray)."""
    with actors() as start:
        yield start


def wait_for(what: Callable[[], Any], description: str) -> Any:
    give_up = time.monotonic() + SOON
    while not (answer := what()):
        assert time.monotonic() < give_up, f"waited in vain for {description}"
        time.sleep(0.01)
    return answer


def kill(actor: Any, pid: int) -> None:
    """ray.kill, and its process is gone."""
    ray.kill(actor)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), f"the end of process {pid}")


def get(*results: Any) -> Any:
    """ray.get that ends."""
    return ray.get(results[0] if len(results) == 1 else list(results), timeout=SOON)


def check_all_of(seen: list[list[tuple[str, int]]], sent: dict[str, int]) -> None:
    """Nothing lost, nothing twice, and each consumer saw each producer's messages in their order."""
    everything = collections.Counter(item for each in seen for item in each)
    assert everything == collections.Counter((producer, n) for producer, count in sent.items() for n in range(count))
    for each in seen:
        for producer in sent:
            numbers = [n for who, n in each if who == producer]
            assert numbers == sorted(numbers)


# ---- how queues travel ----


@pytest.mark.parametrize("what", ["queue", "reference"])
def test_a_task_gets_what_it_is_given_and_returns_it(what: str) -> None:
    @ray.remote(num_cpus=0)
    def through(given: Any) -> Any:
        queue = given.get_queue() if isinstance(given, SageQueueRef) else given
        queue.put(("task", queue.get(timeout=SOON)))
        return given

    with SageQueue[Any]() as queue:
        queue.put("here")
        given = queue if what == "queue" else queue.get_reference()
        back = get(through.remote(given))
        assert type(back) is type(given)
        with back if what == "queue" else back.get_queue() as again:
            assert again.get_reference() == queue.get_reference()
            assert again.get(timeout=SOON) == ("task", "here")


def test_queues_travel_inside_objects_and_through_the_object_store() -> None:
    @ray.remote(num_cpus=0)
    def work(jobs: list[dict[str, Job]]) -> Job:
        job = jobs[0]["job"]
        job.queue.put(job.title)
        with job.more["other"].get_queue() as other:
            other.put(job.title)
        return job

    with SageQueue[str]("first") as first, SageQueue[str]("other") as other:
        job = Job("title", first, {"other": other.get_reference()})
        first_back = get(work.remote([{"job": job}]))
        back = get(work.remote(ray.put([{"job": first_back}])))
        assert [first.get(timeout=SOON), first.get(timeout=SOON)] == ["title", "title"]
        assert [other.get(timeout=SOON), other.get(timeout=SOON)] == ["title", "title"]
        assert back.more == job.more
        for each in (first_back, back):
            each.queue.close()


def test_an_actor_keeps_a_queue_that_its_constructor_got_and_hands_it_on(start: Callable[..., Any]) -> None:
    with SageQueue[int]() as queue:
        keeper = start(Keeper, queue)
        other = start(Keeper, keeper.give.remote())  # from actor to actor, not through here
        get(keeper.put.remote(1), other.put.remote(2))
        assert {get(other.get.remote()), get(keeper.get.remote())} == {1, 2}
        assert queue.empty()


def test_an_actor_makes_a_queue_and_it_outlives_the_actor_as_long_as_another_uses_it(
    start: Callable[..., Any], queue_directory: pathlib.Path, name: str
) -> None:
    keeper = start(Keeper)
    reference = get(keeper.make.remote(name))
    with reference.get_queue() as queue:
        get(keeper.put.remote("from the actor"))
        kill(keeper, get(keeper.pid.remote()))
        assert queue.get(timeout=SOON) == "from the actor"
        assert list(queue_directory.iterdir())
    assert not list(queue_directory.iterdir())


def test_a_queue_put_into_a_queue_arrives_as_itself(start: Callable[..., Any]) -> None:
    with SageQueue[Any]() as outer, SageQueue[Any]() as inner:
        keeper = start(Keeper, outer)
        get(keeper.put.remote({"answer here": inner}))
        with outer.get(timeout=SOON)["answer here"] as received:
            received.put("hello")
            assert inner.get(timeout=SOON) == "hello"


@pytest.mark.parametrize(
    "error",
    [
        sage_queue.Empty("Queue is empty"),
        sage_queue.Full("Queue is full"),
        sage_queue.ShutDown("Queue is shut down"),
        sage_queue.QueueClosed("Queue is closed"),
        sage_queue.QueueNotFound(2, "there is none"),
        sage_queue.QueueNotLocal("on another host"),
        sage_queue.MessageTooLarge("too large"),
        sage_queue.QueueNoSpace(28, "no room"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_in_an_actor_is_the_same_error_to_who_asked_it(error: Exception, keeper: Any) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])):
        get(keeper.raise_it.remote(error))


@pytest.fixture(scope="module")
def keeper() -> Iterator[Any]:
    """An actor for tests that leave it as it was."""
    with actors() as start:
        yield start(Keeper)


def test_a_reference_to_a_queue_that_is_gone_says_so_in_the_actor() -> None:
    @ray.remote(num_cpus=0)
    def attach(reference: SageQueueRef) -> None:
        reference.get_queue()

    with SageQueue[Any]() as queue:
        reference = queue.get_reference()
    with pytest.raises(QueueNotFound, match="there is no queue"):
        get(attach.remote(reference))


# ---- kinds of actors ----


def test_several_producers_and_consumers_of_every_kind_lose_nothing_and_keep_each_producers_order(
    start: Callable[..., Any],
) -> None:
    @ray.remote(num_cpus=0)
    def produce(queue: SageQueue[Any], producer: str, count: int) -> int:
        return Producer().produce(queue, producer, count)

    sent = {"task": 2000, "sync": 2000, "grouped": 2000, "grouped too": 2000, "async": 300}
    with SageQueue[Any](maxsize=100) as queue:
        sync, threaded = start(Consumer, queue), start(Consumer, queue, max_concurrency=3)
        grouped = start(Grouped, queue, concurrency_groups={"putters": 2, "getters": 2})
        asynchronous = start(Asynchronous, queue, max_concurrency=10)
        consumers = [
            sync.consume.remote(),
            *(threaded.consume.remote() for _ in range(3)),
            *(grouped.consume.remote() for _ in range(2)),
            asynchronous.consume.remote(),
            asynchronous.poll.remote(),
        ]
        producers = [
            produce.remote(queue, "task", sent["task"]),
            start(Producer).produce.remote(queue.get_reference(), "sync", sent["sync"]),
            grouped.produce.remote("grouped", sent["grouped"]),
            grouped.produce.remote("grouped too", sent["grouped too"]),
            asynchronous.produce.remote("async", sent["async"]),
        ]
        assert get(*producers) == list(sent.values())
        queue.shutdown()
        check_all_of(get(*consumers), sent)


def test_an_async_actor_answers_while_its_gets_wait(start: Callable[..., Any]) -> None:
    with SageQueue[Any]() as queue:
        actor = start(Asynchronous, queue, max_concurrency=10)
        waiting = [actor.consume.remote(), actor.poll.remote()]
        assert get(*(actor.ping.remote() for _ in range(20))) == ["pong"] * 20
        assert ray.wait(waiting, timeout=0)[0] == []
        queue.put(message("driver", 0))
        queue.shutdown()
        check_all_of(get(*waiting), {"driver": 1})


def test_a_threaded_actor_gets_what_its_own_other_thread_puts(start: Callable[..., Any]) -> None:
    with SageQueue[Any](maxsize=1) as queue:
        actor = start(Keeper, queue, max_concurrency=2)
        waiting = actor.get.remote()
        get(actor.put.remote("from the same actor"))
        assert get(waiting) == "from the same actor"


# ---- killed ----


@pytest.mark.parametrize("threads", [1, 3])
def test_an_actor_killed_while_blocked_in_get_takes_nothing_with_it(
    threads: int, start: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    with SageQueue[Any]() as queue:
        victim = start(Victim, queue, str(tmp_path / "journal"), max_concurrency=threads + 1)
        survivor = start(Survivor, queue)
        pid = get(victim.pid.remote())
        doomed = [victim.get.remote() for _ in range(threads)]
        wait_for(lambda: queue.get_stats()["sleeps"] >= threads, "the victim to sleep")
        first = survivor.get.remote()  # waits behind the victim
        wait_for(lambda: queue.get_stats()["sleeps"] > threads, "the survivor to sleep")
        kill(victim, pid)
        for result in doomed:
            with pytest.raises(ActorDiedError):
                get(result)
        queue.put(-1)
        assert get(first) == -1  # the wake did not go to the dead
        numbers = survivor.numbers.remote()
        for number in range(200):
            queue.put(Traced(number))
        queue.shutdown()
        assert get(numbers) == list(range(200))


@pytest.mark.parametrize("payload_bytes", [10, 100_000], ids=["copied", "in place"])
def test_a_message_that_a_killed_actor_was_decoding_goes_to_another(
    payload_bytes: int, start: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    trap, payload = tmp_path / "trap", os.urandom(payload_bytes)
    with SageQueue[Any]() as queue:
        victim, survivor = start(Victim, queue, str(tmp_path / "journal")), start(Survivor, queue)
        pid = get(victim.pid.remote())
        queue.put(Trap(str(trap), payload))
        queue.put("the next one")
        doomed = victim.get.remote()
        wait_for(lambda: trap.exists() and trap.read_text().endswith("\n"), "the victim to be in the trap")
        assert int(trap.read_text()) == pid
        assert get(survivor.get.remote()) == "the next one"  # also before its death it holds up nobody
        later = survivor.get.remote()  # nothing is there for it until the victim dies
        kill(victim, pid)
        with pytest.raises(RayActorError):
            get(doomed)
        assert get(later).payload == payload
        assert queue.empty()


def test_actors_killed_while_busy_getting_lose_at_most_what_was_in_their_hands(
    start: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    total, journals = 8_000, [tmp_path / "first", tmp_path / "second"]
    with SageQueue[Any](maxsize=50) as queue:
        survivors = [start(Survivor, queue) for _ in range(2)]
        results = [survivor.numbers.remote() for survivor in survivors]
        victims = []
        for journal in journals:
            victim = start(Victim, queue, str(journal))
            victims.append((victim, get(victim.pid.remote()), journal))
            victim.get_for_ever.remote()
        for number in range(total):
            queue.put(Traced(number), timeout=SOON)
            if number % 500 == 0:
                for victim in [each for each in victims if len(journal_of(each[2], "got")) > 200]:
                    ray.kill(victim[0])
                    victims.remove(victim)
        assert not victims, "the victims were never busy"
        queue.shutdown()
        seen = get(*results)
    got = [journal_of(journal, "got") for journal in journals]
    everything = collections.Counter(number for each in [*seen, *got] for number in each)
    assert max(everything.values()) == 1, "a message came twice"
    lost = set(range(total)) - set(everything)
    # What a victim had decoded last and not written down as got: its get may have been complete when it died.
    in_hand = {journal_of(journal, "decoding")[-1] for journal in journals}
    assert lost <= in_hand
    # What came back from the dead came late: at most one from each, which need not have got as far as decoding it.
    late = {number for each in [*seen, *got] for number, most in zip(each, itertools.accumulate(each, max)) if number < most}
    assert len(late) <= len(journals), late


def test_of_a_producer_killed_while_busy_putting_arrives_all_that_it_put_and_no_half_message(
    start: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    journals = [tmp_path / "first", tmp_path / "second"]
    with SageQueue[Any](maxsize=50) as queue:
        results = [start(Survivor, queue).numbers.remote() for _ in range(2)]
        victims = []
        for place, journal in enumerate(journals):
            victim = start(Victim, queue, str(journal))
            victims.append((victim, get(victim.pid.remote()), journal))
            victim.put_for_ever.remote(lambda number, place=place: Traced(number * 2 + place))
        for victim, pid, journal in victims:
            wait_for(lambda: len(journal_of(journal, "put")) > 500, "a busy producer")
            kill(victim, pid)
        queue.put(Traced(-1), timeout=SOON)  # whoever is left goes on
        queue.shutdown()
        seen = get(*results)
    everything = sorted(number for each in seen for number in each)
    assert everything[0] == -1
    for place, journal in enumerate(journals):
        arrived = [number // 2 for number in everything[1:] if number % 2 == place]
        completed = journal_of(journal, "put")
        # It may have died between a put and the line that says so.
        assert arrived in (completed, [*completed, len(completed)])


def test_a_producer_killed_while_blocked_on_a_full_queue_leaves_what_it_had_put(
    start: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    with SageQueue[Any](maxsize=3) as queue:
        victim = start(Victim, queue, str(tmp_path / "journal"))
        pid = get(victim.pid.remote())
        victim.put_for_ever.remote(Traced)
        wait_for(lambda: queue.full() and queue.get_stats()["sleeps"], "the victim to sleep")
        kill(victim, pid)
        assert [queue.get(timeout=SOON).number for _ in range(3)] == [0, 1, 2]
        assert queue.empty()
        queue.put("there is room")
        assert queue.get(timeout=SOON) == "there is room"


def test_a_dropped_actor_that_is_the_last_to_leave_removes_the_queue(
    queue_directory: pathlib.Path, name: str
) -> None:
    keeper = ray.remote(num_cpus=0)(Keeper).remote()
    get(keeper.make.remote(name))
    assert list(queue_directory.iterdir())
    del keeper  # Ray ends an actor that nobody has a handle on
    wait_for(lambda: not list(queue_directory.iterdir()), "the queue to go")


@pytest.mark.parametrize("cleaner", ["the next user", "the collector"])
def test_a_killed_actor_that_was_the_last_leaves_a_queue_that_somebody_removes(
    cleaner: str, start: Callable[..., Any], queue_directory: pathlib.Path, name: str
) -> None:
    keeper = start(Keeper)
    get(keeper.make.remote(name))
    kill(keeper, get(keeper.pid.remote()))
    assert list(queue_directory.iterdir())  # nobody was there to remove it
    if cleaner == "the next user":
        with pytest.raises(QueueNotFound, match="there is no queue"):  # nobody was attached and nothing was in it: it is gone
            SageQueue[Any](name, mode="open")
    else:
        assert sage_queue.collect_garbage() == 1
    assert not list(queue_directory.iterdir())


# ---- the seed, and the example ----

SEED_ACTOR = """
@ray.remote
class ProcessorActor:
    def process(self, queue_ref: SageQueueRef):
        queue = queue_ref.get_queue()  # 从引用重建队列
        # 处理逻辑...
"""

SEED_INTEGRATION = """
import ray
from sage.utils.mmap_queue import SageQueue

# 主进程创建队列
queue = SageQueue("actor_queue")
ref = queue.get_reference()

# 传递给Actor
producer.produce.remote(ref)
consumer.consume.remote(ref)
"""


def test_the_seeds_processor_actor_runs_as_it_stands_and_with_its_logic_filled_in() -> None:
    import sage.utils.mmap_queue as seed

    names: dict[str, Any] = {"ray": ray, "SageQueueRef": seed.SageQueueRef}
    exec(SEED_ACTOR, names)
    as_it_stands = names["ProcessorActor"].remote()
    exec(SEED_ACTOR.replace("# 处理逻辑...", 'item = queue.get(); queue.put({"processed": item}); return item'), names)
    filled_in = names["ProcessorActor"].remote()
    with seed.SageQueue("processor_queue") as queue:
        assert get(as_it_stands.process.remote(queue.get_reference())) is None
        queue.put({"data": [1, 2, 3], "meta": "SAGE"})
        assert get(filled_in.process.remote(queue.get_reference())) == {"data": [1, 2, 3], "meta": "SAGE"}
        assert queue.get(timeout=SOON) == {"processed": {"data": [1, 2, 3], "meta": "SAGE"}}


def test_the_seeds_ray_integration_runs_verbatim() -> None:
    @ray.remote(num_cpus=0)
    class Sender:
        def produce(self, ref: Any) -> None:
            queue = ref.get_queue()
            for number in range(100):
                queue.put({"number": number})

    @ray.remote(num_cpus=0)
    class Receiver:
        def __init__(self) -> None:
            self.items: list[Any] = []

        def consume(self, ref: Any) -> None:
            queue = ref.get_queue()
            self.items = [queue.get(timeout=60) for _ in range(100)]

        def consumed(self) -> list[Any]:
            return self.items

    names: dict[str, Any] = {"producer": Sender.remote(), "consumer": Receiver.remote()}
    exec(SEED_INTEGRATION, names)
    with names["queue"] as queue:
        assert get(names["consumer"].consumed.remote()) == [{"number": number} for number in range(100)]
        assert queue.empty()


def test_the_example_of_a_pipeline_runs(cluster: dict[str, Any]) -> None:
    example = pathlib.Path(__file__).parent.parent / "examples" / "python" / "ray_pipeline.py"
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "RAY_ADDRESS": cluster["address"]},  # this Ray, instead of starting one more
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10000 lines read, ") and ", 10000 collected: " in done.stdout


# ---- nodes ----


def test_near_puts_an_actor_on_the_queues_node(start: Callable[..., Any]) -> None:
    here = ray.get_runtime_context().get_node_id()
    with SageQueue[Any]() as queue:
        assert node_of(queue) == node_of(queue.get_reference()) == here
        keeper = start(Keeper, queue, **near(queue))
        get(keeper.put.remote("near"))
        assert queue.get(timeout=SOON) == "near"


def test_no_node_is_near_a_queue_that_is_gone_or_on_a_host_outside_the_cluster() -> None:
    with SageQueue[Any]() as queue:
        reference = queue.get_reference()
    with pytest.raises(QueueNotFound, match="there is no queue"):
        near(reference)
    elsewhere = SageQueueRef.from_dict({**reference.to_dict(), "host": "nowhere"})
    with pytest.raises(QueueNotLocal, match="'nowhere'"):
        near(elsewhere)


def test_on_a_far_node_a_queue_is_not_local_and_the_error_names_both_hosts(far_node: str) -> None:
    @ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(far_node, soft=False))
    def attach(reference: SageQueueRef) -> None:
        reference.get_queue()

    with SageQueue[Any]() as queue:
        with pytest.raises(QueueNotLocal, match=rf"host '{os.uname().nodename}'.*this is 'far-away'"):
            get(attach.remote(queue.get_reference()))


def test_a_queue_as_an_argument_on_a_far_node_is_an_error_that_says_so(far_node: str) -> None:
    @ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(far_node, soft=False))
    def take(queue: SageQueue[Any]) -> None:
        pass

    with SageQueue[Any]() as queue:
        with pytest.raises(RaySystemError, match="QueueNotLocal.*this is 'far-away'"):  # Ray's own class, with our words in it
            get(take.remote(queue))


def test_a_far_task_that_only_hands_a_reference_on_places_its_actor_near_the_queue(far_node: str) -> None:
    @ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(far_node, soft=False))
    def send(reference: SageQueueRef) -> str:
        keeper = ray.remote(num_cpus=0)(Producer).options(**near(reference)).remote()
        ray.get(keeper.produce.remote(reference, "near", 3))
        return ray.get_runtime_context().get_node_id()

    with SageQueue[Any]() as queue:
        assert get(send.remote(queue.get_reference())) == far_node
        assert [queue.get(timeout=SOON) for _ in range(3)] == [message("near", number) for number in range(3)]
