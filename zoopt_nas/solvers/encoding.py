"""Exact encoding of Python objects as named arrays and JSON, without pickle.

None, bools, integers, finite floats, strings and lists are encoded as themselves. Any other object
becomes a JSON object with one key: ``float`` (NaN or an infinity), ``array``, ``scalar`` (of
NumPy), ``generator``, ``tuple``, ``dict``, or the name of its class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from zoopt_nas._arrays import (
    decode_array,
    decode_generator,
    encode_array,
    encode_generator,
    is_generator,
    is_torch_array,
)
from zoopt_nas.errors import InvalidValueError


def encode(value: object) -> dict[str, Any]:
    """Return a complete copy: ``{"arrays": {name: NumPy array}, "meta": JSON-able dict}``.

    The dotted path to an array is its name. A generator that occurs twice is stored once.

    Args:
        value: None, a bool, number, string, IntEnum, NumPy array or scalar, torch tensor or
            generator, or a list, tuple, dict with string keys or dataclass of such values.

    Raises:
        InvalidValueError: a part is none of these.
    """
    encoder = _Encoder()
    tree = encoder.encode("", value)
    generators = [encode_generator(rng) for rng in encoder.generators]
    return {"arrays": encoder.arrays, "meta": {"tree": tree, "generators": generators}}


def decode(data: Mapping[str, Any], classes: Iterable[type], device: Any = None) -> Any:
    """Return the object that ``encode`` was given.

    Args:
        data: the result of ``encode``, or an equal dict after a JSON round trip.
        classes: the dataclasses and IntEnums that may occur.
        device: the device of torch tensors and generators; None is the one that they were on.

    Raises:
        KeyError: a part is missing, or of a class that is not in ``classes``.
        TypeError: the fields of a dataclass differ.
        RunError: a generator is of a kind that NumPy does not provide.
    """
    meta, by_name = data["meta"], {kind.__name__: kind for kind in classes}
    generators = [decode_generator(state, device) for state in meta["generators"]]

    def build(node: Any) -> Any:
        if isinstance(node, list):
            return [build(part) for part in node]
        if not isinstance(node, Mapping):
            return node
        ((key, content),) = node.items()
        if key == "float":
            return float(content)
        if key == "array":
            return decode_array(data["arrays"][content["name"]], content, device)
        if key == "scalar":
            return data["arrays"][content][()]
        if key == "generator":
            return generators[content]
        if key == "tuple":
            return tuple(build(part) for part in content)
        if key == "dict":
            return {name: build(part) for name, part in content.items()}
        kind = by_name[key]
        if issubclass(kind, IntEnum):
            return kind(content)
        return kind(**{name: build(part) for name, part in content.items()})

    return build(meta["tree"])


class _Encoder:
    """Collects the arrays, by path, and the distinct generators of one object."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.generators: list[Any] = []

    def encode(self, path: str, value: Any) -> Any:
        """Return the JSON of ``value``, which is at ``path``."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if is_torch_array(value) or (kind is np.ndarray and not value.dtype.hasobject):
            array, spec = encode_array(value)
            return {"array": {"name": self._add(path, array), **spec}}
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return {"scalar": self._add(path, np.array(value))}
        if is_generator(value):
            if not any(value is known for known in self.generators):
                self.generators.append(value)
            return {"generator": [value is known for known in self.generators].index(True)}
        if isinstance(value, IntEnum):
            return {kind.__name__: int(value)}
        parts = _parts(path, value)
        encoded = {
            name: self.encode(f"{path}.{name}" if path else name, part)
            for name, part in parts.items()
        }
        if kind is list:
            return list(encoded.values())
        if kind is tuple:
            return {"tuple": list(encoded.values())}
        return {"dict" if kind is dict else kind.__name__: encoded}

    def _add(self, path: str, array: np.ndarray) -> str:
        while path in self.arrays:  # keys of a dict may contain dots
            path += "_"
        self.arrays[path] = array
        return path


def _parts(path: str, value: Any) -> dict[str, Any]:
    """Return the parts of a value by name."""
    kind = type(value)
    if kind in (list, tuple):
        return {str(k): part for k, part in enumerate(value)}
    if kind is dict and all(type(name) is str for name in value):
        return value  # type: ignore[no-any-return]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise InvalidValueError(f"{path} must be made of arrays and numbers, got {value!r}")
