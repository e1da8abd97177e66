"""Genotypes in the forms in which people paste them; each is read back as it was."""

from __future__ import annotations

import codecs
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.errors import InvalidValueError, UnknownNameError, ZooptNasError
from zoopt_nas.nas.networks.genotype import GENOTYPES, Genotype
from zoopt_nas.nas.networks.operations import OPERATIONS

V1, V2 = GENOTYPES["DARTS_V1"], GENOTYPES["DARTS_V2"]


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    fields: dict[str, tuple] = {}
    for kind in ("normal", "reduce"):
        n_nodes = draw(st.integers(1, 5))
        fields[kind] = tuple(
            (draw(st.sampled_from(sorted(OPERATIONS))), draw(st.integers(0, 1 + i // 2)))
            for i in range(2 * n_nodes)
        )
        first = draw(st.integers(2, 1 + n_nodes))
        fields[f"{kind}_concat"] = tuple(range(first, 2 + n_nodes))
    return Genotype(**fields)


def by_node(genotype: Genotype) -> dict[str, list]:
    fields = genotype.to_dict()
    for kind in ("normal", "reduce"):
        edges = [tuple(edge) for edge in fields[kind]]
        fields[kind] = [edges[i : i + 2] for i in range(0, len(edges), 2)]
    return fields


def in_numpy(genotype: Genotype, prefix: str) -> str:
    def edges(kind: str) -> str:
        pairs = (
            f"({prefix}str_('{op}'), {prefix}int64({source}))"
            for op, source in genotype.edges(kind)
        )
        return f"[{', '.join(pairs)}]"

    def concat(kind: str) -> str:
        return f"{prefix}array({list(genotype.concat(kind))}, dtype={prefix}int64)"

    return (
        f"Genotype(normal={edges('normal')}, normal_concat={concat('normal')}, "
        f"reduce={edges('reduce')}, reduce_concat={concat('reduce')})"
    )


def with_ranges(genotype: Genotype, form: str) -> str:
    text = str(genotype)
    for kind in ("normal", "reduce"):
        nodes = list(genotype.concat(kind))
        new = form.format(first=nodes[0], end=nodes[-1] + 1, head=nodes[:1], tail=nodes[1:])
        text = text.replace(f"{kind}_concat={nodes}", f"{kind}_concat={new}")
    return text


def as_call(fields: dict[str, list]) -> str:
    return f"Genotype({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


FORMS = {
    "published": str,
    "name": lambda g: f"ZARTS_S3 = {g}",
    "module": lambda g: f"genotypes.{g}",
    "modules": lambda g: f"best = cnn.genotypes.{g}  # of seed 2",
    "log line": lambda g: f"2024-01-01 12:00:00,000 genotype = {g}",
    "log line in brackets": lambda g: f"[01/01 12:00:00] (epoch 49) it's {g}, val_acc: 88.1 (top)",
    "colours": lambda g: f"\x1b[32mINFO\x1b[0m {g}\x1b[0m",
    "in quotes": lambda g: f'{{"epoch": 3, "genotype": "{g}", "n": [1, 2]}}',
    "lines": lambda g: str(g).replace("), (", "),\n     (").replace("=[", "= [\r\n  "),
    "tuples": lambda g: str(g).replace("[", "(").replace("]", ",)"),
    "lists": lambda g: as_call(g.to_dict()),
    "by node": lambda g: as_call(by_node(g)),
    "range": lambda g: with_ranges(g, "range({first}, {end})"),
    "range of NumPy": lambda g: with_ranges(g, "np.arange({first}, {end})"),
    "list of a range": lambda g: with_ranges(g, "list(range({first}, {end}))"),
    "sum of lists": lambda g: with_ranges(g, "{head} + {tail}"),
    "without names": lambda g: (
        f"Genotype({g.to_dict()['normal']}, {list(g.normal_concat)}, "
        f"{list(g.reduce)}, {g.reduce_concat})"
    ),
    "numpy": lambda g: in_numpy(g, "np."),
    "numpy by its name": lambda g: in_numpy(g, "numpy."),
    "arrays": lambda g: in_numpy(g, ""),
    "tensors": lambda g: in_numpy(g, "torch.").replace("array(", "tensor("),
    "dict": lambda g: repr(g.to_dict()),
    "dict of tuples": lambda g: repr(vars(g)),
    "dict with a name": lambda g: f"genotype: {vars(g)!r}",
    "dict by node": lambda g: repr(by_node(g)),
    "reduce first": lambda g: repr(dict(reversed(list(g.to_dict().items())))),
    "call of dict": lambda g: f"best = dict{str(g)[len('Genotype') :]}",
    "JSON": Genotype.to_json,
    "JSON as a text in JSON": lambda g: json.dumps({"epoch": 1, "best": g.to_json()}),
    "quoted with double quotes": lambda g: json.dumps(str(g).replace("'", '"')),
    "prose around it": lambda g: f"The Genotype (normal cell first) is\n{g}\nsaved Genotype(s): 1.",
    "JSON by node": lambda g: json.dumps(by_node(g), indent=2),
    "JSON in JSON": lambda g: json.dumps({"epoch": 1, "genotype": g.to_dict(), "alpha": [0.5]}),
    "typeset quotes": lambda g: str(g).replace("('", "(‘").replace("',", "’,"),
    "spaces of a page": lambda g: str(g).replace(" ", "\u00a0"),
    "byte-order mark": lambda g: f"\ufeff{g}",
    "a log": lambda g: f"epoch 0 {V1}\r\nepoch 1 {V2}\r\nepoch 2 {g}\r\n100 % (done)\r\n",
    "rows of a run": lambda g: "".join(
        json.dumps({"epoch": i, "genotype": found.to_dict(), "alpha": [0.1]}) + "\n"
        for i, found in enumerate((V1, V2, g))
    ),
    "a module's file": lambda g: (
        "from collections import namedtuple\n\nGenotype = namedtuple("
        f"'Genotype', 'normal normal_concat reduce reduce_concat')\n\nV1 = {V1}\nOURS = {g}\n"
        "BEST = OURS\n"
    ),
}


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(genotypes())
def test_every_genotype_is_read_back_from_every_form(form: str, genotype: Genotype):
    text = FORMS[form](genotype)
    assert Genotype.from_string(text) == genotype
    assert Genotype.load(text) == genotype


ENCODED = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 as PowerShell writes it": lambda text: text.encode("utf-16"),
    "UTF-16, big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "lines of Windows": lambda text: text.replace("), (", "),\n (").replace("\n", "\r\n").encode(),
    "a log with bytes of Latin-1": lambda text: b"caf\xe9\n" + text.encode() + b"\n\xff",
}


@pytest.mark.parametrize("encoded", ENCODED)
@pytest.mark.parametrize("form", ["published", "log line", "dict", "JSON", "a log"])
def test_files(form: str, encoded: str, tmp_path: Path):
    path = tmp_path / "genotype.txt"
    path.write_bytes(ENCODED[encoded](FORMS[form](V2)))
    assert Genotype.load(path) == V2
    assert Genotype.load(str(path)) == V2


def test_a_known_name_may_have_space_around_it():
    assert Genotype.load(" DARTS_V1\n") is V1


def test_a_genotype_that_was_cut_short_is_not_replaced_by_the_one_before():
    log = f"epoch 0 {V1}\nepoch 1 {str(V2)[:-30]}"
    with pytest.raises(InvalidValueError, match=r"must read Genotype\(.*got \"Genotype\(normal="):
        Genotype.from_string(log)


@pytest.mark.parametrize(
    "text",
    [
        "genotype = Genotype(normal=[...], reduce=[...])",
        "Genotype({0}, {1})",
        "Genotype(normal={0}, normal_concat={{2, 3, 4, 5}}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=[('none', True)] + {0}[1:], reduce={1})",
        "Genotype(normal=[('none', True), ('none', 0)], reduce={1}, normal_concat=[2])",
        "Genotype({0}, {2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal={0}, reduce={1}, normal_concat={2}, reduce_concat={2}, more=1)",
        "Genotype(normal={0} * 1, normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal={0} + 'ab', normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal={0}, normal_concat=range(10**9), reduce={1}, reduce_concat={2})",
        "Genotype(normal={0}, normal_concat=range(2, 10000000), reduce={1}, reduce_concat={2})",
        "Genotype(normal=np.zeros(3), normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=open('x'), normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=np.array(open('x')), normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=a().int64(3), normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=[*{0}], normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=[x for x in {0}], normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=[[('none', 0)] * 3], normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=[[('none', 0)]], normal_concat={2}, reduce={1}, reduce_concat={2})",
        "Genotype(normal=[[[('none', 0)] * 2]], normal_concat={2}, reduce={1}, reduce_concat={2})",
        "{{'normal': {0}}}",
        "{{'normal': {0}, 'reduce': {1}, 'normal_concat': {2}, [1]: 3}}",
        "{{'normal': {0}, **{{'reduce': {1}}}}}",
        "{{'normal': {0}, 'reduce': __import__('os')}}",
    ],
)
def test_what_is_no_genotype_is_one_short_line(text: str):
    filled = text.format(list(V2.normal), list(V2.reduce), [2, 3, 4, 5])
    for read in (Genotype.from_string, Genotype.load):
        with pytest.raises(ZooptNasError) as caught:
            read(filled)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(alphabet="Genotype(){}[]'\",=:normalreduce_012 \n\\", max_size=80))
def test_no_text_ends_in_another_error(text: str):
    for read in (Genotype.from_string, Genotype.load):
        with suppress(InvalidValueError, UnknownNameError):
            read(f"Genotype({text}")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "g.txt"
    path.write_text(str(V1))

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InvalidValueError, match=r"g\.txt cannot be read: Permission denied"):
        Genotype.load(path)
