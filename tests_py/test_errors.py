"""Every way to be wrong: the class, the text, and that nothing was changed by it."""

from __future__ import annotations

import errno
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue, SageQueueError, _native

OUR_ERRORS = [
    value
    for value in vars(sage_queue).values()
    if isinstance(value, type) and issubclass(value, BaseException) and value.__module__.startswith("sage_queue")
]


# ---- the family ----


@pytest.mark.parametrize("error", OUR_ERRORS, ids=lambda error: error.__name__)
def test_every_error_of_ours_is_a_sage_queue_error_with_a_code(error: type[SageQueueError]) -> None:
    assert issubclass(error, SageQueueError)
    assert error("text").code is None


@pytest.mark.parametrize("error", OUR_ERRORS, ids=lambda error: error.__name__)
def test_every_error_of_ours_survives_a_trip_to_another_process(error: type[SageQueueError]) -> None:
    original = error(errno.EIO, "text") if issubclass(error, OSError) else error("text")
    original.code = 7
    copy = pickle.loads(pickle.dumps(original))
    assert (type(copy), str(copy), copy.code) == (error, str(original), 7)


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        (sage_queue.QueueNotFound, (FileNotFoundError,)),
        (sage_queue.QueueNotLocal, (sage_queue.QueueNotFound,)),
        (sage_queue.QueueExists, (FileExistsError,)),
        (sage_queue.QueueAccessDenied, (PermissionError,)),
        (sage_queue.QueueNoSpace, (OSError,)),
        (sage_queue.QueueClosed, (RuntimeError, ValueError)),
        (sage_queue.MessageTooLarge, (ValueError,)),
        (sage_queue.QueueInvalid, (ValueError,)),
        (sage_queue.QueueNoMemory, (MemoryError,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_error_is_also_what_the_standard_library_would_raise(error: type, parents: tuple[type, ...]) -> None:
    assert all(issubclass(error, parent) for parent in parents)


# ---- full and empty ----


def test_the_texts_of_empty_and_full_say_which_kind_of_wait_it_was() -> None:
    with SageQueue[int](maxsize=1) as q:
        with pytest.raises(sage_queue.Empty, match="^Queue is empty$"):
            q.get_nowait()
        with pytest.raises(sage_queue.Empty, match="^Get operation timed out$"):
            q.get(timeout=0.01)
        q.put(1)
        with pytest.raises(sage_queue.Full, match="^Queue is full$"):
            q.put_nowait(2)
        with pytest.raises(sage_queue.Full, match="^Put operation timed out$"):
            q.put(2, timeout=0.01)


# ---- arguments ----


@pytest.mark.parametrize("maxsize", [-1, -(10**30)])
def test_a_negative_maxsize_is_a_value_error(maxsize: int) -> None:
    with pytest.raises(ValueError, match=r"maxsize=-1\d* is negative; .* 0 for as many as fit"):
        SageQueue(maxsize=maxsize)


@pytest.mark.parametrize("maxsize", [1.5, "10", None, [], True])
def test_a_maxsize_that_is_no_int_is_a_type_error(maxsize: Any) -> None:
    with pytest.raises(TypeError, match="maxsize must be an int"):
        SageQueue(maxsize=maxsize)


@pytest.mark.parametrize("maxsize", [10**6, 1 << 62, 1 << 64, 10**30])
def test_a_maxsize_beyond_what_fits_is_fine(maxsize: int) -> None:
    with SageQueue[int](maxsize=maxsize) as q:
        q.put(1)
        assert not q.full()
        assert q.get() == 1


@pytest.mark.parametrize("capacity", [0, -1, -(10**30), (64 << 30) + 1, 1 << 64, 10**30, "65 GiB", "0 B"])
def test_a_capacity_out_of_range_is_a_value_error(capacity: Any) -> None:
    with pytest.raises(ValueError, match="between 1 byte and 64 GiB"):
        SageQueue(capacity=capacity)


@pytest.mark.parametrize("capacity", ["", "4 XB", "MiB", "four MiB", "-4 MiB", "nan MiB", "inf", "4 MiB 3"])
def test_a_capacity_in_words_that_make_no_sense_is_a_value_error(capacity: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write .* '4 MiB'"):
        SageQueue(capacity=capacity)


@pytest.mark.parametrize("capacity", [1.5, None, b"4 MiB", False])
def test_a_capacity_of_another_type_is_a_type_error(capacity: Any) -> None:
    with pytest.raises(TypeError, match="capacity must be an int"):
        SageQueue(capacity=capacity)


@pytest.mark.parametrize("capacity", [1, 10, 4095, "1 B", "5 kB"])
def test_a_tiny_capacity_is_rounded_up_to_one_that_works(capacity: Any) -> None:
    with SageQueue[str](capacity=capacity) as q:
        assert q.capacity >= 4096
        q.put("a")
        assert q.get() == "a"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "append"}, "mode='append' is not known; choose one of"),
        ({"serializer": "json"}, "serializer='json' is not known; choose one of 'pickle', 'raw'"),
        ({"serializer": None}, "serializer=None is not known"),
        ({"permissions": 0o1777}, "permissions=0o1777 is not a file mode"),
        ({"permissions": -1}, "is not a file mode"),
        ({"mode": "open"}, "without a name"),
        ({"namespace": "job"}, "without a name"),
        ({"auto_cleanup": True, "persistent": True}, "choose one"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_value_error(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SageQueue(**options)


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ("", ValueError, "cannot be empty"),
        ("a\0b", ValueError, "zero character"),
        ("\ud800", ValueError, "cannot be written as UTF-8"),
        ("x" * 1025, ValueError, "1025 bytes long as UTF-8; 1024 is the most"),
        ("ü" * 513, ValueError, "1026 bytes long"),
        (b"bytes", TypeError, "is a str, not bytes"),
        (7, TypeError, "is a str, not int"),
    ],
)
def test_a_name_that_cannot_be_is_refused_wherever_it_is_given(bad: Any, error: type[Exception], text: str) -> None:
    for call in (SageQueue, sage_queue.create_queue, sage_queue.open_queue, sage_queue.destroy_queue):
        with pytest.raises(error, match=text):
            call(bad)
    with pytest.raises(error):
        SageQueue("name", namespace=bad)


# ---- items ----


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("I stay here")


@pytest.mark.parametrize("item", [lambda: None, Unpicklable(), (i for i in ())], ids=["lambda", "raises", "generator"])
def test_an_item_that_cannot_be_pickled_is_a_value_error_and_nothing_is_put(item: Any) -> None:
    with SageQueue[Any]() as q:
        q.put("before")
        with pytest.raises(ValueError, match="^Failed to serialize item: .+") as caught:
            q.put(item)
        assert caught.value.__cause__ is not None
        q.put("after")
        assert (q.qsize(), q.get_stats()["puts"]) == (2, 2)
        assert [q.get(), q.get()] == ["before", "after"]


def test_an_item_that_pickles_endlessly_is_a_value_error() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with SageQueue[Any]() as q:
        with pytest.raises(ValueError, match="^Failed to serialize item: .*recursion"):
            q.put(nested)
        assert q.empty()


def _explode(text: str) -> None:
    raise RuntimeError(text)


class Explosive:
    def __reduce__(self) -> Any:
        return _explode, ("boom",)


@pytest.mark.parametrize("padding", [b"", b"x" * 100_000], ids=["copied", "in place"])
def test_an_item_that_cannot_be_unpickled_is_a_value_error_once(padding: bytes) -> None:
    with SageQueue[Any]() as q:
        q.put((padding, Explosive()))
        q.put("after")
        with pytest.raises(ValueError, match="^Failed to deserialize item: boom$") as caught:
            q.get()
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert q.get() == "after"
        assert q.empty()
        q.task_done()
        q.task_done()
        q.join()


def test_a_message_that_is_no_pickle_is_a_value_error(name: str) -> None:
    with SageQueue[Any](name) as q:
        for garbage in (b"", b"\0", b"no pickle", b"\x80\x05.", b"\x80\x63"):
            q.put("good")
            assert q.get() == "good"
            assert _native.put_bytes(q._handle, garbage) == 0
            with pytest.raises(ValueError, match="^Failed to deserialize item: "):
                q.get()
        assert q.empty()


def test_a_message_that_can_never_fit_is_refused_at_once_with_both_sizes(name: str) -> None:
    with SageQueue[bytes](name, capacity=65536, arena="1 MiB", serializer="raw") as q:
        most = q.arena
        q.put(b"x" * most)
        text = rf"{most + 1} bytes, .* queue '{name}' .* {most} bytes; .* a larger arena"
        with pytest.raises(sage_queue.MessageTooLarge, match=text):
            q.put(b"x" * (most + 1))  # and does not wait for room, though it may
        assert q.get() == b"x" * most
    with SageQueue[bytes](name, capacity=65536, arena=0, serializer="raw") as q:
        q.put(b"x" * 32768)
        text = rf"32769 bytes, .* queue '{name}' .* 32768 bytes; .* an arena, or a larger capacity"
        with pytest.raises(sage_queue.MessageTooLarge, match=text):
            q.put(b"x" * 32769)
        assert q.get() == b"x" * 32768


@pytest.mark.parametrize("item", ["text", 7, None, [b"a"]])
def test_a_raw_queue_takes_bytes_only(item: Any) -> None:
    with SageQueue[Any](serializer="raw") as q:
        with pytest.raises(ValueError, match='^Failed to serialize item: serializer="raw" takes bytes'):
            q.put(item)
        assert q.empty()


# ---- what is there, what is not ----


def test_opening_what_is_not_there_says_where_it_looked(name: str, queue_directory: pathlib.Path) -> None:
    for call in (lambda: SageQueue(name, mode="open"), lambda: sage_queue.open_queue(name)):
        with pytest.raises(sage_queue.QueueNotFound, match=f"there is no queue '{name}' in {queue_directory}") as caught:
            call()
        assert caught.value.errno == errno.ENOENT
        assert caught.value.code is not None


def test_creating_what_is_there_is_refused(name: str) -> None:
    with SageQueue[int](name) as q:
        q.put(1)
        with pytest.raises(sage_queue.QueueExists, match=f"queue '{name}' exists") as caught:
            SageQueue(name, mode="create")
        assert caught.value.errno == errno.EEXIST
        assert q.get() == 1


def test_replacing_what_is_in_use_is_refused(name: str) -> None:
    with SageQueue[int](name) as q:
        q.put(1)
        with pytest.raises(sage_queue.QueueBusy, match=f"queue '{name}' .* in use"):
            SageQueue(name, mode="fresh")
        assert q.get() == 1


def test_another_serializer_is_refused_by_name(name: str) -> None:
    with SageQueue[int](name) as q:
        with pytest.raises(ValueError, match=f"queue '{name}' was made with serializer='pickle'; .* not 'raw'"):
            SageQueue(name, serializer="raw")
        with pytest.raises(ValueError, match="was made with"):
            sage_queue.open_queue(name, serializer="raw")
        assert q.get_stats()["participants"] == 1
    with SageQueue[bytes](name, serializer="raw"), pytest.raises(ValueError, match="serializer='raw'; .* not 'pickle'"):
        SageQueue(name)


# ---- damaged and foreign files ----


@pytest.fixture
def file(name: str, queue_directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file of this test's queue, which a test may damage."""
    path = queue_directory / f"ringbuf.{name}"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def content(name: str, file: pathlib.Path) -> bytes:
    """What a healthy queue's file holds."""
    with SageQueue[int](name) as q:
        q.put(1)
        content = file.read_bytes()
        q.get()
    assert not file.exists()
    return content


def _refused(name: str, file: pathlib.Path, error: type[Exception]) -> None:
    """Every way in is refused, nothing hangs or crashes; removing it, or replacing it, makes the name usable again."""
    content = file.read_bytes()
    for mode in ("open", "open_or_create", "create"):
        with pytest.raises(error) as caught:
            SageQueue(name, mode=mode)  # type: ignore[arg-type]
        assert name in str(caught.value)
    assert sage_queue.list_queues() == []
    assert file.read_bytes() == content
    assert sage_queue.destroy_queue(name)
    assert not file.exists()
    file.write_bytes(content)
    with SageQueue[int](name, mode="fresh") as q:
        q.put(1)
        assert q.get() == 1


@pytest.mark.parametrize("size", [0, 1, 7, 100, 4095, 4096, 8192, 100_000])
@pytest.mark.parametrize("what", ["cut", "zeroed", "random"])
def test_a_file_that_is_no_queue_is_refused(name: str, file: pathlib.Path, content: bytes, size: int, what: str) -> None:
    file.write_bytes({"cut": content[:size], "zeroed": bytes(size), "random": os.urandom(size)}[what])
    _refused(name, file, sage_queue.QueueCorrupt)


@pytest.mark.parametrize("offset", [12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 100, 140, 200])
def test_a_header_with_one_wrong_bit_is_refused(name: str, file: pathlib.Path, content: bytes, offset: int) -> None:
    damaged = bytearray(content)
    damaged[offset] ^= 1
    file.write_bytes(damaged)
    _refused(name, file, sage_queue.QueueCorrupt)


@pytest.mark.parametrize("what", ["layout", "byte order"])
def test_a_queue_of_another_layout_is_refused_as_such(name: str, file: pathlib.Path, content: bytes, what: str) -> None:
    other = content[:8] + (99).to_bytes(4, "little") + content[12:] if what == "layout" else content[:8][::-1] + content[8:]
    file.write_bytes(other)
    with pytest.raises(sage_queue.QueueVersionError, match="another version .* this one reads layout"):
        SageQueue(name)
    _refused(name, file, sage_queue.QueueVersionError)


def test_a_symbolic_link_is_not_followed(name: str, file: pathlib.Path) -> None:
    with SageQueue[int](name + "-target"):
        file.symlink_to(file.with_name(file.name + "-target"))
        with pytest.raises(sage_queue.QueueAccessDenied):
            SageQueue(name)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_what_is_no_plain_file_is_refused(name: str, file: pathlib.Path, make: Callable[[Any], None]) -> None:
    make(file)
    try:
        with pytest.raises(SageQueueError):
            SageQueue(name)
    finally:
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_name_that_another_user_owns_is_refused(name: str, file: pathlib.Path) -> None:
    with SageQueue[int](name) as q:
        os.chown(file, 65534, -1)
        with pytest.raises(sage_queue.QueueAccessDenied, match=f"queue '{name}' .* belongs to another user") as caught:
            SageQueue(name)
        assert caught.value.errno == errno.EACCES
        os.chown(file, os.geteuid(), -1)
        q.put(1)
        with SageQueue[int](name) as again:
            assert again.get() == 1


@pytest.mark.parametrize(("permissions", "expected"), [(0o600, 0o600), (0o660, 0o660), (0o666, 0o666)])
def test_the_file_has_the_permissions_asked_for(name: str, file: pathlib.Path, permissions: int, expected: int) -> None:
    mask = os.umask(0)
    try:
        with SageQueue[int](name, permissions=permissions):
            assert file.stat().st_mode & 0o777 == expected
    finally:
        os.umask(mask)


SCRIBBLE = """
import os, random, sys
from sage_queue import SageQueue, SageQueueError, Empty, Full, ShutDown
name, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
q = SageQueue(name, capacity=8192)
for number in range(20):
    q.put(number)
with open(os.path.join(os.environ["SAGE_QUEUE_DIR"], "ringbuf." + name), "r+b") as file:
    size = os.fstat(file.fileno()).st_size
    for _ in range(200):
        file.seek(random.choice([random.randrange(2048, 4096), random.randrange(2048, size)]))
        file.write(random.randbytes(8))
for _ in range(200):
    try:
        q.put(b"x" * random.randrange(3000), timeout=0.001) if random.random() < 0.5 else q.get(timeout=0.001)
    except (SageQueueError, ValueError, Empty, Full, ShutDown):  # whatever the scribbling has made of it
        pass
print("alive")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("seed", range(10))
def test_scribbling_over_a_queue_in_use_gives_errors_and_no_crash(
    name: str, file: pathlib.Path, run_python: Callable[..., subprocess.CompletedProcess[str]], seed: int
) -> None:
    assert run_python(SCRIBBLE, name, str(seed)).stdout == "alive\n"


# ---- no room ----


def test_a_directory_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("SAGE_QUEUE_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(sage_queue.QueueNoDirectory, match="nowhere is no directory that can hold .* SAGE_QUEUE_DIR"):
        SageQueue(name)
    with pytest.raises(sage_queue.QueueNoDirectory):
        sage_queue.list_queues()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_full_file_system_is_an_error_at_the_put_and_loses_nothing(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    directory = small_tmpfs("64m")
    # An arena that the file system cannot hold: with the default, a quarter of it, the arena would be full first.
    with SageQueue[bytes](name, capacity="256 MiB", arena="256 MiB", serializer="raw") as q:
        message, put = b"x" * (1 << 20), 0
        with pytest.raises(sage_queue.QueueNoSpace, match=f"no room left in {directory} for the 1 MiB .* are free; .*smaller") as caught:
            for put in range(256):
                q.put(put.to_bytes(4, "little") + message[4:], timeout=0)
        assert caught.value.errno == errno.ENOSPC
        assert 32 < put < 64
        with pytest.raises(sage_queue.QueueNoSpace):
            q.put(message, timeout=0.05)  # it waits for room, as at a full queue
        for number in range(put):
            assert int.from_bytes(q.get_nowait()[:4], "little") == number
        for lap in range(3):  # what has memory behind it goes on being used
            q.put_nowait(b"small")
            assert q.get_nowait() == b"small"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
@pytest.mark.parametrize("size", ["4k", "8k", "12k", "16k", "20k"])
def test_a_file_system_too_small_for_anything_is_an_error_at_once(
    name: str,
    small_tmpfs: Callable[[str], pathlib.Path],
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    size: str,
) -> None:
    directory = small_tmpfs(size)
    code = "import sys; from sage_queue import SageQueue; q = SageQueue(sys.argv[1], auto_cleanup=True); q.put(1)"
    done = run_python(code, name, check=False)
    assert f"QueueNoSpace: [Errno {errno.ENOSPC}] no room left in {directory}" in done.stderr


# ---- closed ----


def test_every_call_on_a_closed_queue_says_so(name: str) -> None:
    q = SageQueue[int](name, persistent=True)
    q.close()
    calls: list[Callable[[], Any]] = [
        lambda: q.put(1),
        lambda: q.put(1, timeout=1),
        lambda: q.put_nowait(1),
        q.get,
        lambda: q.get(timeout=1),
        q.get_nowait,
        q.qsize,
        q.empty,
        q.full,
        q.task_done,
        q.join,
        q.shutdown,
        q.get_stats,
    ]
    for call in calls:
        with pytest.raises(sage_queue.QueueClosed, match="^Queue is closed$"):
            call()
    assert q.is_closed()
    assert q.name == name
    assert "closed" in repr(q)
    q.destroy()
