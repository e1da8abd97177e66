"""Validate user input: each check returns the value or raises ``InvalidValueError``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from zoopt_nas.errors import InvalidValueError


def _real(value: object) -> float | None:
    """Return ``value`` as a float if it is a finite real number and no bool, else None."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def check_positive(name: str, value: object) -> float:
    """Return ``value`` if it is a finite real number above 0."""
    number = _real(value)
    if number is None or number <= 0:
        raise InvalidValueError(f"{name} must be a positive finite number, got {value!r}")
    return number


def check_at_least(name: str, value: object, low: float) -> float:
    """Return ``value`` if it is a finite real number of at least ``low``."""
    number = _real(value)
    if number is None or number < low:
        raise InvalidValueError(f"{name} must be a finite number of at least {low}, got {value!r}")
    return number


def check_fraction(name: str, value: object) -> float:
    """Return ``value`` if it is a real number in [0, 1]."""
    number = _real(value)
    if number is None or not 0 <= number <= 1:
        raise InvalidValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return number


def check_decay(name: str, value: object) -> float:
    """Return ``value`` if it is a real number in [0, 1)."""
    number = _real(value)
    if number is None or not 0 <= number < 1:
        raise InvalidValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return number


def check_positive_int(name: str, value: object) -> int:
    """Return ``value`` as an int if it is an integer above 0 and no bool."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value <= 0:
        raise InvalidValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise InvalidValueError(f"{name} must be True or False, got {value!r}")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
