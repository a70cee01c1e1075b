"""Floor 0: how a queue is addressed — names, sizes in words, and what a reference carries.

Everything here is plain data: no handle, no C.  A reference must make sense in any process, as a pickle and as JSON, also where
the queue itself cannot be reached; so this file can say where a queue lives, and leaves going there to _queue.py.
"""

from __future__ import annotations

import operator
import os

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar

    _Self = TypeVar("_Self", bound="Address")

NAME_MAX_BYTES = 1024
CAPACITY_MAX_BYTES = 64 << 30
PARTICIPANTS_MAX = 4095  # owner numbers are 12 bits (layout.h)

#: In a reference: no particular queue, but whichever has the name.  (A queue's own id is random.)
ANY_ID = "0" * 32

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def full_name(name: str, namespace: str | None = None) -> str:
    """The name a queue really has: "namespace/name", or the name alone."""
    parts = [("name", name)] if namespace is None else [("namespace", namespace), ("name", name)]
    for what, part in parts:
        if not isinstance(part, str):
            raise TypeError(f"the {what} of a queue is a str, not {type(part).__name__}")
        if not part:
            raise ValueError(f"the {what} of a queue cannot be empty; leave it out or give it at least one character")
        if "\0" in part:
            raise ValueError(f"the {what} {part!r} holds a zero character; any other character is fine")
    full = "/".join(part for _, part in parts)
    try:
        size = len(full.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {full!r} cannot be written as UTF-8: {error.reason}") from None
    if size > NAME_MAX_BYTES:
        raise ValueError(f"the name is {size} bytes long as UTF-8; {NAME_MAX_BYTES} is the most")
    return full


def user_name() -> str:
    """$SAGE_USER, or the login name that this process runs under.  It has no slash, so that no two users share a namespace."""
    import pwd  # here: few need it

    user = os.environ.get("SAGE_USER")
    if user and "/" in user:
        raise ValueError(f"SAGE_USER={user!r} holds a slash, which would put its queues into another user's namespace")
    if user:
        return user
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid_{os.geteuid()}"


def user_namespace(namespace: str | None, enable_multi_tenant: bool | None) -> str | None:
    """The namespace a queue really is in: with `enable_multi_tenant` "user" or "user/namespace", else the namespace as it is."""
    if not enable_multi_tenant:
        return namespace
    return user_name() if namespace is None else full_name(namespace, user_name())


def parse_bytes(value: int | str, what: str = "capacity", least: int = 1) -> int:
    """A number of bytes from an int or from words such as "16 MiB"."""
    if isinstance(value, str):
        digits = value.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        unit = _UNITS.get(value.strip()[len(digits) :].lower())
        try:
            number = float(digits)
            size = int(number * unit) if unit else -1
        except (ValueError, OverflowError):
            size = -1
        if unit is None or size < 0:
            raise ValueError(f"{what}={value!r} is not a size; write a number of bytes, or a string like '4 MiB' or '512 KiB'")
    else:
        size = as_int(value, what, "an int (bytes) or a string like '4 MiB'")
    if not least <= size <= CAPACITY_MAX_BYTES:
        raise ValueError(f"{what}={value!r} is {size} bytes; it must be between {least} byte{'' if least == 1 else 's'} and 64 GiB")
    return size


def parse_maxsize(value: int) -> int:
    """How many items: 0 is "as many as fit", and more than can ever fit is allowed."""
    number = as_int(value, "maxsize", "an int (items; 0: as many as fit)")
    if number < 0:
        raise ValueError(f"maxsize={number} is negative; give the most items to hold, or 0 for as many as fit")
    return min(number, (1 << 63) - 1)


def parse_participants(value: int) -> int:
    """How many can be attached at a time."""
    number = as_int(value, "max_participants", "an int (attached processes at a time)")
    if not 1 <= number <= PARTICIPANTS_MAX:
        raise ValueError(f"max_participants={number} must be between 1 and {PARTICIPANTS_MAX}: it is how many can be attached at a time")
    return number


def as_int(value: Any, what: str, wanted: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{what} must be {wanted}, not a bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be {wanted}, not {type(value).__name__}") from None


def human_bytes(count: int) -> str:
    """The size in words: "4 MiB", "1.5 KiB", "12 B"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"


def shown(text: str, encoding: str = "utf-8") -> str:
    """A name as it may be shown to people: nothing in it moves the cursor, hides, turns letters round, or cannot be written.

    No two names look the same.  What cannot be printed is escaped: a character as \\n, \\x1b, \\u202e or \\U000e0001, a byte that is no
    UTF-8 as \\xff, and with `encoding` also what that has not got.  So are backslashes, and a space at an end.
    """
    escaped = "".join("\\\\" if character == "\\" else _escaped(character, encoding) for character in text)
    stripped = escaped.strip(" ")
    start = len(escaped) - len(escaped.lstrip(" "))
    return "\\x20" * start + stripped + "\\x20" * (len(escaped) - start - len(stripped)) if stripped else "\\x20" * len(escaped)


def safe(text: str, encoding: str = "utf-8") -> str:
    """A text of ours with others' words in it, such as an error's, as it may be shown: like shown(), but for lines, backslashes and spaces."""
    return "".join(character if character == "\n" else _escaped(character, encoding) for character in text)


def _escaped(character: str, encoding: str) -> str:
    """The character itself if it can be printed.  (Those that turn or hide text are in Unicode's category Cf, which cannot.)"""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as os.fsdecode() has it
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        try:
            character.encode(encoding)
            return character
        except UnicodeEncodeError:
            pass
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def login_name(uid: int) -> str:
    import pwd  # here: few need it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid_{uid}"


def host_name() -> str:
    return os.uname().nodename


def boot_id() -> str:
    """What tells this run of this machine's kernel from every other; "" where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Address:
    """Where one queue is, and what is fixed about it.  Immutable, hashable, picklable, and JSON both ways."""

    __slots__ = (
        "name",
        "id",
        "maxsize",
        "capacity",
        "arena",
        "serializer",
        "directory",
        "permissions",
        "auto_cleanup",
        "creator_pid",
        "host",
        "boot_id",
        "create_if_not_exists",
    )

    name: str  #: the final name, namespace and all
    id: str  #: 32 hex digits that no other queue has; ANY_ID: whichever queue has the name
    maxsize: int  #: items; 0: as many as fit
    capacity: int  #: bytes for small messages
    arena: int  #: bytes for large messages and for what is held; 0: none; 2**64 - 1: the default of where it is made
    serializer: str
    directory: str
    permissions: int  #: of the file; 0: the default, nobody but its owner
    auto_cleanup: bool
    creator_pid: int
    host: str
    boot_id: str
    create_if_not_exists: bool  #: only with ANY_ID

    def __init__(
        self,
        name: str,
        id: str,
        *,
        maxsize: int = 0,
        capacity: int = 0,
        arena: int = 0,
        serializer: str = "pickle",
        directory: str = "/dev/shm",
        permissions: int = 0,
        auto_cleanup: bool = False,
        creator_pid: int = 0,
        host: str = "",
        boot_id: str = "",
        create_if_not_exists: bool = False,
    ) -> None:
        values = locals()
        for field, kind in _FIELDS.items():
            value = values[field]
            if type(value) is not kind:
                raise TypeError(f"a reference's {field} is of type {kind.__name__}, not {type(value).__name__}")
            if isinstance(value, int) and not 0 <= value <= _MOST.get(field, _NUMBER_MAX):
                raise ValueError(f"a reference's {field} is from 0 to {_MOST.get(field, _NUMBER_MAX)}, not {value}")
            object.__setattr__(self, field, value)
        full_name(name)  # also a zero, with which it would end in C, and be another queue's
        if "\0" in directory:
            raise ValueError(f"the directory {directory!r} of a reference holds a zero character")
        if len(id) != 32 or id.strip("0123456789abcdef"):
            raise ValueError(f"a reference's id is 32 hex digits, not {id!r}")
        if create_if_not_exists and id != ANY_ID:
            raise ValueError(f"the queue with the id {id} cannot be made again; create_if_not_exists goes with a name alone")

    # The first queue's names for the same things, which its callers use.

    @property
    def size(self) -> int:
        return self.maxsize

    @property
    def queue_name(self) -> str:
        return self.name

    # Plain data, in every direction.

    def to_dict(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in _FIELDS}

    @classmethod
    def from_dict(cls: type[_Self], values: dict[str, Any]) -> _Self:
        unknown = sorted(set(values) - set(_FIELDS))
        missing = sorted({"name", "id"} - set(values))
        if unknown or missing:
            raise ValueError(f"not a reference to a queue: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)

    def to_json(self) -> str:
        import json  # here: most programs never need it

        return json.dumps({"sage_queue_ref": 1, **self.to_dict()})

    @classmethod
    def from_json(cls: type[_Self], text: str | bytes) -> _Self:
        import json

        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("not a reference to a queue: JSON that is nested so deep") from None
        if not isinstance(values, dict) or values.pop("sage_queue_ref", None) != 1:
            raise ValueError('not a reference to a queue: expected an object with "sage_queue_ref": 1, as to_json() writes it')
        return cls.from_dict(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a reference cannot be changed ({name!r})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a reference cannot be changed ({name!r})")

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Address) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.id))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, size={self.maxsize}, creator_pid={self.creator_pid})"


#: What fits into a number of the C library's.
_NUMBER_MAX = (1 << 64) - 1
_MOST = {"permissions": 0o777}

_FIELDS: dict[str, type] = {
    "name": str,
    "id": str,
    "maxsize": int,
    "capacity": int,
    "arena": int,
    "serializer": str,
    "directory": str,
    "permissions": int,
    "auto_cleanup": bool,
    "creator_pid": int,
    "host": str,
    "boot_id": str,
    "create_if_not_exists": bool,
}
