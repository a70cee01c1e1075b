"""Floor 0: pickling objects that may hold torch tensors.  Imported only where torch is.

torch's own pickling writes a tensor's storage through a file format of its own, as bytes inside the pickle.  Here a tensor in the
CPU's memory travels as a buffer beside the pickle, as a numpy array does: dtype, shape, strides and requires_grad are kept.  What is
not shared: two tensors on one storage come out on two.  A tensor with gaps of more than its own size is put together first, and
comes out without them.

Whatever else a tensor can be (on another device, sparse, quantized, a subclass, with hooks or attributes) is pickled by torch.
"""

from __future__ import annotations

import copyreg
import functools
import io
from pickle import PickleBuffer, Pickler

import torch  # type: ignore[import-not-found, unused-ignore]

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from typing import Any

    from ._codec import Gather

_PROTOCOL = 5


def _load(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], requires_grad: bool) -> torch.Tensor:
    """The tensor that _reduce() took apart.  torch knows no read-only tensors, and warns if the buffer is read-only."""
    elements = torch.frombuffer(buffer, dtype=torch.uint8) if len(memoryview(buffer)) else torch.empty(0, dtype=torch.uint8)
    return elements.view(dtype).as_strided(shape, strides).requires_grad_(requires_grad)


def _load_parameter(data: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


def _is_plain(tensor: torch.Tensor) -> bool:
    return bool(
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor._backward_hooks
        and not tensor.__dict__
    )


def _bytes_of(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A flat tensor of bytes over the memory that the tensor reaches, and the strides to find its elements there."""
    data = tensor.detach()
    if data.numel() == 0:
        return torch.empty(0, dtype=torch.uint8), tuple(data.stride())
    reach = 1 + sum((size - 1) * stride for size, stride in zip(data.shape, data.stride()))
    if reach > 2 * data.numel():
        data = data.contiguous()
        reach = data.numel()
    return data.as_strided((reach,), (1,)).view(torch.uint8), tuple(data.stride())


def _reduce(tensor: torch.Tensor) -> Any:
    if not _is_plain(tensor):
        return tensor.__reduce_ex__(_PROTOCOL)
    flat, strides = _bytes_of(tensor)
    return _load, (PickleBuffer(flat.numpy()), tensor.dtype, tuple(tensor.shape), strides, tensor.requires_grad)


def _reduce_parameter(parameter: torch.nn.Parameter) -> Any:
    if not _is_plain(parameter):
        return parameter.__reduce_ex__(_PROTOCOL)
    return _load_parameter, (parameter.detach(), parameter.requires_grad)


class _Table(dict):  # type: ignore[type-arg]
    """How types are pickled: tensors as above, everything else as copyreg has it at the time."""

    def __missing__(self, kind: type) -> Any:
        return copyreg.dispatch_table[kind]


_TABLE = _Table({torch.Tensor: _reduce, torch.nn.Parameter: _reduce_parameter})


class _Pickler(Pickler):
    dispatch_table = _TABLE


def pickle(item: Any, protocol: int, gather: Gather) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol, buffer_callback=gather).dump(item)
    return file.getvalue()


def cloudpickle(item: Any, protocol: int, gather: Gather) -> bytes:
    file = io.BytesIO()
    _cloud_pickler()(file, protocol, buffer_callback=gather).dump(item)
    return file.getvalue()


@functools.cache
def _cloud_pickler() -> Any:
    from cloudpickle import Pickler as Base  # type: ignore[import-not-found, import-untyped, unused-ignore]

    table: Any = Base.dispatch_table
    return type("_CloudPickler", (Base,), {"dispatch_table": table.new_child(_TABLE)})
