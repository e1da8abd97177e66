"""A setting with its default, help and rule, and a frozen dataclass of settings."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args, get_type_hints

from zoopt_nas.errors import InvalidValueError, MissingDependencyError, UnknownNameError

# The groups of settings, in the order of `--help`.
WHAT, NETWORK, WEIGHTS, ALPHA = "What to do", "Network", "Weights", "Alpha"
DATA, MACHINE = "Data", "Machine"
GROUPS = (WHAT, NETWORK, WEIGHTS, ALPHA, DATA, MACHINE)


class _Unset:
    """Marks a setting that was not given; the config replaces it by the default."""

    def __repr__(self) -> str:
        return "<default>"


UNSET: Any = _Unset()


@dataclass(frozen=True)
class Rule:
    """A condition on a value, as words after "must" and as a function."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE_INTEGER = Rule("be a positive integer", lambda value: value >= 1)
AT_LEAST_0 = Rule("be at least 0", lambda value: value >= 0)
POSITIVE = Rule("be positive", lambda value: value > 0)
POSITIVE_FINITE = Rule("be positive and finite", lambda value: 0 < value < math.inf)
BELOW_1 = Rule("lie in [0, 1)", lambda value: 0 <= value < 1)
DEVICES = Rule(
    "be devices with commas between them",
    lambda value: all(name.strip() for name in value.split(",")),
)
BETWEEN_0_AND_1 = Rule("lie in (0, 1)", lambda value: 0 < value < 1)


@dataclass(frozen=True)
class Setting:
    """A setting without its name and type.

    Attributes:
        default: Default for all data sets and methods; UNSET if ``defaults`` has it.
        help: What it does, in one line.
        group: Group in ``--help`` and in the docs.
        note: Source of the default and reasons, for the docs.
        rule: Condition on the value, or on each number of a tuple.
        choices: Allowed strings; empty for any.
        has_option: Whether it has a command-line option.
        option: The option, if it is not spelled like the name.
        shown: The default in words, if it is not a single value.
    """

    default: Any
    help: str
    group: str
    note: str = ""
    rule: Rule | None = None
    choices: tuple[str, ...] = ()
    has_option: bool = True
    option: str | None = None
    shown: str | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise an error if a value other than None breaks the rule or is not a choice."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise UnknownNameError(name, value, self.choices)
        entries = value if isinstance(value, tuple) else (value,)
        if self.rule is not None and not all(map(self.rule.holds, entries)):
            raise InvalidValueError(f"{name} must {self.rule.words}, got {value}")


def setting(default: Any, group: str, help: str, note: str = "", **more: Any) -> Any:
    """Return the dataclass field of a setting; see ``Setting`` for the arguments."""
    known = Setting(default=default, help=help, group=group, note=note, **more)
    return dataclasses.field(default=UNSET, metadata={"setting": known})


def settings_of(cls: Any) -> dict[str, Setting]:
    """Return the settings of a config class by name, in the order of its fields."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(cls)}


def typed(name: str, value: Any, hint: Any) -> Any:
    """Convert ``value`` to the type of its field: lists to tuples, integers to floats."""
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


@functools.cache  # a sweep makes thousands of configs
def _type_hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass whose fields are settings.

    Raises:
        InvalidValueError: A value breaks the rule of its setting.
    """

    kind: ClassVar[str] = "settings"

    def __post_init__(self) -> None:
        cls: Any = type(self)
        hints = _type_hints(cls)
        given = {
            name: typed(name, value, hints[name])
            for name, value in vars(self).items()
            if value is not UNSET
        }
        values = self.with_defaults(given)
        for name, known in settings_of(cls).items():
            known.check(name, values[name])
            object.__setattr__(self, name, values[name])

    @classmethod
    def usual(cls) -> dict[str, Any]:
        """Return the defaults for all data sets and methods."""
        usual = {name: known.default for name, known in settings_of(cls).items()}
        return {name: value for name, value in usual.items() if value is not UNSET}

    @classmethod
    def defaults_for(cls, dataset: str) -> dict[str, Any]:
        """Return the defaults for a data set."""
        return cls.usual()

    @classmethod
    def with_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Add the defaults to the given settings."""
        return cls.usual() | given

    @classmethod
    def shown_default(cls, name: str) -> str:
        """Return the text of a default, with a different one for the digits if there is one."""
        known = settings_of(cls)[name]
        if known.shown is not None:
            return known.shown
        usual, digits = (_in_words(cls.defaults_for(data)[name]) for data in ("", "digits"))
        return usual if digits == usual else f"{usual}; digits: {digits}"

    @classmethod
    def known(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return ``fields`` if all of them are settings."""
        names = list(settings_of(cls))
        for name in fields:
            if name not in names:
                raise UnknownNameError(f"{cls.kind} setting", name, names)
        return fields

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed; other defaults are not adapted."""
        return dataclasses.replace(self, **self.known(changes))

    def to_toml(self) -> str:
        """Return the settings other than None as TOML."""
        try:
            import tomli_w
        except ImportError as error:
            raise MissingDependencyError(
                "run folders need tomli-w: pip install 'zoopt-nas[nas]'"
            ) from error
        fields = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self).items()
            if value is not None
        }
        return tomli_w.dumps({"kind": self.kind, **fields})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read the result of ``to_toml``; missing settings get their default.

        Raises:
            InvalidValueError: The text is not TOML or of another kind, or a value breaks a rule.
            UnknownNameError: A setting does not exist.
        """
        return cls(**cls.read_fields(text))

    @classmethod
    def read_fields(cls, text: str) -> dict[str, Any]:
        """Return the settings in a TOML text, which need not be complete."""
        try:
            fields = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidValueError(f"config is not valid TOML: {error}") from error
        kind = fields.pop("kind", cls.kind)
        if kind != cls.kind:
            raise InvalidValueError(f"config must be of kind {cls.kind}, got {kind}")
        return cls.known(fields)


def _in_words(value: object) -> str:
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
