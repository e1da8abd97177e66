"""A CUDA device without a GPU: tensors that say they are on it, and a record of what waits for it.

The numbers are computed on the CPU, so that whole steps run, forward and backward, and must come
out as they do there. What is different is what a GPU would mind:

- An operator with a tensor of the host among those of the device is refused, as is a generator of
  the other kind.
- Whatever makes Python wait for the device is recorded: a value read, a shape that depends on
  values, a copy to the host, and a copy to the device from memory that is not pinned.

To autograd the device is ``lazy``, whose backward pass runs without a thread for each device, which
takes a device. Python sees ``cuda:0``.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import zoopt_nas

CUDA = torch.device("cuda", 0)
_INTERNAL = torch.device("lazy", 0)
PACKAGE = str(Path(zoopt_nas.__file__).parent)

# Operators whose result, or its shape, is known only when the device is done.
READS = {
    "_local_scalar_dense": "value",
    "equal": "value",
    "_linalg_check_errors": "value",
    "linalg_pinv": "value",  # these look at whether they have converged
    "_linalg_svd": "value",
    "_linalg_eigh": "value",
    "nonzero": "shape",
    "masked_select": "shape",
    "_unique2": "shape",
    "unique_dim": "shape",
    "repeat_interleave": "shape",
}
# Functions that make a tensor of the host first, and copy it.
FROM_PYTHON = ("tensor", "as_tensor", "asarray")


class Event(NamedTuple):
    """Something that a device would notice.

    Attributes:
        kind: ``value`` or ``shape``, which Python waits for; ``to host``, which it waits for too;
            ``to device``, a copy from pageable memory, or one that is to be waited for; ``pinned``,
            one from pinned memory in the background.
        operator: of PyTorch.
        place: the innermost line of the package, as ``nas/data/batches.py:next_batch``.
    """

    kind: str
    operator: str
    place: str


class OnDevice(Tensor):
    """A tensor of the simulated device; its numbers are in ``host``."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=_INTERNAL,
        )
        made.host = host
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __repr__(self) -> str:
        return f"OnDevice({self.host!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnDevice(self.host.clone())
            if getattr(self, "_is_param", False):
                copied = torch.nn.Parameter(copied)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a simulated device outside of its context")


class SimulatedGenerator(torch.Generator):
    """A generator that knows which device it is for; it draws as one of the CPU."""

    intended = torch.device("cpu")

    def __new__(cls, device: Any = "cpu") -> SimulatedGenerator:
        made = super().__new__(cls, "cpu")
        made.intended = CUDA if torch.device(device).type == "cuda" else cls.intended
        return made

    @property
    def device(self) -> torch.device:
        return self.intended


class _Operators(TorchDispatchMode):
    """Computes on the CPU, checks devices, records events."""

    def __init__(self, events: list[Event], pinned: dict[int, Tensor]) -> None:
        super().__init__()
        self.events, self.pinned = events, pinned

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, Tensor)]
        own = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        leaves_host = target is not None and target.type == "lazy"
        is_copy = name in ("_to_copy", "copy_", "_foreach_copy_")
        if is_copy:
            leaves_host = self._copies(name, args, kwargs, target)
        elif own:
            self._check(name, func, args, tensors)
            leaves_host = True
        host_args = _each(_unwrap, args)
        host_kwargs = {key: _each(_unwrap, value) for key, value in kwargs.items()}
        out = func(*host_args, **host_kwargs)
        if not leaves_host:
            return out
        made = _each(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, made) if own else made

    def _copies(self, name: str, args: Any, kwargs: Any, target: Any) -> bool:
        """Records a copy between the devices; whether its result is on the simulated one."""
        if name == "_to_copy":
            source = args[0]
            from_device = isinstance(source, OnDevice)
            to_device = from_device if target is None else target.type == "lazy"
            self._copy(name, source, from_device, to_device, bool(kwargs.get("non_blocking")))
            return to_device
        pairs = [args[:2]] if name == "copy_" else list(zip(*args[:2], strict=True))
        waits_not = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        for goal, source in pairs:
            to_device = isinstance(goal, OnDevice)
            self._copy(name, source, isinstance(source, OnDevice), to_device, waits_not)
        return to_device

    def _copy(
        self, name: str, source: Tensor, from_device: bool, to_device: bool, waits_not: bool
    ) -> None:
        if from_device and not to_device:
            self._record("to host", name)
        if to_device and not from_device:
            is_pinned = source.untyped_storage().data_ptr() in self.pinned
            self._record("pinned" if waits_not and is_pinned else "to device", name)

    def _check(self, name: str, func: Any, args: Any, tensors: list[Tensor]) -> None:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            # A single number in the place of what a mask shows is filled in.
            is_filled = name.startswith("index_put") and args[2].numel() == 1
            is_mask = [index.dtype in (torch.bool, torch.uint8) for index in indices]
            if any(is_mask) and not is_filled:
                self._record("shape", name)
            if any(not isinstance(index, OnDevice) for index in indices):
                self._record("to device", name)
            strangers = [x for x in strangers if all(x is not index for index in indices)]
        # A single number of the host is an argument of a kernel.
        may_be_mixed = torch.Tag.pointwise in func.tags
        if any(tensor.ndim > 0 or not may_be_mixed for tensor in strangers):
            raise RuntimeError(
                f"expected all tensors to be on the same device, found cuda:0 and cpu in {name}"
            )
        if name in READS and not (name == "repeat_interleave" and len(tensors) == 1):
            self._record(READS[name], name)

    def _record(self, kind: str, name: str) -> None:
        self.events.append(Event(kind, name, _place()))


class _Functions(TorchFunctionMode):
    """Tells PyTorch's functions ``lazy`` where Python says ``cuda``, and makes pinned memory."""

    def __init__(self, pinned: dict[int, Tensor]) -> None:
        super().__init__()
        self.pinned = pinned

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        pins = kwargs.pop("pin_memory", False)
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            made, pins = func.__self__ if hasattr(func, "__self__") else args[0].clone(), True
        else:
            if name == "to" and len(args) > 1 and isinstance(args[1], str):
                args = (args[0], torch.device(args[1]), *args[2:])
            if isinstance(kwargs.get("device"), str):
                kwargs["device"] = torch.device(kwargs["device"])
            # No deeper: an argument may be anything, a module for example.
            args = tuple(_internal(value) for value in args)
            kwargs = {key: _internal(value) for key, value in kwargs.items()}
            if name in FROM_PYTHON:  # as PyTorch does, but where it can be seen
                target = kwargs.pop("device", None)
                made = func(*args, **kwargs)
                made = made if target is None else made.to(target)
            else:
                made = func(*args, **kwargs)
        if isinstance(made, torch.device) and made.type == "lazy":  # of what torch.vmap gives
            return CUDA
        generator = kwargs.get("generator")
        if generator is not None and isinstance(made, Tensor) and made.device != generator.device:
            raise RuntimeError(f"a generator of {generator.device} draws numbers on {made.device}")
        if pins:
            self.pinned[made.untyped_storage().data_ptr()] = made  # which keeps the address taken
        return made


def _leaves(values: Any) -> Iterator[Any]:
    """What an operator is given, with the members of its lists."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _each(function: Any, value: Any) -> Any:
    """``function`` of a value, or of each member of a list."""
    if isinstance(value, list | tuple):
        return type(value)([_each(function, member) for member in value])
    return function(value)


def _internal(value: Any) -> Any:
    return _INTERNAL if isinstance(value, torch.device) and value.type == "cuda" else value


def _unwrap(value: Any) -> Any:
    return value.host if isinstance(value, OnDevice) else value


def _place() -> str:
    frame: Any = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            return f"{code.co_filename[len(PACKAGE) + 1 :]}:{code.co_name}"
        frame = frame.f_back
    return ""


class Device:
    """The simulated device while it is there.

    Attributes:
        events: what happened on it, in order.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def waits(self) -> list[Event]:
        """What made Python wait, or may have."""
        return [event for event in self.events if event.kind != "pinned"]

    def counts(self) -> Counter[str]:
        """How many events there were of each kind."""
        return Counter(event.kind for event in self.events)

    def forget(self) -> None:
        self.events.clear()


@contextlib.contextmanager
def simulated_device() -> Iterator[Device]:
    """Inside, ``cuda`` is a device."""
    device, pinned = Device(), dict[int, Tensor]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", SimulatedGenerator)
        with _Functions(pinned), _Operators(device.events, pinned):
            yield device


def kinds(device: Device) -> list[str]:
    """The events since the last look, without places."""
    found = [event.kind for event in device.events]
    device.forget()
    return found


def on(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]
