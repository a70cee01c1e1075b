from collections.abc import Callable, Iterable
from typing import Any, final, overload

from typing_extensions import Buffer

ffi: Any
lib: Any

def now_ns() -> int: ...

@final
class Block(Buffer): ...

@final
class Taken:
    attempts: int
    def ack(self) -> int: ...
    def nack(self) -> int: ...

@final
class Port:
    def __new__(
        cls,
        handle: Any,
        address: int,
        framed: bool,
        dumps: Callable[..., Any] | None,
        with_torch: Callable[..., bytes] | None,
        loads: Callable[..., Any] | None,
        refuse: Callable[[int, bool, bool, int], None],
        failed: Callable[[Exception, bool], Exception | None],
        views: bool,
        writable: bool,
        /,
    ) -> Port: ...
    @overload
    def __getitem__(self, deadline_ns: int | None, /) -> Any: ...
    @overload
    def __getitem__(self, how: tuple[int | None, int | None, int | None, bool], /) -> list[Any]:
        """The deadline, the most items, the most bytes, and whether exactly so many."""

    @overload
    def __setitem__(self, deadline_ns: int | None, item: Any, /) -> None: ...
    @overload
    def __setitem__(self, how: tuple[int | None, Callable[[int, int], None]], items: Iterable[Any], /) -> None:
        """The deadline, and what raises for a batch of so many items and bytes that can never be in the queue at once."""

    def lease(self, deadline_ns: int | None, /) -> tuple[Taken, Any]: ...
    def reserve(self, size: int, deadline_ns: int | None, /) -> Block: ...
    def commit(self, block: Block, deadline_ns: int | None, /) -> None: ...
