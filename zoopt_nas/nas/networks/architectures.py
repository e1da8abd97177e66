"""Load architectures of every kind: by name, as published, from JSON or from a log."""

from __future__ import annotations

from pathlib import Path

from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.genotype import GENOTYPES, Genotype
from zoopt_nas.nas.networks.genotype_text import holds_genotype, read_json, read_source
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype, is_cell_dict
from zoopt_nas.nas.networks.nasbench201_cell import last_cell


def load_architecture(source: str | Path) -> Architecture:
    """Load an architecture by name, from a text with its published form, or from a file with one.

    Of several in a text, such as a log, the last one counts. Nothing is executed.

    Args:
        source: ``"DARTS_V2"``, ``"Genotype(normal=[...], ...)"``,
            ``"|nor_conv_3x3~0|+|...|"``, JSON, or the path of a file.

    Raises:
        InvalidValueError: The text or file has no architecture.
        UnknownNameError: It is neither a known name, nor such a text, nor a file.
    """
    name = str(source).strip()
    if name in GENOTYPES:
        return GENOTYPES[name]
    text = read_source(source, _holds_architecture, GENOTYPES)
    cell = last_cell(text)
    if cell is not None and not holds_genotype(text[cell.end() :]):
        return NasBench201Genotype(cell.groups())
    return Genotype.from_string(text)


def architecture_from_dict(fields: object) -> Architecture:
    """Read the result of ``Architecture.to_dict``.

    Raises:
        InvalidValueError: It is not an architecture.
    """
    if is_cell_dict(fields):
        return NasBench201Genotype.from_dict(fields)
    return Genotype.from_dict(fields)


def architecture_from_json(text: str) -> Architecture:
    """Read the result of ``Architecture.to_json``.

    Raises:
        InvalidValueError: The text is not JSON, or not an architecture.
    """
    return architecture_from_dict(read_json(text))


def _holds_architecture(text: str) -> bool:
    return last_cell(text) is not None or holds_genotype(text)
