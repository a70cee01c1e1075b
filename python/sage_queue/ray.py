"""Floor 3: what Ray needs to know about queues.  The only file that imports ray.

A queue or a reference goes through Ray as it is: as an argument, a return value, inside an object, in an actor's state.  But a queue
is memory of one node, and an actor on another one gets QueueNotLocal.  What is here places actors where the queue is.

Which node that is is decided by attaching to the queue there, so by the id in its memory; host names only say whom to ask.
"""

from __future__ import annotations

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ._errors import QueueNotFound, QueueNotLocal, SageQueueError
from ._queue import SageQueue, SageQueueRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["near", "node_of"]


def near(queue: SageQueue[Any] | SageQueueRef) -> dict[str, Any]:
    """Options that place an actor or a task on the queue's node: `Worker.options(**near(ref)).remote(ref)`.

    If that node dies, so does the queue: the actor is not placed elsewhere.  Raises what node_of() raises.
    """
    return _on(node_of(queue))


def node_of(queue: SageQueue[Any] | SageQueueRef) -> str:
    """The id of the Ray node whose memory the queue is in.  Blocks while the nodes with the host name of the queue's are asked.

    Raises QueueNotFound if the queue is gone, QueueNotLocal if no node alive has its host name.
    """
    reference = queue.get_reference() if isinstance(queue, SageQueue) else queue
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    asked: dict[Any, str] = {
        _ask.options(**_on(node["NodeID"])).remote(reference): node["NodeID"]
        for node in nodes
        if node["Alive"] and node["NodeManagerHostname"] == reference.host
    }
    missing: QueueNotFound | None = None
    while asked:
        (answer,), _ = ray.wait(list(asked))
        node = asked.pop(answer)
        try:
            missing = ray.get(answer)
        except RayTaskError:
            raise
        except RayError:
            continue  # the node went away instead of answering
        if missing is None:
            return node
    raise missing or QueueNotLocal(
        f"queue {reference.name!r} lives on host {reference.host!r}, and no node of this Ray cluster that is alive has that name"
    )


def _on(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


@ray.remote(num_cpus=0)
def _ask(reference: SageQueueRef) -> QueueNotFound | None:
    """Whether the queue is in this node's memory: None if it is."""
    try:
        reference.get_queue().close()
    except QueueNotFound as error:
        return error
    except SageQueueError:
        pass  # it is here, and whoever comes to use it will be told what is wrong with it
    return None
