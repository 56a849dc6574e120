"""Every number of every configuration has an upper limit, and whatever lies above it is refused by its key."""

import copy
import functools
import math
from dataclasses import Field
from typing import Any, get_args, get_origin

import pytest

from nanolm.config import from_yaml, load, to_yaml
from nanolm.config.catalog import SCRIPTS
from nanolm.config.compose import compose
from nanolm.config.convert import convert, type_of
from nanolm.config.schema import leaves
from nanolm.errors import ConfigError


def is_number(item: Field[Any]) -> bool:
    members = {item.type, *get_args(item.type)}
    return bool({int, float} & members) or any(get_origin(m) is tuple and int in get_args(m) for m in members)


NUMBERS = [
    (script, name, item) for script in SCRIPTS for name, item in leaves(SCRIPTS[script].schema) if is_number(item)
]
WORSE = [math.inf, -math.inf, math.nan, 10**400, 10**5000, -(10**5000)]


@functools.cache
def values_by_default(script: str) -> Any:
    return compose(script, ["data=sotu"] if script == "evaluate" else []).container


def container_of(script: str, name: str, item: Field[Any], value: Any) -> dict[str, Any]:
    """The script's values by default, with this one for a key."""
    container = copy.deepcopy(values_by_default(script))
    section: Any = container
    *sections, last = name.split(".")
    for part in sections:
        section = section[part]
    section[last] = [value] if get_origin(item.type) is tuple else value
    return container


def told(script: str, name: str, item: Field[Any], value: Any) -> list[str]:
    """What is said of a key with this value."""
    try:
        convert(SCRIPTS[script].schema, container_of(script, name, item, value))
    except ConfigError as error:
        return [line.strip() for line in str(error).splitlines() if line.strip().startswith(f"{name}: expected")]
    return []


def test_the_keys_are_found() -> None:
    found = {(script, name) for script, name, _ in NUMBERS}
    assert {("train", "trainer.max_steps"), ("train", "seed"), ("train", "evaluate.calibration_sizes")} <= found
    assert {("sample", "temperature"), ("evaluate", "data.max_documents"), ("baseline", "task.l2")} <= found


@pytest.mark.parametrize(("script", "name", "item"), NUMBERS, ids=[f"{script}-{name}" for script, name, _ in NUMBERS])
def test_every_number_has_an_upper_limit(script: str, name: str, item: Field[Any]) -> None:
    maximum, below = item.metadata["maximum"], item.metadata["below"]
    limit = below if maximum is None else maximum
    assert limit is not None, f"{name}: declare maximum or below"
    assert "<" in type_of(item)
    assert bool(told(script, name, item, limit)) == (maximum is None)
    for value in (2 * limit, *WORSE):
        assert told(script, name, item, value), value


@pytest.mark.parametrize("value", ["1e99", "1e400", "-1e400", "inf", "nan", ".inf", "9" * 30, "9" * 5000, "1e12000"])
@pytest.mark.parametrize("name", ["trainer.max_steps", "trainer.max_seconds", "seed", "evaluate.calibration_sizes"])
def test_a_command_line_refuses_what_no_number_can_be(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load("train", [f"{name}=[{value}]" if name.endswith("sizes") else f"{name}={value}"])
    assert str(raised.value).startswith(f"{name}: expected ")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("value", ["1.0e+99", "1.0e+400", ".inf", ".nan", "9" * 30, "9" * 5000, "0x" + "f" * 5000])
def test_a_file_is_refused_as_well(value: str) -> None:
    text = to_yaml(load("train"))
    with pytest.raises(ConfigError):
        from_yaml(text.replace("seed: 0\n", f"seed: {value}\n", 1), SCRIPTS["train"].schema)
