"""What a config is: a frozen dataclass whose values are checked and in which no typo passes.

    @dataclass(frozen=True, kw_only=True)
    class Example(Config):
        name: ClassVar[str] = "example"
        width: Annotated[int, AtLeast(1)] = 128
        norm: Literal["pre", "post"] = "pre"

`Example(widht=3)`, `Example(width=0)` and `Example(norm="per")` each raise a ValueError of one
sentence that names what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

LONGEST = 80  # letters of a value in a sentence that refuses it
LARGEST = 2**63 - 1  # integers go through int64 columns, files and libraries


@dataclass(frozen=True)
class AtLeast:
    """Bound of a number: `low <= value`."""

    low: float

    def refusal(self, value: float) -> str | None:
        return None if value >= self.low else f"at least {self.low:g}"


@dataclass(frozen=True)
class Below:
    """Bound of a number, itself excluded: `value < high`."""

    high: float

    def refusal(self, value: float) -> str | None:
        return None if value < self.high else f"below {self.high:g}"


@dataclass(frozen=True)
class Between:
    """Bounds of a number, both included: `low <= value <= high`."""

    low: float
    high: float

    def refusal(self, value: float) -> str | None:
        return None if self.low <= value <= self.high else f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every config. Subclasses are `@dataclass(frozen=True, kw_only=True)`.

    Raises ValueError for an unknown field (listing the known ones) and for a value that does not
    fit its field's annotation: a plain type, `X | None`, `Literal`, `tuple[X, ...]`, `Sequence[X]`,
    `Mapping[K, V]`, another config, or `Annotated` with `AtLeast`, `Below` or `Between`. Floats are finite, integers
    fit into 64 bits and strings into UTF-8. Values of subclasses (NumPy scalars, enums) are stored as plain ones.
    """

    name: ClassVar[str] = ""

    def __new__(cls, *args: Any, **values: Any) -> Self:
        refuse_unknown(cls, values)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]  # mypy takes the class for an instance
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            checked = _checked(value, hints[field.name], f"{type(self).__name__}.{field.name}")
            object.__setattr__(self, field.name, checked)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def refuse_unknown(cls: type, names: Any) -> None:
    """Raise ValueError if `names` holds one that is no field of the dataclass `cls`."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if name not in known:
            raise ValueError(f"{cls.__name__} has no field {name!r}; known fields: {', '.join(known)}")


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as its field stores it (an int in a float field becomes a float), or ValueError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _checked(value, arguments[0], where)
        for bound in arguments[1:]:
            if value is not None and (refusal := bound.refusal(value)):
                raise ValueError(f"{where} must be {refusal}, not {value!r}")
        return value
    if origin is Literal:
        for known in arguments:
            if isinstance(value, type(known)) and not isinstance(value, bool) and value == known:
                return known
        raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {_shown(value)}")
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _checked(value, inner, where)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ValueError(f"{where} must be a tuple, not {_shown(value)}")
        inner = arguments[:-1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) != len(value):
            raise ValueError(f"{where} must have {len(arguments)} entries, not {_shown(value)}")
        return tuple(_checked(entry, kind, where) for entry, kind in zip(value, inner, strict=True))
    if origin is Sequence:
        # a string would be taken apart letter by letter, a set has no order; an array of NumPy is welcome
        if not isinstance(value, Collection) or isinstance(value, str | bytes | Set | Mapping):
            raise ValueError(f"{where} must be a list, not {_shown(value)}")
        entries = [_checked(entry, arguments[0], f"{where}[{i}]") for i, entry in enumerate(value)]
        return tuple(entries) if isinstance(value, tuple) else entries
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a dict, not {_shown(value)}")
        keys = [_checked(key, arguments[0], f"a key of {where}") for key in value]
        return {key: _checked(value[key], arguments[1], f"{where}[{key!r}]") for key in keys}
    if hint in (int, float, str):
        return _plain(value, hint, where)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ValueError(f"{where} must be of type {hint.__name__}, not {_shown(value)}")
    return value


def _plain(value: Any, hint: type, where: str) -> Any:
    """A number or string of exactly the type `hint`. Raises ValueError for one that files could not hold."""
    kind = {int: Integral, float: Real, str: str}[hint]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, not {_shown(value)}")
    if hint is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where} must be text that UTF-8 can encode, not {_shown(value)}") from None
        return str.__str__(value)
    if hint is int:
        if abs(int(value)) > LARGEST:
            raise ValueError(f"{where} must fit into 64 bits, not {_shown(value)}")
        return int(value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} must be a finite number, not {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """A value in a sentence: of a config its kind, of anything else its repr, cut where that is long."""
    try:
        text = f"{type(value).__name__}(...)" if isinstance(value, Config) else repr(value)
    except Exception:  # an integer too long to print, or a class with a faulty __repr__
        text = f"this {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
