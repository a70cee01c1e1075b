from collections.abc import Callable
from typing import Any

ffi: Any
lib: Any

class Block:
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Taken:
    attempts: int
    def ack(self) -> int: ...
    def nack(self) -> int: ...

class Port:
    def __init__(
        self,
        handle: Any,
        address: int,
        framed: bool,
        dumps: Callable[..., Any] | None,
        with_torch: Callable[..., bytes] | None,
        loads: Callable[..., Any] | None,
        refuse: Callable[[int, bool, bool, int], None],
        failed: Callable[[Exception, bool], Exception | None],
        bury: Callable[[bytes, int], None],
        max_attempts: int,
        views: bool,
        writable: bool,
        /,
    ) -> None: ...
    def __getitem__(self, deadline_ns: int | None, /) -> Any: ...
    def __setitem__(self, deadline_ns: int | None, item: Any, /) -> None: ...
    def lease(self, deadline_ns: int | None, /) -> tuple[Taken, Any]: ...
    def reserve(self, size: int, deadline_ns: int | None, /) -> Block: ...
    def commit(self, block: Block, deadline_ns: int | None, /) -> None: ...
