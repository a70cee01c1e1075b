"""The CPU time of a process that is blocked in get() on an empty queue."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from .peers import CONTEXT, Peer


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _block(peer: Peer, sender: Connection) -> None:
    peer.put("warm up")
    peer.get()
    start_s, start_cpu_s = time.monotonic(), _cpu_s()
    peer.get()
    sender.send({"idle_cpu_percent": (_cpu_s() - start_cpu_s) / (time.monotonic() - start_s) * 100})
    peer.close()


def measure(new_peer: Callable[[], Peer], seconds: float) -> dict[str, float]:
    peer = new_peer()
    receiver, sender = CONTEXT.Pipe(duplex=False)
    blocked = CONTEXT.Process(target=_block, args=(peer, sender))
    blocked.start()
    time.sleep(seconds)
    peer.put("enough")
    figures: dict[str, float] = receiver.recv()
    blocked.join()
    peer.close()
    return figures
