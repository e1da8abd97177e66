"""Find and read genotypes in a text without executing it.

A text may be a published string, a dict, JSON or a log. Its last genotype counts, because in a log
it is the result of the search.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zoopt_nas.errors import InvalidValueError, UnknownNameError

# The order of the fields in published code, for genotypes without field names.
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")

# ``Genotype(`` unless another name follows, as in ``class Genotype(NamedTuple)``; or a dict that
# begins with a field.
_START = re.compile(
    r"(?<!\w)Genotype\s*\((?!\s*(?!normal|reduce)\w+[\s,.)])"
    r"|(?<!\w)dict\s*\(\s*(?:normal|reduce)"
    r"|\{\s*(['\"])(?:normal|reduce)(?:_concat)?\1\s*:"
)
# Typographic quotes and spaces.
_ASCII = str.maketrans({**dict.fromkeys("‘’“”", "'"), "\u00a0": " ", "\u200b": ""})
_OPENING, _CLOSING = "([{", ")]}"
# Calls that equal their first argument, such as ``np.int64(0)``, by the last part of the name.
_CONVERSIONS = re.compile(r"(?:u?int\d*_?|intp|str_?|list|tuple|array|tensor)")
_MAX_RANGE = 100  # nodes of a cell; a long range could exhaust the memory
# Errors of parsing and evaluating a literal.
_UNREADABLE = (SyntaxError, ValueError, TypeError, OverflowError, MemoryError, RecursionError)


def holds_genotype(text: str) -> bool:
    """Whether a genotype seems to begin in the text."""
    return _START.search(_normalized(text)) is not None


def last_genotype(text: str) -> dict[str, Any]:
    """Return the fields of the last genotype in a text, as nested lists of strings and numbers.

    Raises:
        InvalidValueError: There is none, the last one is incomplete, or it contains anything but
            literals, ``range(a, b)``, sums of lists, and numbers and arrays of NumPy or torch.
    """
    text = _normalized(text)
    starts = [match.start() for match in _START.finditer(text)]
    rest = text[starts[-1] :] if starts else text
    try:
        return _fields(ast.parse(rest[: _length(rest)], mode="eval").body)
    except _UNREADABLE as error:
        raise InvalidValueError(
            "genotype must read Genotype(normal=[('op', source), ...], ...), or be a dict with "
            f"these fields, got {brief(rest.strip())}"
        ) from error


def read_json(text: str) -> object:
    """Return what a JSON text holds.

    Raises:
        InvalidValueError: The text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"genotype is not valid JSON: {error}") from error


def read_source(source: str | Path, holds: Callable[[str], bool], names: Iterable[str]) -> str:
    """Return ``source`` if it is the text of an architecture, else the text of the file.

    Args:
        source: A text or a path.
        holds: Whether an architecture seems to be in a text.
        names: Known names, for the message.

    Raises:
        InvalidValueError: The file cannot be read or is not text.
        UnknownNameError: It is neither such a text nor a file.
    """
    text = str(source)
    if holds(text) or text.lstrip().startswith("{"):
        return text
    path = Path(text)
    if not _is_file(path):
        raise UnknownNameError("genotype", shorten(text), names)
    try:
        text = _decode(path.read_bytes())
    except OSError as error:
        raise InvalidValueError(f"genotype file {path} cannot be read: {error.strerror}") from error
    if "\ufffd" in text and not holds(text):
        raise InvalidValueError(f"genotype file {path} is not text")
    return text


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # an impossible name
        return False


def _decode(content: bytes) -> str:
    """Decode UTF-8 or UTF-16, with or without a byte-order mark; replace invalid bytes."""
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_wide else "utf-8-sig", errors="replace")


def brief(value: object) -> str:
    """Return a short ``repr`` for a message."""
    return shorten(repr(value))


def shorten(text: str) -> str:
    """Return the text, cut after 60 characters."""
    return text if len(text) <= 60 else text[:57] + "..."


def _normalized(text: str) -> str:
    """Replace typographic characters and escaped quotes."""
    return text.translate(_ASCII).replace('\\"', '"').replace("\\'", "'")


def _length(text: str) -> int:
    """Return the length of the bracketed expression at the beginning of a text."""
    depth, quote = 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
            if depth <= 0:
                return i + 1
    raise ValueError("a bracket is not closed")


def _fields(node: ast.expr) -> dict[str, Any]:
    if isinstance(node, ast.Dict):
        keys = ["" if key is None else str(_value(key)) for key in node.keys]  # None: **other
        return dict(zip(keys, map(_value, node.values), strict=True))
    if not isinstance(node, ast.Call) or _called(node) not in ("Genotype", "dict"):
        raise ValueError("neither a call nor a dict")
    if len(node.args) == len(FIELDS) and not node.keywords:
        return dict(zip(FIELDS, map(_value, node.args), strict=True))
    if node.args:
        raise ValueError("either all fields have a name or none")
    return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}


def _value(node: ast.expr) -> Any:
    """Evaluate a literal without calling anything."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _value(node.left), _value(node.right)
        if not (isinstance(left, list) and isinstance(right, list)):
            raise ValueError("a sum of something else than lists")
        return left + right
    if isinstance(node, ast.Constant | ast.UnaryOp):
        value = ast.literal_eval(node)
        if isinstance(value, bool):
            raise ValueError("neither a name nor a number")
        return value
    if not isinstance(node, ast.Call):
        raise ValueError("no literal")
    if _called(node) in ("range", "arange"):
        numbers = range(*map(_value, node.args))
        if len(numbers) > _MAX_RANGE:
            raise ValueError("range too long")
        return list(numbers)
    if not _CONVERSIONS.fullmatch(_called(node)) or not node.args:
        raise ValueError("a call of something else")
    return _value(node.args[0])  # ignores a dtype or device


def _called(node: ast.Call) -> str:
    """Return the last part of the called name, or an empty string."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""
