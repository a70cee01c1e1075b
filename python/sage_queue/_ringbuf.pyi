from collections.abc import Callable
from typing import Any

ffi: Any
lib: Any

class Port:
    def __init__(
        self,
        handle: int,
        loads: Callable[[bytes], Any] | None,
        refuse: Callable[[int, bool, bool, int], None],
        undecodable: Callable[[Exception], Exception | None],
        /,
    ) -> None: ...
    def __getitem__(self, deadline_ns: int | None) -> Any: ...
    def __setitem__(self, deadline_ns: int | None, data: bytes) -> None: ...
