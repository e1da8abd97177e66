"""The record of a run's data set, by which a resumed or exported run gets the same images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from zoopt_nas.errors import DataError, InvalidValueError
from zoopt_nas.nas.data.image_sets import Dataset


@dataclass(frozen=True)
class DataRecord:
    """The shape, the statistics and the fingerprints of the data set of a run.

    Attributes:
        n_classes, in_channels, image_size: Dimensions of a network for the data set.
        mean, std: Per-channel statistics of pixels in 0..1, used for normalization.
        class_names: Names by label, or None.
        fingerprints: Digests of the splits that the run has used; see `Dataset`.
    """

    n_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Return the record of a loaded data set."""
        return cls(**{name: getattr(dataset, name) for name in cls.__dataclass_fields__})

    def restore(self, dataset: Dataset, name: str) -> Dataset:
        """Return ``dataset`` with the statistics of this record; ``name`` is for the error.

        Raises:
            DataError: The images or labels have changed.
        """
        for split, fingerprint in self.fingerprints.items():
            if dataset.fingerprints.get(split, fingerprint) != fingerprint:
                raise DataError(
                    f"dataset {name}: the {split} images or labels have changed since the run "
                    "began; put them back, or start a new run"
                )
        return replace(dataset, mean=self.mean, std=self.std)

    def to_json(self) -> str:
        """Return the record as JSON, with numbers in full precision."""
        return json.dumps({**vars(self), "fingerprints": dict(self.fingerprints)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the result of ``to_json``.

        Raises:
            InvalidValueError: The text is not a record.
        """
        try:
            fields = json.loads(text)
            return cls(
                **{
                    **fields,
                    "mean": _numbers(fields["mean"]),
                    "std": _numbers(fields["std"]),
                    "class_names": None if fields["class_names"] is None else _names(fields),
                }
            )._checked()
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise InvalidValueError("not the record of a data set") from error

    def _checked(self) -> Self:
        counts = (self.n_classes, self.in_channels, self.image_size)
        if not (
            all(type(count) is int and count > 0 for count in counts)
            and len(self.mean) == len(self.std) == self.in_channels
            and min(self.std) > 0
            and isinstance(self.fingerprints, dict)
            and all(isinstance(text, str) for item in self.fingerprints.items() for text in item)
        ):
            raise ValueError
        return self


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def _names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    names = fields["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError
    return tuple(names)
