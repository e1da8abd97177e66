"""Objects as arrays and JSON: what comes back is what went in, to the type and the last bit."""

import json
import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pytest

from zoopt_nas import InvalidValueError
from zoopt_nas._arrays import encode_generator
from zoopt_nas.solvers.encoding import decode, encode


class Phase(IntEnum):
    """A phase."""

    START = 0
    END = 3


@dataclass
class Part:
    """Two fields."""

    value: object
    phase: Phase = Phase.END


def round_trip(value, classes=(Part, Phase)):
    data = encode(value)
    text = json.dumps(data["meta"], allow_nan=False)
    return decode({"arrays": data["arrays"], "meta": json.loads(text)}, classes)


NUMBERS = [
    None,
    True,
    0,
    -(2**80),
    0.1,
    -0.0,
    5e-324,
    math.pi * 1e300,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "a.b",
    Phase.START,
]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_number_keeps_its_type_and_every_digit(value):
    loaded = round_trip(value)
    assert type(loaded) is type(value)
    assert repr(loaded) == repr(value)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int64", "uint8", "bool", ">f8"]
)
def test_arrays_and_scalars_keep_dtype_shape_and_bits(dtype):
    for shape in ((), (0,), (3,), (2, 3)):
        array = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)
        loaded = round_trip(array)
        assert type(loaded) is np.ndarray
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        assert loaded.tobytes() == array.tobytes()
    scalar = array.ravel()[1]
    loaded = round_trip(scalar)
    assert type(loaded) is type(scalar)
    assert loaded == scalar


def test_the_order_of_an_array_in_memory_is_kept():
    array = np.arange(6.0).reshape(2, 3).T
    assert round_trip(array).strides == array.strides


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64", "bool"])
def test_tensors_keep_dtype_shape_and_bits(dtype):
    torch = pytest.importorskip("torch")
    for shape in ((), (2, 3)):
        tensor = (torch.arange(1, 1 + math.prod(shape)) / 3).reshape(shape)
        tensor = tensor.to(getattr(torch, dtype))
        loaded = round_trip(tensor)
        assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded, tensor)


def test_dataclasses_lists_tuples_and_dicts_nest():
    value = {"a": [Part((1, 2.5)), Part(None, Phase.START)], "b.c": [], "d": {}, "e": ()}
    assert round_trip(value) == value


def test_arrays_are_named_by_their_paths():
    value = Part({"a": [np.ones(1), Part(np.zeros(2))], "a.0": np.ones(3)})
    assert list(encode(value)["arrays"]) == ["value.a.0", "value.a.1.value", "value.a.0_"]
    loaded = round_trip(value).value
    assert [len(loaded["a"][0]), len(loaded["a"][1].value), len(loaded["a.0"])] == [1, 2, 3]


def test_the_dict_is_a_copy():
    value = [np.ones(2)]
    data = encode(value)
    value[0][:] = 7
    loaded = decode(data, ())
    assert loaded[0].tolist() == [1, 1]
    loaded[0][:] = 5
    assert decode(data, ())[0].tolist() == [1, 1]


def test_a_shared_generator_stays_shared():
    rng, other = np.random.default_rng(1), np.random.default_rng(2)
    loaded = round_trip([rng, other, Part(rng)])
    assert loaded[0] is loaded[2].value
    assert loaded[0] is not rng
    assert encode_generator(loaded[0]) == encode_generator(rng)
    assert encode_generator(loaded[1]) == encode_generator(other)


class Text(str):
    """A string that is more than that."""


@pytest.mark.parametrize(
    "value", [{1: 2}, Part, Text("a"), {3}, 1j, np.array([None]), b"a"], ids=repr
)
def test_what_cannot_come_back_is_refused(value):
    with pytest.raises(InvalidValueError, match=r"^value must be made of arrays and numbers"):
        encode(Part(value))


def test_only_the_given_classes_are_made():
    data = encode(Part(1))
    with pytest.raises(KeyError, match="Part"):
        decode(data, ())
    with pytest.raises(KeyError, match="Phase"):
        decode(data, (Part,))
