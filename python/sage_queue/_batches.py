"""Floor 2: several items with one call, and all items in a row."""

from __future__ import annotations

from ._held import T, WithItemType

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from . import _native


class Batches(WithItemType[T]):
    """The part of SageQueue that moves several items at once."""

    _port: _native.Port
