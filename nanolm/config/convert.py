"""Plain containers into frozen dataclasses, once and strictly; and back into YAML.

Nothing is guessed: an unknown or a missing key, a value of another type, outside its range or outside its
choices is a problem that names the dotted key, what was expected and what was found. All problems of one
configuration are told at once.
"""

import dataclasses
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import Field
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from nanolm.config.nearest import did_you_mean
from nanolm.config.schema import leaves, section_of, value_at
from nanolm.errors import ConfigError

C = TypeVar("C")

_MISFIT = object()
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
_LIMITS = (("minimum", ">="), ("above", ">"), ("below", "<"), ("maximum", "<="))


class _Excerpt(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python refuses to write out more than 4,300 digits
            return f"a number of {x.bit_length():,} bits"


_excerpt = _Excerpt()
_excerpt.maxstring = _excerpt.maxother = 80
_excerpt.maxlevel = 2  # aliases in YAML can make a short text an enormous value


def convert(schema: type[C], container: object) -> C:
    """Build ``schema``, a dataclass with dataclasses in it, from nested dictionaries.

    A float with a whole value passes as an int (``1e3``), an int as a float; text never passes as a number nor
    a bool as an int. NaN and infinities are refused.

    Raises:
        ConfigError: with one line for each problem.
    """
    problems: list[str] = []
    config: C = _section(schema, container, "", problems)
    report(problems)
    return config


def report(problems: list[str]) -> None:
    """Raise a ConfigError that tells all problems, if there are any."""
    if len(problems) > 1:
        raise ConfigError(f"{len(problems)} problems in the configuration:\n  " + "\n  ".join(problems))
    if problems:
        raise ConfigError(problems[0])


def _section(schema: type, container: object, prefix: str, problems: list[str]) -> Any:
    if not isinstance(container, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'configuration'}: expected keys and values, found {shown(container)}")
        return None
    names = [item.name for item in dataclasses.fields(schema)]
    for name in container:
        if name not in names:
            near = did_you_mean(str(name), names, f"{prefix}{{}}") or f"; its keys are {', '.join(names)}"
            problems.append(f"{prefix}{_excerpt.repr(name) if not isinstance(name, str) else name}: no such key{near}")
    values = {}
    for item in dataclasses.fields(schema):
        path = prefix + item.name
        if item.name not in container:
            problems.append(f"{path}: missing; expected {type_of(item)}{_meaning(item)}")
        elif (section := section_of(item.type)) and not (container[item.name] is None and section is not item.type):
            values[item.name] = _section(section, container[item.name], f"{path}.", problems)
        else:
            values[item.name] = _leaf(item, container[item.name], path, problems)
    return None if problems else schema(**values)


def _leaf(item: Field[Any], value: object, path: str, problems: list[str]) -> Any:
    fitted = _fit(item.type, value)
    if value is None and fitted is _MISFIT:
        problems.append(f"{path}: not given; expected {type_of(item)}{_meaning(item)}; write {path}=…")
    elif fitted is _MISFIT or not _in_range(item, fitted):
        problems.append(f"{path}: expected {type_of(item)}, found {shown(value)}{_hint(item, value, path)}")
    return fitted


def _fit(kind: Any, value: Any) -> Any:
    """The value as this type, or ``_MISFIT``."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return next((fitted for member in get_args(kind) if (fitted := _fit(member, value)) is not _MISFIT), _MISFIT)
    if origin is Literal:
        if isinstance(value, bool) and "on" in get_args(kind):  # YAML reads a bare on or off as a bool
            value = "on" if value else "off"
        return value if isinstance(value, str) and value in get_args(kind) else _MISFIT
    if origin is tuple:
        fitted = (
            [_fit(get_args(kind)[0], element) for element in value] if isinstance(value, list | tuple) else [_MISFIT]
        )
        return _MISFIT if _MISFIT in fitted else tuple(fitted)
    if isinstance(value, bool) or kind not in (int, float):
        return value if type(value) is kind else _MISFIT
    if not isinstance(value, int | float) or not _is_finite(value):
        return _MISFIT
    return kind(value) if kind is float or value == int(value) else _MISFIT


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def _in_range(item: Field[Any], value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_in_range(item, element) for element in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    minimum, above, below, maximum = (item.metadata.get(name) for name, _ in _LIMITS)
    return (
        (minimum is None or value >= minimum)
        and (maximum is None or value <= maximum)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def type_of(item: Field[Any]) -> str:
    """A field's type and range in words: ``a number > 0 and < 1, or null``."""
    words = []
    for member in get_args(item.type) if get_origin(item.type) in (Union, UnionType) else (item.type,):
        if get_origin(member) is Literal:
            choices = get_args(member)
            words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0])
        elif get_origin(member) is tuple:
            words.append(_list_of(item, get_args(member)[0]))
        elif member in (int, float):
            words.append(f"{_KINDS[member]} {_range(item)}".strip())
        else:
            words.append(_KINDS.get(member, "keys and values"))
    return ", or ".join(words)


def _list_of(item: Field[Any], element: Any) -> str:
    if get_origin(element) is Literal:
        return f"a list of any of {', '.join(get_args(element))}"
    return "a list of texts" if element is str else f"a list of whole numbers {_range(item)}"


def _range(item: Field[Any]) -> str:
    """A field's limits in words: ``>= 1 and <= 10^12``."""
    limits = [(sign, item.metadata[name]) for name, sign in _LIMITS if item.metadata[name] is not None]
    return " and ".join(f"{sign} {_number(limit)}" for sign, limit in limits)


def _meaning(item: Field[Any]) -> str:
    meaning = item.metadata.get("meaning")
    return f", {meaning}" if meaning else ""


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    power = f"{value:.0e}".replace("1e+", "10^").replace("^0", "^")
    return power if value >= 10**6 and float(power.replace("10^", "1e")) == value else f"{value:g}"


def shown(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {_excerpt.repr(value)}"
    return _excerpt.repr(value)


def typed(value: object) -> str:
    """A value as a user types it behind ``KEY=``."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return shown(value) if value is None or isinstance(value, bool) or value == "" else str(value)


def _hint(item: Field[Any], value: object, path: str) -> str:
    if get_origin(item.type) is tuple:
        return f"; write {path}=[first,second]" + (', numbers as "1"' if isinstance(value, list) else "")
    members = [item.type, *get_args(item.type)]
    if isinstance(value, str) and value.lower() == "none" and NoneType in members:
        return "; write null for none"
    if isinstance(value, str):
        choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
        return did_you_mean(value, choices)
    return "; write it in quotes" if str in members else ""


def flatten(config: object) -> dict[str, Any]:
    """``{"trainer.max_steps": 400, …}``: all leaves of a configuration by their dotted names."""
    return {name: value_at(config, name) for name, _ in leaves(type(config))}


def dotted(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """All leaves of nested dictionaries by their dotted names: ``flatten`` for what is no configuration yet."""
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def differences(there: object, now: object, changeable: tuple[str, ...]) -> list[str]:
    """Where two configurations differ, one line a key, but for keys that begin with one of ``changeable``."""
    before, after = flatten(there), flatten(now)
    return [
        f"  {name}: {typed(before.get(name))} there, {typed(after.get(name))} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(changeable)
    ]


def to_yaml(config: Any) -> str:
    """The configuration as YAML, every key in the order of its schema; ``from_yaml`` gives back an equal object."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=120)
    return text


def from_yaml(text: str, schema: type[C]) -> C:
    """Read what ``to_yaml`` wrote, as strictly as a composed configuration; tags that would make objects are refused.

    Raises:
        ConfigError: not YAML, or not this schema.
    """
    try:
        container = yaml.load(text, Loader=_Loader)  # a SafeLoader: no tag makes an object
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not a configuration in YAML: {' '.join(str(error).split())}") from None
    return convert(schema, container)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys: Iterator[str] = (str(key.value) for key, _ in node.value)
            raise yaml.constructor.ConstructorError(None, None, f"a key twice among {', '.join(keys)}", node.start_mark)
        return mapping
