"""Convert NumPy arrays, torch tensors and random generators.

Other modules use the namespace that ``array_namespace`` returns. torch is imported inside
functions, and only if the input is a torch tensor.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping
from typing import Any, SupportsFloat, TypeAlias

import array_api_compat
import array_api_compat.numpy
import numpy as np
from array_api_compat import device as device
from array_api_compat import is_torch_array as is_torch_array

from zoopt_nas.errors import InvalidValueError, MissingDependencyError, RunError

# A NumPy array or a torch tensor, which have no common static type.
Array: TypeAlias = Any
# A numpy.random.Generator or, for torch arrays, a torch.Generator on their device.
Generator: TypeAlias = Any


def array_namespace(array: Array) -> Any:
    """Return the module of array-API functions for ``array``."""
    if isinstance(array, np.ndarray):  # skips a look-up of a microsecond
        return array_api_compat.numpy
    return array_api_compat.array_namespace(array)


def import_torch() -> Any:
    """Return the torch module, or raise ``MissingDependencyError``."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "torch is not installed; install it with: pip install 'zoopt-nas[nas]'"
        ) from error
    return torch


def as_point(name: str, value: object) -> Array:
    """Return a copy of a finite point, (dim,).

    A floating-point array or tensor keeps its dtype and device; other real input becomes float64.
    """
    if is_torch_array(value):
        point: Array = value.detach().clone()
        torch = import_torch()
        real = not point.is_complex() and point.dtype is not torch.bool
        if real and not point.is_floating_point():
            point = point.to(torch.float64)
    else:
        try:
            point = np.array(to_numpy(value))  # always a copy
        except ValueError as error:  # a ragged list
            raise InvalidValueError(f"{name} must be a 1-D array of real numbers") from error
        real = point.dtype.kind in "iuf"
        if real and point.dtype.kind != "f":
            point = point.astype(np.float64)
    if not real:
        raise InvalidValueError(f"{name} must be an array of real numbers, got {point.dtype}")
    if point.ndim != 1 or point.shape[0] == 0:
        raise InvalidValueError(
            f"{name} must be one-dimensional and not empty, got shape {tuple(point.shape)}"
        )
    xp = array_namespace(point)
    if not bool(xp.all(xp.isfinite(point))):
        raise InvalidValueError(f"{name} must be finite, got {value!r}")
    return point


def copy(array: Array) -> Array:
    """Return a copy in the same namespace and dtype and on the same device."""
    if isinstance(array, np.ndarray):  # skips a wrapper that takes four times as long
        return np.array(array)
    return array_namespace(array).asarray(array, copy=True)


def as_like(
    name: str, value: object, like: Array, shape: tuple[int, ...], dtype: Any = None
) -> Array:
    """Convert real numbers of the given shape to the namespace, device and dtype of ``like``."""
    dtype = like.dtype if dtype is None else dtype
    if (  # the fast path
        type(value) is np.ndarray
        and value.dtype == dtype
        and value.dtype.kind == "f"
        and value.shape == shape
        and isinstance(like, np.ndarray)
    ):
        return value
    try:
        if is_torch_array(like):
            reals = None if is_torch_array(value) else as_reals(value)
            value = value if reals is None else reals
            array: Array = import_torch().as_tensor(value, dtype=dtype, device=like.device).detach()
        else:
            reals = as_reals(value)
            if reals is None:
                raise TypeError("not real")
            array = reals.astype(dtype, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{name} must be an array of real numbers, got {value!r}"
        raise InvalidValueError(message) from error
    if tuple(array.shape) != shape:
        raise InvalidValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    return array


def value_dtype(like: Array) -> Any:
    """Return the dtype of objective values for any ``x``: float64, or float32 on MPS."""
    if not is_torch_array(like):
        return np.dtype(np.float64)
    torch = import_torch()
    return torch.float32 if like.device.type == "mps" else torch.float64


def finite_values(name: str, values: object, like: Array, n: int) -> Array:
    """Return (n,) objective values on the device of ``like``; non-finite values become +inf."""
    if (
        type(values) is np.ndarray
        and values.dtype == np.float64
        and values.shape == (n,)
        and isinstance(like, np.ndarray)
        and math.isfinite(np.add.reduce(values))  # implies that each value is finite
    ):
        return values
    values = as_like(name, values, like, (n,), dtype=value_dtype(like))
    xp = array_namespace(like)
    return xp.where(xp.isfinite(values), values, xp.inf)


def finite_or(x: Array, default: Array) -> Array:
    """Return ``x`` if every entry is finite, else ``default``."""
    if isinstance(x, np.ndarray):  # a finite sum is the fast path
        return x if math.isfinite(np.add.reduce(x)) or np.all(np.isfinite(x)) else default
    if x.device.type == "cpu" and math.isfinite(float(x.sum())):
        return x  # avoids the temporary arrays of isfinite and where
    xp = array_namespace(x)
    return xp.where(xp.all(xp.isfinite(x)), x, default)  # does not synchronize with the device


def scale_rows(rows: Array, factors: list[float]) -> None:
    """Multiply row k by ``factors[k]``, in place."""
    if isinstance(rows, np.ndarray):
        rows *= np.array(factors, dtype=rows.dtype)[:, None]
    else:
        for k, factor in enumerate(factors):  # an array of factors would be copied to the device
            rows[k, :] *= factor


def to_numpy(value: Any) -> Any:
    """Convert a tensor to NumPy, and masked entries to NaN; return anything else unchanged."""
    if isinstance(value, np.ma.MaskedArray):
        wide: Any = value.astype(np.float64) if value.dtype.kind in "biu" else value
        return wide.filled(np.nan)
    if not is_torch_array(value):
        return value
    host = value.detach().cpu()
    # NumPy has no bfloat16; float32 represents its values exactly.
    return host.float().numpy() if str(host.dtype) == "torch.bfloat16" else host.numpy()


def as_real(value: object) -> float | None:
    """Return ``value`` as a float if it is one real number, else None.

    Also accepts objects with ``__float__``, and arrays or tensors with one entry. A number that is
    too large for a float becomes an infinity; a masked one becomes NaN.
    """
    if isinstance(value, float):
        return float(value)
    if type(value) is np.ndarray and value.size == 1 and value.dtype.kind in "biuf":
        return float(value.item())  # a fast path for the common case
    try:
        array = np.asarray(to_numpy(value))
    except (TypeError, ValueError, RuntimeError):  # ragged, or not convertible
        return None
    if array.size != 1 or array.dtype.kind not in "biufO":
        return None
    number = array.item()
    if isinstance(number, str | bytes | complex) or not isinstance(number, SupportsFloat):
        return None
    try:
        return float(number)
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN of Decimal
        return math.nan
    except TypeError:  # a nested array
        return None


def as_reals(values: object) -> np.ndarray | None:
    """Return real numbers, in any form that ``as_real`` accepts, as a NumPy array, else None."""
    if isinstance(values, list | tuple) and any(value is np.ma.masked for value in values):
        values = [math.nan if value is np.ma.masked else value for value in values]
    try:
        array = np.asarray(to_numpy(values))
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.dtype.kind == "O":
        numbers = [as_real(value) for value in array.flat]
        if None in numbers:
            return None
        array = np.array(numbers, dtype=np.float64).reshape(array.shape)
    return array if array.dtype.kind in "biuf" else None


def as_generator(rng: object, like: Array) -> Generator:
    """Return the generator for arrays like ``like``, following SPEC 7.

    For a torch tensor, ``rng`` is a ``torch.Generator`` on its device, or seeds one by one draw.
    """
    torch = import_torch() if is_torch_array(like) else None
    if torch is not None and isinstance(rng, torch.Generator):
        if rng.device.type != like.device.type:
            raise InvalidValueError(
                f"rng must be on the device of x0 ({like.device}), got {rng.device}"
            )
        return rng
    if isinstance(rng, np.random.Generator):
        source = rng
    elif rng is None or (
        isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0
    ):
        source = np.random.default_rng(rng)
    else:
        raise InvalidValueError(
            f"rng must be None, a non-negative integer or a numpy.random.Generator, got {rng!r}"
        )
    if torch is None:
        return source
    generator = torch.Generator(device=like.device)
    generator.manual_seed(int(source.integers(2**63 - 1)))
    return generator


def is_generator(value: object) -> bool:
    """Return whether ``value`` is a generator of NumPy or torch, without importing torch."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.random.Generator) or (
        torch is not None and isinstance(value, torch.Generator)
    )


def encode_array(value: Array) -> tuple[np.ndarray, dict[str, str]]:
    """Return a NumPy copy of ``value``, and its namespace, dtype and device for `decode_array`."""
    if is_torch_array(value):
        dtype = str(value.dtype).removeprefix("torch.")
        spec = {"namespace": "torch", "dtype": dtype, "device": str(value.device)}
        return np.array(to_numpy(value)), spec
    array = np.array(value)
    return array, {"namespace": "numpy", "dtype": array.dtype.str}


def decode_array(array: np.ndarray, spec: Mapping[str, str], device: Any = None) -> Array:
    """Return a copy of the array that ``encode_array`` encoded, if of torch on ``device``."""
    if spec["namespace"] == "torch":
        torch = import_torch()
        dtype = getattr(torch, spec["dtype"])
        return torch.from_numpy(np.array(array)).to(dtype=dtype, device=device or spec["device"])
    return np.array(array, dtype=spec["dtype"])


def encode_generator(rng: Generator) -> dict[str, Any]:
    """Return the complete state of a generator as JSON values."""
    if isinstance(rng, np.random.Generator):
        return {"kind": "numpy", "state": _jsonable(rng.bit_generator.state)}
    state = bytes(rng.get_state().numpy()).hex()
    return {"kind": "torch", "device": str(rng.device), "state": state}


def decode_generator(data: Mapping[str, Any], device: Any = None) -> Generator:
    """Return the generator that ``encode_generator`` encoded, if of torch on ``device``."""
    if data["kind"] == "torch":
        torch = import_torch()
        generator = torch.Generator(device=device or data["device"])
        restore_generator(generator, bytes.fromhex(data["state"]))
        return generator
    name = data["state"]["bit_generator"]
    kind = getattr(np.random, name, None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise RunError(f"the saved generator is of unknown kind {name!r}")
    bits: Any = kind()
    bits.state = _unjsonable(data["state"])
    return np.random.Generator(bits)


def restore_generator(generator: Any, state: bytes) -> None:
    """Set the state of a torch generator, or seed it with a state of another kind of device."""
    torch = import_torch()
    if len(state) == generator.get_state().numel():
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    else:  # the generators of a CPU and of a GPU have nothing in common
        digest = hashlib.sha256(state).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "little"))


def _jsonable(state: Any) -> Any:
    """Convert the arrays in the state of a bit generator to lists."""
    if isinstance(state, Mapping):
        return {key: _jsonable(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return {"array": state.tolist(), "dtype": state.dtype.str}
    return state


def _unjsonable(state: Any) -> Any:
    if not isinstance(state, Mapping):
        return state
    if set(state) == {"array", "dtype"}:
        return np.array(state["array"], dtype=state["dtype"])
    return {key: _unjsonable(value) for key, value in state.items()}
