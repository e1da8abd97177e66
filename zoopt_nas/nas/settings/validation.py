"""What the values of settings may be: known by name, of the type of their field, in range."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, get_args

from zoopt_nas.errors import InvalidValueError, UnknownNameError


def check_shares(config: Any, *names: str) -> None:
    """Refuses a field that is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise InvalidValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")


def known_fields(cls: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """``fields``, each of which the config class ``cls`` must have."""
    names = [spec.name for spec in dataclasses.fields(cls)]
    for name in fields:
        if name not in names:
            raise UnknownNameError(f"{cls.kind} setting", name, names)
    return fields


def typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type of its field; TOML has no tuples, and 1 is a fine float."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    wanted = next(option for option in options if option is not types.NoneType)
    origin = getattr(wanted, "__origin__", wanted)
    if origin is tuple:
        parts = get_args(wanted)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise InvalidValueError(f"{name} must be {len(parts)} numbers, got {value!r}")
        return tuple(typed(name, item, part) for item, part in zip(value, parts, strict=True))
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise InvalidValueError(f"{name} must be of type {origin.__name__}, got {value!r}")
    return value
