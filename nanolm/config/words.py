"""Describe types and values for messages and help pages."""

import reprlib
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
_LIMITS = (("ge", ">="), ("gt", ">"), ("lt", "<"), ("le", "<="))


def members(kind: Any) -> list[Any]:
    """Return the types of a union without their annotations; for any other type, itself."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for argument in get_args(kind) for member in members(argument)]
    return [kind]


def expected(kind: Any) -> str:
    """Describe a type and its range: ``a number > 0 and < 1, or null``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = " and ".join(f"{sign} {_number(limit)}" for sign, limit in limits_of(kind))
        return f"{expected(arguments[0])} {limits}".strip()
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(map(expected, arguments)))
    if origin is Literal:
        return f"one of {', '.join(arguments)}" if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        one = expected(arguments[0]).replace("a whole number", "whole numbers").replace("one of", "any of")
        return f"a list of {'texts' if one == 'text' else one}"
    return _KINDS.get(kind, "keys and values")


def limits_of(kind: Any) -> list[tuple[str, float]]:
    """Return the limits of an annotated number, each with its sign: ``[(">=", 1), ("<=", 100)]``."""
    found = [limit for item in get_args(kind)[1:] if isinstance(item, FieldInfo) for limit in item.metadata]
    return [(sign, getattr(limit, name)) for name, sign in _LIMITS for limit in found if hasattr(limit, name)]


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    power = f"{value:.0e}".replace("1e+", "10^").replace("^0", "^")
    return power if value >= 10**6 and float(power.replace("10^", "1e")) == value else f"{value:g}"


class _Excerpt(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python refuses to write out more than 4,300 digits
            return f"a number of {x.bit_length():,} bits"


_excerpt = _Excerpt()
_excerpt.maxstring = _excerpt.maxother = 80
_excerpt.maxlevel = 2  # aliases in YAML can make a short text an enormous value


def shown(value: object) -> str:
    """Describe a value for a message, shortened where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"the text {_excerpt.repr(value)}" if isinstance(value, str) else _excerpt.repr(value)


def typed(value: object) -> str:
    """Write a value as a user types it behind ``KEY=``."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return shown(value) if value is None or isinstance(value, bool) else str(value) or '""'
