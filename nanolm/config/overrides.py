r"""Command line arguments made fit for Hydra: keys checked, free text quoted.

Hydra's override grammar gives commas, parentheses, quotes, ``${`` and more a meaning. A shell user who writes
``prompt="What's up? (x=1), yes"`` means that text, so the value of every key that the schema marks ``text`` is
quoted here, and arrives as it was typed: also ``'quoted'``, ``${x}``, ``???``, an empty text, line breaks, spaces
at the ends. Two exceptions, both only where they have a meaning:

- ``null`` is no value where the key allows none (``data.path=null``); write ``./null`` for a file of that name.
- In a sweep a comma separates the values of such a key, unless the value is in quotes of its own:
  ``-m prompt=Yes,No`` is two prompts, ``-m prompt="'Yes, no'"`` is one. Inside such quotes ``\'`` and ``\\``
  stand for a quote and a backslash.

A key that the schema lacks is refused here with the nearest one that it has, whether written ``key=``, ``+key=``
or ``++key=``; every key of the schema has a value already, so a ``+`` before it means nothing and is dropped.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from typing import Any, get_args, get_origin

from nanolm.config.catalog import Script
from nanolm.config.convert import shown, type_of
from nanolm.config.nearest import did_you_mean
from nanolm.config.schema import leaves, section_of
from nanolm.errors import ConfigError

_OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~|)(?P<key>[^=]*)(?P<equal>=?)(?P<value>.*)", re.DOTALL)
_SWEPT_TEXT = re.compile(
    r"""\s*(?: '(?P<single>(?:[^'\\]|\\.)*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<bare>[^,]*?) )\s*(?:,|\Z)""",
    re.DOTALL | re.VERBOSE,
)
_HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir")


def quote(text: str) -> str:
    """A text as an element of Hydra's grammar that arrives as exactly this text.

    Two readers follow each other: the grammar, where a backslash counts before a quote and at the end, and
    OmegaConf's interpolation, where it counts before ``${``.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'"


def prepare(script: Script, groups: Mapping[str, Any], overrides: Iterable[str], *, sweep: bool = False) -> list[str]:
    """Check the overrides' keys against a script's schema and quote its free text.

    Args:
        groups: the script's config groups with their choice by default.
        sweep: whether a value may be several, one for each job.

    Returns:
        overrides for Hydra.

    Raises:
        ConfigError: an argument that is none, a key that the schema lacks, several values without a sweep.
    """
    keys = dict(leaves(script.schema))
    prepared: list[tuple[str, str]] = []
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        assert match is not None, "the pattern takes any text"
        prefix, key, value = match["prefix"], match["key"], match["value"]
        if key in _HYDRA_PATHS and match["equal"]:
            prepared.append((key, f"{key}={quote(value)}"))
        elif key.startswith(("hydra.", "hydra/")):
            prepared.append((key, override))
        else:
            _check(script, keys, groups, prefix, key, match["equal"], override)
            if key in keys and keys[key].metadata["text"]:
                prepared.append((key, f"{key}={_text(value, type(None) in get_args(keys[key].type), sweep)}"))
            elif key in groups and groups[key] is None and value.strip() == "null":
                prepared = [pair for pair in prepared if pair[0] != key]  # Hydra refuses to take a choice back
            else:
                _check_value(key, value, keys.get(key), sweep)
                prepared.append((key, f"{key}={value}"))
    for key, _ in prepared:
        _check_section_chosen(script, key, [chosen for chosen, _ in prepared])
    return [override for _, override in prepared]


def swept_texts(value: str) -> list[str | None]:
    """The values of a free text in a sweep; None for a bare ``null``."""
    texts: list[str | None] = []
    position = 0
    while True:
        match = _SWEPT_TEXT.match(value, position)
        assert match is not None, "the bare alternative takes any text"
        quoted = match["single"] if match["single"] is not None else match["double"]
        if quoted is None:
            texts.append(None if match["bare"] == "null" else match["bare"])
        else:
            texts.append(re.sub(r"\\(['\"\\])", r"\1", quoted))
        position = match.end()
        if not match[0].endswith(","):
            return texts


def _text(value: str, nullable: bool, sweep: bool) -> str:
    if not sweep:
        return "null" if nullable and value == "null" else quote(value)
    texts = swept_texts(value)
    return ",".join("null" if nullable and text is None else quote("null" if text is None else text) for text in texts)


def _check(
    script: Script, keys: Mapping[str, Any], groups: Mapping[str, Any], prefix: str, key: str, equal: str, override: str
) -> None:
    known = [*keys, *groups]
    if key not in known:
        inside = [name for name in keys if name.startswith(f"{key}.")]
        if inside:
            raise ConfigError(f"{key}: a section takes no value; set its keys one by one, such as {inside[0]}=VALUE")
        if not equal and not prefix and not did_you_mean(key, known):
            raise ConfigError(
                f"{override!r}: expected KEY=VALUE; if this belongs to a text with spaces, "
                "put the whole of KEY=VALUE in quotes"
            )
        near = did_you_mean(key, known) or "; --help lists them all"
        raise ConfigError(f"{key or override}: scripts/{script.name}.py has no such key{near}")
    if prefix == "~":
        raise ConfigError(f"{override}: every key needs a value and none can be taken away; null turns off what can be")
    if not equal:
        raise ConfigError(f"{override}: expected KEY=VALUE; write {key}=VALUE")


def _check_value(key: str, value: str, item: Field[Any] | None, sweep: bool) -> None:
    """Check that Hydra can read a value; that of a group, which has no field, must name one choice or several."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob
    from hydra.errors import HydraException

    expected = type_of(item) if item else "the name of a choice (--help lists them)"
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
    except (HydraException, ValueError, RecursionError):
        raise ConfigError(f"{key}: expected {expected}, found {shown(value)}, which cannot be read") from None
    if parsed.is_sweep_override() and not sweep:
        many = f"write {key}=[…]" if item and get_origin(item.type) is tuple else "add -m for one run with each"
        raise ConfigError(f"{key}: expected one value, found several, {shown(value)}; {many}")
    chosen = parsed.value()
    if isinstance(chosen, Glob):
        if item is not None:
            raise ConfigError(f"{key}: expected {expected}, found {shown(value)}; glob(…) is for names of choices")
        return
    names = chosen.list if isinstance(chosen, ChoiceSweep) else [chosen]
    if item is None and not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{key}: expected {expected}, found {shown(value)}")


def _check_section_chosen(script: Script, key: str, given: list[str]) -> None:
    section, dot, _ = key.partition(".")
    kinds = {item.name: item.type for item in fields(script.schema)}
    kind = kinds.get(section)
    if dot and section_of(kind) is not None and section_of(kind) is not kind and section not in given:
        raise ConfigError(
            f"{key}: {section} is null unless it is chosen; give {section}=NAME too, such as {section}=text"
        )
