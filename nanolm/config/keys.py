"""The parts of a schema: frozen classes, keys with a meaning and a type, and rules next to their keys.

    class TrainerConfig(Configuration):
        batch_size: Size = key("sequences per step")
        micro_batch_size: Size | None = key("sequences per forward pass (null: the whole batch)")

        @rules
        def _fits(self) -> Iterator[str]:
            if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
                yield f"micro_batch_size: expected at most batch_size, {self.batch_size}, found {self.micro_batch_size}"

pydantic validates, and all problems of a configuration are reported at once: unknown and missing keys, values of
another type or outside their range. Only a float with a whole value passes as an int (``1e3``), and an int as a float.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from types import NoneType
from typing import Any, Literal, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as validated

from nanolm.config.nearest import did_you_mean
from nanolm.config.words import expected, members, shown
from nanolm.errors import ConfigError


def key(meaning: str, **flags: Any) -> Any:
    """Declare a key with its meaning, which is its help text too, and the flags of ``Key`` that it sets."""
    return Field(description=meaning, json_schema_extra=flags)


display_key = partial(key, changeable=True, compared=False)
"""Declare a key that changes what is kept and shown, but nothing that is computed."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Configuration:
    """A frozen dataclass whose constructor checks every value and raises ConfigError with all problems.

    A field whose type is a Configuration is a section; its meaning is the docstring of its class.
    """

    def __init_subclass__(cls) -> None:
        validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
        construct: Any = cls.__init__

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            with explained(cls):
                construct(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[method-assign]


def rules(check: Callable[[Any], Iterator[str]]) -> Any:
    """Turn a method that yields a line ``key: problem`` for each broken rule into a validator of its class."""

    def validate(self: Any) -> Any:
        if problems := list(check(self)):
            raise ValueError(*problems)
        return self

    return model_validator(mode="after")(validate)


class BrokenRule(ConfigError):
    """Every value has a type and range that fits its key, but some rule is broken."""


@contextlib.contextmanager
def explained(schema: type) -> Iterator[None]:
    """Turn pydantic's ValidationError in this block into a ConfigError."""
    try:
        yield
    except ValidationError as error:
        only_rules = all(item["type"] == "value_error" for item in error.errors())
        raise (BrokenRule if only_rules else ConfigError)(combined(_problems(schema, error))) from None


def combined(problems: list[str]) -> str:
    """Join all problems of a configuration into one message."""
    count = f"{len(problems)} problems in the configuration:\n  " if len(problems) > 1 else ""
    return count + "\n  ".join(problems)


@dataclass(frozen=True)
class Key:
    """A key as ``key`` declares it.

    Attributes:
        kind: its type, with its range.
        meaning: its description in messages and on the help page.
        choices: the choices of its section that have it; () if all do.
        place: what its value names on this machine, one of ``nanolm.config.inputs.CHECKS``.
        changeable: whether a continued run may give another value.
        compared: whether a comparison tells runs apart by its values.
        grows_memory: whether a smaller value saves memory.
    """

    kind: Any
    meaning: str
    choices: tuple[str, ...] = ()
    place: str | None = None
    changeable: bool = False
    compared: bool = True
    grows_memory: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the value is free text."""
        return str in members(self.kind)

    @property
    def is_nullable(self) -> bool:
        """Whether null is a value."""
        return NoneType in members(self.kind)


def sections_of(kind: Any) -> dict[str, type]:
    """Return the configurations that a type holds, each under the name of its choice; none for the type of a leaf."""
    sections = [member for member in members(kind) if isinstance(member, type) and is_dataclass(member)]
    if len(sections) == 1:
        return {"": sections[0]}
    return {name: section for section in sections for name in get_args(get_type_hints(section)["name"])}


def leaves(schema: type, prefix: str = "") -> dict[str, Key]:
    """Return every key of a schema by its dotted name, in order, with the keys of all choices of a section."""
    found: dict[str, Key] = {}
    for name, kind in get_type_hints(schema, include_extras=True).items():
        path = f"{prefix}{name}"
        by_choice = {choice: leaves(section, f"{path}.") for choice, section in sections_of(kind).items()}
        if not by_choice:
            declared = schema.__pydantic_fields__[name]  # type: ignore[attr-defined]
            found[path] = Key(kind, declared.description or "", **(declared.json_schema_extra or {}))
        for keys in by_choice.values():
            for leaf, key in keys.items():
                having = tuple(choice for choice, others in by_choice.items() if leaf in others)
                found.setdefault(leaf, replace(key, choices=() if len(having) == len(by_choice) else having))
        if len(by_choice) > 1:
            found[f"{path}.name"] = Key(Literal[tuple(by_choice)], f"the {path}, set by {path}=NAME")
    return found


def _problems(schema: type, error: ValidationError) -> list[str]:
    """Describe what pydantic found, one line for each key or broken rule."""
    problems: dict[str, list[str]] = {}
    for item in error.errors():
        path, kind = _locate(schema, item["loc"])
        if item["type"] == "value_error":
            joint = "" if not path else "." if sections_of(kind) else ": "
            lines = [f"{path}{joint}{line}" for line in item["ctx"]["error"].args]
        else:
            lines = [_problem(schema, path, kind, item)]
        problems.setdefault(path, lines)  # a union has one error for each of its members
    return [line for lines in problems.values() for line in lines]


def _locate(schema: type, loc: tuple[int | str, ...]) -> tuple[str, Any]:
    """Return the dotted name and the type of the key that an error of pydantic is about; no type if it is unknown."""
    path: list[str] = []
    kind: Any = schema
    for part in loc:
        sections = sections_of(kind)
        if len(sections) > 1 and part in sections:
            kind = sections[str(part)]
        elif sections:
            path.append(part if isinstance(part, str) else shown(part))
            kind = get_type_hints(next(iter(sections.values())), include_extras=True).get(str(part))
        else:  # an element of a list, or a member of a union
            break
    return ".".join(path), kind


def _problem(schema: type, path: str, kind: Any, item: Any) -> str:
    """Describe one error: the key, what was expected, what was found, and a hint."""
    value, keys = item["input"], leaves(schema)
    if kind is None:
        if path in keys:
            return f"{path}: no such key; only {path.rpartition('.')[0]}={'|'.join(keys[path].choices)} has it"
        near = did_you_mean(path, {**get_type_hints(schema), **keys}) or "; --help lists them all"
        return f"{path}: no such key{near}"
    if item["type"].startswith("union_tag"):  # the name of a choice
        path, kind = f"{path}.name", Literal[tuple(sections_of(kind))]
        value = value.get("name") if isinstance(value, dict) else value
    if item["type"] == "missing" or (value is None and not sections_of(kind)):
        meaning = f" ({keys[path].meaning})" if path in keys else ""
        return f"{path}: required: expected {expected(kind)}{meaning}"
    return f"{path or 'configuration'}: expected {expected(kind)}, found {shown(value)}{_hint(kind, value, path)}"


def _hint(kind: Any, value: object, path: str) -> str:
    types = members(kind)
    if any(get_origin(member) is tuple for member in types):
        return f"; a list is written as {path}=[first,second]" + ("" if isinstance(value, str) else ', a text as "1"')
    if isinstance(value, str) and value.lower() == "none" and NoneType in types:
        return "; write null for none"
    if isinstance(value, str):
        return did_you_mean(value, [choice for member in types for choice in get_args(member)])
    return "; write it in quotes" if str in types else ""
