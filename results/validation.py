"""Check plain data read from a file against the declared types of a record, with pydantic.

Types are strict: no text for a number, no bool for an int. Numbers that may be non-finite are declared as `Real`:
JSON has no NaN, so files hold the strings "NaN", "Infinity" and "-Infinity" instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from results.files import CorruptFile

SCHEMA = 2  # the newest version of the files; from 2 on they have a checksum
NON_FINITE = ("NaN", "Infinity", "-Infinity")
T = TypeVar("T")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in NON_FINITE else value


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError("must not be negative")
    return value


def _metrics(metrics: dict[str, float]) -> dict[str, float]:
    for name, value in metrics.items():
        last = name.rpartition(".")[2]
        if last == "accuracy" and not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {value:g}")
        if last == "loss" and value < 0:
            raise ValueError(f"{name} must not be negative, not {value:g}")
    return metrics


Real = Annotated[float, BeforeValidator(_number)]
NonNegative = Annotated[Real, AfterValidator(_not_negative)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Metrics = Annotated[dict[str, Real], AfterValidator(_metrics)]


def with_non_finite(value: Any) -> Any:
    """Plain data in which every text of `NON_FINITE` is a number again."""
    if isinstance(value, dict):
        return {key: with_non_finite(part) for key, part in value.items()}
    return [with_non_finite(part) for part in value] if isinstance(value, list) else _number(value)


def from_plain(cls: Callable[..., T], plain: dict[str, Any], path: Path, remedy: str) -> T:
    """Build a record, a dataclass, from the plain data in `path`. Raises CorruptFile if any part does not fit."""
    schema = plain.get("schema", 0)
    if isinstance(schema, int) and schema > SCHEMA:
        raise CorruptFile(f"{path} was written by a newer version (schema {schema}, known up to {SCHEMA})")
    fields = _adapters(cls)
    unknown = sorted(plain.keys() - fields.keys())
    missing = sorted(_required(cls) - plain.keys())
    if unknown or missing:
        raise CorruptFile(f"{path} does not fit: unknown fields {unknown}, missing fields {missing}; {remedy}")
    return cls(**{name: checked(fields[name], value, path, remedy, name) for name, value in plain.items()})


def checked(adapter: TypeAdapter[T], value: Any, path: Path, remedy: str, name: str = "") -> T:
    """The value as the type of `adapter`. Raises CorruptFile; `name` is the place of the value in the file."""
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in (*([name] if name else []), *first["loc"]))
        raise CorruptFile(f"{path} does not fit: {where or 'it'}: {first['msg']}; {remedy}") from None


@cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    """What checks each field; built once, for thousands of records are read."""
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}


@cache
def _required(cls: Any) -> frozenset[str]:
    missing = dataclasses.MISSING
    return frozenset(f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing)
