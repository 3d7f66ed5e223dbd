"""Does a config let no misfit pass? Fields, types, bounds, and one clear sentence for each refusal."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest

from ldn.config import AtLeast, Between, Config, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    size: Annotated[int, AtLeast(1)] = 1


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    name: ClassVar[str] = "example"

    width: Annotated[int, AtLeast(1)] = 128
    share: Annotated[float, Between(0, 1)] = 0.5
    norm: Literal["pre", "post"] = "pre"
    level: Literal[0, 1] = 0
    flag: bool = False
    label: str = ""
    steps: Annotated[int, AtLeast(0)] | None = None
    grid: tuple[int, int] | None = None
    seeds: tuple[Annotated[int, AtLeast(0)], ...] = ()
    inner: Inner = Inner()
    rates: Sequence[float] = ()
    inners: Mapping[str, Sequence[Inner]] = field(default_factory=dict, hash=False)
    anything: Any = None


@dataclass(frozen=True, kw_only=True)
class Longest(Config):
    text: str = "x" * 99


@dataclass(frozen=True, kw_only=True)
class Longer(Example):
    extra: int = 0


ACCEPTED: list[tuple[dict[str, Any], Any]] = [
    ({"width": 1}, 1),
    ({"share": 0}, 0.0),
    ({"share": 1}, 1.0),
    ({"norm": "post"}, "post"),
    ({"level": 1}, 1),
    ({"flag": True}, True),
    ({"label": "a b"}, "a b"),
    ({"steps": None}, None),
    ({"steps": 0}, 0),
    ({"grid": (2, 3)}, (2, 3)),
    ({"grid": [2, 3]}, (2, 3)),
    ({"seeds": ()}, ()),
    ({"seeds": [0, 1, 2]}, (0, 1, 2)),
    ({"inner": Inner(size=3)}, Inner(size=3)),
    ({"rates": (1, 0.5)}, (1.0, 0.5)),
    ({"rates": [1]}, [1.0]),
    ({"rates": range(2)}, [0.0, 1.0]),
    ({"inners": {"a": [Inner()], "b": ()}}, {"a": [Inner()], "b": ()}),
    ({"inners": types.MappingProxyType({"a": ()})}, {"a": ()}),
    ({"anything": {3}}, {3}),
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"width": 0}, "Example.width must be at least 1, not 0"),
    ({"width": "8"}, "Example.width must be of type int, not '8'"),
    ({"width": 8.0}, "Example.width must be of type int, not 8.0"),
    ({"width": True}, "Example.width must be of type int, not True"),
    ({"width": None}, "Example.width must be of type int, not None"),
    ({"share": 1.5}, "Example.share must be between 0 and 1, not 1.5"),
    ({"share": -1}, "Example.share must be between 0 and 1, not -1.0"),
    ({"share": math.nan}, "Example.share must be a finite number, not nan"),
    ({"share": False}, "Example.share must be of type float, not False"),
    ({"share": "half"}, "Example.share must be of type float, not 'half'"),
    ({"norm": "per"}, "Example.norm must be one of 'pre', 'post', not 'per'"),
    ({"norm": None}, "Example.norm must be one of 'pre', 'post', not None"),
    ({"level": 2}, "Example.level must be one of 0, 1, not 2"),
    ({"level": True}, "Example.level must be one of 0, 1, not True"),
    ({"flag": 1}, "Example.flag must be of type bool, not 1"),
    ({"label": 3}, "Example.label must be of type str, not 3"),
    ({"steps": -1}, "Example.steps must be at least 0, not -1"),
    ({"steps": 1.5}, "Example.steps must be of type int, not 1.5"),
    ({"grid": 4}, "Example.grid must be a tuple, not 4"),
    ({"grid": (1, 2, 3)}, r"Example.grid must have 2 entries, not \(1, 2, 3\)"),
    ({"grid": (1, "2")}, "Example.grid must be of type int, not '2'"),
    ({"seeds": 3}, "Example.seeds must be a tuple, not 3"),
    ({"seeds": (1, -1)}, "Example.seeds must be at least 0, not -1"),
    ({"inner": 3}, "Example.inner must be of type Inner, not 3"),
    ({"inner": {"size": 3}}, "Example.inner must be of type Inner, not {'size': 3}"),
    ({"inner": Longest()}, r"Example.inner must be of type Inner, not Longest\(\.\.\.\)"),
    ({"width": "8" * 99}, r"Example.width must be of type int, not '8{76}\.\.\."),
    ({"rates": 0.1}, "Example.rates must be a list, not 0.1"),
    ({"rates": "0.1"}, "Example.rates must be a list, not '0.1'"),
    ({"rates": {0.1}}, "Example.rates must be a list, not {0.1}"),
    ({"rates": {0.1: 1}}, "Example.rates must be a list, not {0.1: 1}"),
    ({"rates": [0.1, "2"]}, r"Example.rates\[1\] must be of type float, not '2'"),
    ({"inners": [Inner()]}, r"Example.inners must be a dict, not \[Inner\(size=1\)\]"),
    ({"inners": {3: []}}, "a key of Example.inners must be of type str, not 3"),
    ({"inners": {"a": Inner()}}, r"Example.inners\['a'\] must be a list, not Inner\(\.\.\.\)"),
    ({"inners": {"a": [Inner(), 3]}}, r"Example.inners\['a'\]\[1\] must be of type Inner, not 3"),
]


@pytest.mark.parametrize(("values", "stored"), ACCEPTED, ids=str)
def test_a_value_that_fits_is_stored_in_its_field_s_type(values: dict[str, Any], stored: Any) -> None:
    (name,) = values
    got = getattr(Example(**values), name)
    assert got == stored and type(got) is type(stored)


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_a_value_that_does_not_fit_raises_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Example(**values)


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_a_changed_copy_is_checked_as_well(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Example(), **values)


def test_an_unknown_field_raises_and_lists_the_known_ones() -> None:
    known = "width, share, norm, level, flag, label, steps, grid, seeds, inner, rates, inners, anything"
    with pytest.raises(ValueError, match=f"^Example has no field 'widht'; known fields: {known}$"):
        Example(widht=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=f"^Longer has no field 'extar'; known fields: {known}, extra$"):
        Longer(extar=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Inner has no field 'name'; known fields: size"):
        Inner(name="x")  # type: ignore[call-arg]


def test_refuse_unknown_accepts_what_is_known() -> None:
    refuse_unknown(Example, {"width": 1, "inner": None})
    refuse_unknown(Example, [])
    with pytest.raises(ValueError, match="Example has no field 'name'"):
        refuse_unknown(Example, ["width", "name"])


def test_fields_are_given_by_name_and_never_change() -> None:
    with pytest.raises(TypeError):
        Example(3)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().width = 3  # type: ignore[misc]


def test_equal_content_is_equal_and_hashes_alike() -> None:
    assert Example(share=1, seeds=[1, 2]) == Example(share=1.0, seeds=(1, 2))  # type: ignore[arg-type]
    assert len({Example(share=1), Example(share=1.0), Example(width=3)}) == 2
    assert Example() != Longer()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_configs_survive_copying_and_pickling(duplicate: Any) -> None:
    config = Longer(width=3, grid=(2, 3), inner=Inner(size=2), extra=1)
    assert duplicate(config) == config and type(duplicate(config)) is Longer


@pytest.mark.parametrize(
    ("bound", "inside", "outside", "refusal"),
    [
        (AtLeast(1), (1, 1.5, math.inf), (0, -math.inf, math.nan), "at least 1"),
        (Between(0, 0.5), (0, 0.25, 0.5), (-0.1, 0.6, math.nan, math.inf), "between 0 and 0.5"),
    ],
)
def test_bounds_include_their_ends_and_no_nan(bound: Any, inside: tuple, outside: tuple, refusal: str) -> None:
    assert all(bound.refusal(value) is None for value in inside)
    assert all(bound.refusal(value) == refusal for value in outside)
