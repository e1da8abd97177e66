"""A genotype in all its written forms; hostile and malformed text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.errors import InvalidValueError, UnknownNameError, ZooptNasError
from zoopt_nas.nas.networks.genotype import GENOTYPES, Genotype
from zoopt_nas.nas.networks.operations import OPERATIONS

# As printed by Liu et al. (2019), with their spelling of the concatenated nodes.
PUBLISHED_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
    "reduce_concat=[2, 3, 4, 5])"
)
PUBLISHED_V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], "
    "reduce_concat=[2, 3, 4, 5])"
)
SEP = ("sep_conv_3x3", 0)
SMALL = {"normal": (SEP, SEP), "normal_concat": (2,), "reduce": (SEP, SEP), "reduce_concat": (2,)}


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    fields: dict[str, tuple] = {}
    for kind in ("normal", "reduce"):
        n_nodes = draw(st.integers(1, 6))
        fields[kind] = tuple(
            (draw(st.sampled_from(sorted(OPERATIONS))), draw(st.integers(0, 2 + i // 2 - 1)))
            for i in range(2 * n_nodes)
        )
        nodes = st.lists(st.integers(2, 1 + n_nodes), min_size=1, unique=True)
        fields[f"{kind}_concat"] = tuple(draw(nodes))
    return Genotype(**fields)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(genotypes())
def test_round_trips(genotype: Genotype):
    for copy in (
        Genotype.from_json(genotype.to_json()),
        Genotype.from_string(str(genotype)),
        Genotype.from_dict(genotype.to_dict()),
        Genotype.load(str(genotype)),
        Genotype.load(genotype.to_json()),
    ):
        assert copy == genotype
        assert hash(copy) == hash(genotype)
    assert "\n" not in genotype.to_json() + str(genotype)


def test_json_is_plain():
    fields = json.loads(GENOTYPES["DARTS_V2"].to_json())
    assert list(fields) == ["normal", "normal_concat", "reduce", "reduce_concat"]
    assert fields["normal"][7] == ["dil_conv_3x3", 2]
    assert fields["reduce_concat"] == [2, 3, 4, 5]


@pytest.mark.parametrize(("name", "text"), [("DARTS_V1", PUBLISHED_V1), ("DARTS_V2", PUBLISHED_V2)])
def test_published_strings(name: str, text: str):
    expected = GENOTYPES[name]
    assert str(expected) == text
    assert Genotype.from_string(text) == expected
    assert Genotype.from_string(text.replace("[2, 3, 4, 5]", "range(2, 6)")) == expected
    assert Genotype.from_string(text.replace("[", "(").replace("]", ")")) == expected
    spread = text.replace("), (", "),\n     (")
    assert Genotype.from_string(f"  {spread}\n") == expected


def test_default_concat_is_all_four_nodes():
    genotype = Genotype(normal=(SEP,) * 8, reduce=(SEP,) * 8)
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)
    assert genotype == Genotype.from_string(f"Genotype(normal={[SEP] * 8}, reduce={[SEP] * 8})")


def test_lists_become_tuples_and_the_value_is_immutable():
    genotype = Genotype([["sep_conv_3x3", 0]] * 2, [["none", 1]] * 2, [2], [2])  # type: ignore[arg-type]
    assert genotype.normal == (SEP, SEP)
    assert genotype.reduce_concat == (2,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        genotype.normal = ()  # type: ignore[misc]


def test_equality_and_hash_look_at_every_field():
    base = Genotype(**SMALL)
    assert base == Genotype(**SMALL)
    assert len({base, Genotype(**SMALL)}) == 1
    assert base != Genotype(**{**SMALL, "normal": (SEP, ("sep_conv_3x3", 1))})
    assert base != Genotype(**{**SMALL, "reduce": (SEP, ("sep_conv_5x5", 0))})


def test_count():
    genotype = GENOTYPES["DARTS_V2"]
    assert genotype.count("skip_connect") == 2
    assert genotype.count("skip_connect", "reduce") == 3
    assert genotype.count("max_pool_3x3", "reduce") == 5
    assert genotype.count("noise") == 0


def test_load(tmp_path: Path):
    genotype = Genotype(**SMALL)
    (tmp_path / "a.json").write_text(genotype.to_json() + "\n")
    (tmp_path / "b.txt").write_text(f"\n{genotype}\n")
    (tmp_path / "c.txt").write_text("nothing of the kind")
    (tmp_path / "d.bin").write_bytes(b"\xff\xfe\x00")
    assert Genotype.load(tmp_path / "a.json") == genotype
    assert Genotype.load(str(tmp_path / "b.txt")) == genotype
    assert Genotype.load("DARTS_V1") is GENOTYPES["DARTS_V1"]
    for name, message in (("c.txt", "must read Genotype"), ("d.bin", r"file .*d\.bin is not text")):
        with pytest.raises(InvalidValueError, match=message):
            Genotype.load(tmp_path / name)
    with pytest.raises(UnknownNameError, match="did you mean 'DARTS_V2'"):
        Genotype.load("DARTS_V3_")
    for name in (str(tmp_path / "absent.json"), "x" * 5000, "a\0b", "", str(tmp_path)):
        with pytest.raises(UnknownNameError) as info:
            Genotype.load(name)
        assert len(str(info.value)) < 300


HOSTILE = (
    "__import__('os').system('touch {path}')",
    "Genotype(normal=__import__('os').system('touch {path}'), reduce=[])",
    "Genotype(__import__('os').system('touch {path}'))",
    "Genotype(normal=[('none', 0), ('none', 0)], reduce=(lambda: open('{path}', 'w'))())",
    "Genotype(normal=range(open('{path}', 'w')), reduce=[])",
    "Genotype(**{{'normal': open('{path}', 'w')}})",
    "[open('{path}', 'w') for _ in '1']",
)


@pytest.mark.parametrize("template", HOSTILE)
def test_hostile_text_is_refused_and_not_executed(template: str, tmp_path: Path):
    victim = tmp_path / "victim"
    text = template.format(path=victim)
    for read in (Genotype.from_string, Genotype.load, Genotype.from_json):
        with pytest.raises(ZooptNasError) as info:
            read(text)
        assert "\n" not in str(info.value)
    assert not victim.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Genotype",
        "Genotype(",
        "Genotype()",
        "Genotype([('none', 0)] * 2, [('none', 0)] * 2)",
        "Genotype(normal=[('none', 0), ('none', 0)])",
        "Genotype(normal=[('none', 0), ('none', 0)], reduce=[('none', 0), ('none', 0)], more=1)",
        "other(normal=[('none', 0), ('none', 0)], reduce=[('none', 0), ('none', 0)])",
        "NotAGenotype(normal=[('none', 0), ('none', 0)], reduce=[('none', 0), ('none', 0)])",
        "Genotype(normal=range(10**12), reduce=range(10))",
        "Genotype(normal=range(0, 1000000000000), reduce=range(10))",
        "Genotype(normal=range('a'), reduce=[])",
        "Genotype(normal=range(), reduce=[])",
        "Genotype(normal={[]: 1}, reduce=[])",
        "Genotype(normal=1, reduce=2)",
        "(" * 5000,
        "Genotype(normal=[('none', 0), ('none', 0)], reduce=\0)",
    ],
)
def test_malformed_strings_are_refused_in_one_short_line(text: str):
    with pytest.raises(InvalidValueError) as info:
        Genotype.from_string(text)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 300


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', "[" * 100_000, '{"normal": []}', "9" * 5000, "{'a': 1}"],
)
def test_malformed_json_is_refused_in_one_short_line(text: str):
    with pytest.raises(InvalidValueError) as info:
        Genotype.from_json(text)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 300


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("normal", (), "normal must have 2 edges for each node, got 0"),
        ("reduce", (SEP,) * 3, "reduce must have 2 edges for each node, got 3"),
        ("normal", (SEP, ("sep_conv_3x3", 2)), "normal edge 1 into node 2 .* got 2"),
        ("normal", (SEP, ("sep_conv_3x3", -1)), "normal edge 1 into node 2 .* got -1"),
        ("normal", (SEP, SEP, SEP, ("sep_conv_3x3", 3)), "normal edge 3 into node 3 .* got 3"),
        ("normal_concat", (), "normal_concat must name nodes from 2 to 2"),
        ("reduce_concat", (3,), r"reduce_concat must name nodes from 2 to 2, got \(3,\)"),
        ("reduce_concat", (1,), "reduce_concat must name nodes"),
        ("normal", (SEP, ("sep_conv_3x3",)), "normal must be pairs"),
        ("normal", (SEP, ("sep_conv_3x3", 0, 1)), "normal must be pairs"),
        ("normal", (SEP, ("sep_conv_3x3", 0.5)), "normal must be pairs"),
        ("normal", (SEP, ("sep_conv_3x3", "0")), "normal must be pairs"),
        ("reduce", "ab", "reduce must be pairs"),
        ("reduce", None, "reduce must be pairs"),
        ("normal_concat", (2.0,), "normal_concat integers"),
        ("normal", (SEP, ("sep_conv_3x4", 0)), "did you mean 'sep_conv_3x3'"),
    ],
)
def test_invalid_structures_are_refused(field: str, value: object, message: str):
    with pytest.raises(ZooptNasError, match=message) as info:
        Genotype(**{**SMALL, field: value})  # type: ignore[arg-type]
    assert "\n" not in str(info.value)
    with pytest.raises(ZooptNasError) as info:
        Genotype.from_json(json.dumps({**SMALL, field: value}))
    assert "\n" not in str(info.value)
