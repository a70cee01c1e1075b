"""Floor 0: the exception classes, and nothing else.

Where the standard library has a class for an outcome we raise that class or a child of it, so that code written for
``queue.Queue``, ``multiprocessing.Queue`` or plain files goes on working.  Everything of our own is also a `SageQueueError` and
carries the status of the C library in ``code`` (None where the error did not come from there).

`ray.util.queue` has an `Empty` and a `Full` of its own, which are children of the standard library's.  Where that module is
loaded, `empty()` and `full()` make those, so that code written for Ray's queue catches them, too.  It is never imported here.
"""

from __future__ import annotations

import sys
from queue import Empty, Full

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from typing import TypeVar

    _E = TypeVar("_E", bound=Exception)

__all__ = [
    "Empty",
    "Full",
    "MessageTooLarge",
    "QueueAccessDenied",
    "QueueBusy",
    "QueueClosed",
    "QueueCorrupt",
    "QueueCrowded",
    "QueueExists",
    "QueueInvalid",
    "QueueNoDescriptor",
    "QueueNoDirectory",
    "QueueNoFiles",
    "QueueNoMemory",
    "QueueNoSpace",
    "QueueNotFound",
    "QueueNotLocal",
    "QueueSystemError",
    "QueueVersionError",
    "SageQueueError",
    "ShutDown",
]


def empty(text: str) -> Empty:
    """The Empty to raise: an instance of every Empty that somebody in this process can be waiting for."""
    return _of_ray("Empty", Empty)(text)


def full(text: str, needed: int = 0) -> Full:
    """The Full to raise: an instance of every Full that somebody in this process can be waiting for.  Its message needs so many bytes."""
    error = _of_ray("Full", Full)(text)
    error.__dict__["needed"] = needed
    return error


def _of_ray(name: str, ours: type[_E]) -> type[_E]:
    theirs = getattr(sys.modules.get("ray.util.queue"), name, None)  # None, too, while another thread is importing it
    return theirs if isinstance(theirs, type) and issubclass(theirs, ours) else ours


class SageQueueError(Exception):
    """Something is wrong with a queue.  ``code`` is the C library's status, or None."""

    code: int | None = None


if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(SageQueueError):
        """The queue was shut down: nothing can be put any more, or nothing is left to get."""


class QueueNotFound(SageQueueError, FileNotFoundError):
    """No queue of that name, or the one that was meant is gone."""


class QueueNotLocal(QueueNotFound):
    """The reference leads to a queue in another machine's memory."""


class QueueExists(SageQueueError, FileExistsError):
    """mode="create", and a queue of that name is there already."""


class QueueAccessDenied(SageQueueError, PermissionError):
    """Permission denied, or the file belongs to another user."""


class QueueNoSpace(SageQueueError, OSError):
    """The shared-memory file system is full (errno ENOSPC)."""


class QueueNoDirectory(SageQueueError, OSError):
    """The directory for queues is missing or cannot hold them (errno ENOTDIR)."""


class QueueNoFiles(SageQueueError, OSError):
    """Out of file descriptors (errno EMFILE)."""


class QueueNoDescriptor(SageQueueError, OSError):
    """This process has closed the queue's file descriptor, and the file cannot be opened again (errno EBADF)."""


class QueueSystemError(SageQueueError, OSError):
    """The operating system refused in a way that has no class of its own."""


class QueueNoMemory(SageQueueError, MemoryError):
    """Out of memory or address space in this process."""


class QueueCorrupt(SageQueueError):
    """The file is not a queue, or something wrote over it or truncated it."""


class QueueVersionError(SageQueueError):
    """The queue was made by a library with another layout, or on a machine with another byte order."""


class QueueBusy(SageQueueError):
    """Somebody uses the queue, and the call needs it alone."""


class QueueCrowded(SageQueueError):
    """As many processes as the queue was made for are attached."""


class QueueClosed(SageQueueError, RuntimeError, ValueError):
    """The call was made on a closed handle.  RuntimeError as in SAGE's first queue, ValueError as in multiprocessing."""


class QueueInvalid(SageQueueError, ValueError):
    """An argument makes no sense."""


class MessageTooLarge(SageQueueError, ValueError):
    """The message can never fit into this queue, whatever is taken out first."""
