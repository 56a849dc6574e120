r"""Prepare command line arguments for Hydra: check their keys, quote free text.

Hydra's override grammar gives commas, parentheses, quotes, ``${`` and more a meaning. A shell user who writes
``prompt="What's up? (x=1), yes"`` means that text, so the value of every key whose type is text is quoted here and
arrives exactly as typed. Two exceptions, both only where they have a meaning:

- ``null`` means none where the key allows none (``out=null``); write ``./null`` for a folder of that name.
- In a sweep a comma separates the values of such a key, unless the value is in quotes of its own:
  ``-m prompt=Yes,No`` is two prompts, ``-m prompt="'Yes, no'"`` is one. Inside such quotes ``\'`` and ``\\``
  stand for a quote and a backslash.

Every key of the schema has a value already, so a ``+`` or ``++`` before it means nothing and is dropped.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_origin

from nanolm.config.catalog import default_choices
from nanolm.config.keys import Key, leaves
from nanolm.config.nearest import did_you_mean
from nanolm.config.schema import SCHEMAS
from nanolm.config.words import expected, members, shown
from nanolm.errors import ConfigError

# One value of a sweep over texts, up to its comma: in quotes, or bare.
_SWEPT_TEXT = re.compile(r"""\s*(?:(['"])((?:\\.|(?!\1)[^\\])*)\1|([^,]*?))\s*,""", re.DOTALL)


def quote(text: str) -> str:
    """Quote a text so that Hydra's override grammar reads exactly this text.

    Two parsers follow each other: the grammar, where a backslash counts before a quote and at the end, and
    OmegaConf's interpolation, where it counts before ``${``.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'"


def prepare(script: str, overrides: Iterable[str], config_dir: Path, *, sweep: bool = False) -> list[str]:
    """Check the keys of overrides against a script's schema and its groups, and quote their free text for Hydra.

    With ``sweep`` a value may be several, one for each job.

    Raises:
        ConfigError: an argument that is no override, an unknown key, several values without a sweep.
    """
    keys, groups = leaves(SCHEMAS[script]), default_choices(config_dir, script)
    prepared: dict[str, str] = {}  # the last value of a key counts
    for override in overrides:
        typed, equal, value = override.partition("=")
        key = typed.removeprefix("+").removeprefix("+")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and equal:
            prepared[key] = f"{key}={quote(value)}"
        elif key.startswith(("hydra.", "hydra/")):
            prepared[key] = override
        elif key not in keys and key not in groups:
            raise ConfigError(_unknown(script, override, key, [*keys, *groups]))
        elif not equal:
            raise ConfigError(f"{override}: expected KEY=VALUE; write {key}=VALUE")
        elif key in groups and groups[key] is None and value.strip() == "null":
            prepared.pop(key, None)  # Hydra refuses to take a choice back
        elif key in keys and keys[key].is_text:
            prepared[key] = f"{_adding(keys[key])}{key}={_text(value, keys[key].is_nullable, sweep)}"
        else:
            _check_value(key, value, keys.get(key), sweep)
            prepared[key] = f"{_adding(keys.get(key))}{key}={value}"
    for key in prepared:
        section, dot, _ = key.partition(".")
        if dot and section in groups and groups[section] is None and section not in prepared:
            raise ConfigError(f"{key}: {section} is null unless it is chosen; give {section}=NAME too")
    return list(prepared.values())


def swept_texts(value: str) -> list[str | None]:
    """Split the values of a free text in a sweep; a bare ``null`` becomes None."""
    return [
        re.sub(r"\\(['\"\\])", r"\1", quoted) if mark else None if bare == "null" else bare
        for mark, quoted, bare in _SWEPT_TEXT.findall(f"{value},")
    ]


def _text(value: str, nullable: bool, sweep: bool) -> str:
    texts = swept_texts(value) if sweep else [None if value == "null" else value]
    return ",".join("null" if nullable and text is None else quote("null" if text is None else text) for text in texts)


def _adding(key: Key | None) -> str:
    """Return the prefix that makes room for a key of some choices only: Hydra does not know which one will be made."""
    return "++" if key and key.choices else ""


def _unknown(script: str, override: str, key: str, known: list[str]) -> str:
    """Explain why an argument is no override of a known key."""
    if inside := [name for name in known if name.startswith(f"{key}.")]:
        return f"{key}: a section takes no value; set its keys one by one, such as {inside[0]}=VALUE"
    if key.startswith("~"):
        return f"{override}: keys cannot be removed; null turns off those that are optional"
    near = did_you_mean(key, known)
    if override == key and not near:
        return f"{override!r}: expected KEY=VALUE; quote the whole argument if the value has spaces"
    return f"{key or override}: scripts/{script}.py has no such key{near or '; --help lists them all'}"


def _check_value(name: str, value: str, key: Key | None, sweep: bool) -> None:
    """Check that Hydra can read a value; that of a group, which has no key, must name one choice or several."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob
    from hydra.errors import HydraException

    problem = f"{name}: expected {expected(key.kind) if key else 'the name of a choice'}, found {shown(value)}"
    try:
        parsed = OverridesParser.create().parse_override(f"{name}={value}")
    except (HydraException, ValueError, RecursionError):
        raise ConfigError(f"{problem}, which cannot be read") from None
    if parsed.is_sweep_override() and not sweep:
        is_list = key is not None and any(get_origin(member) is tuple for member in members(key.kind))
        raise ConfigError(f"{problem}; {f'write {name}=[…]' if is_list else 'add -m for one run with each'}")
    chosen = parsed.value()
    names = chosen.list if isinstance(chosen, ChoiceSweep) else [chosen]
    if key is None and not all(isinstance(each, str | Glob) and each for each in names):
        raise ConfigError(f"{problem}; --help lists them")
