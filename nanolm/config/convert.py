"""Convert configurations to and from plain containers and YAML, and compare two of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nanolm.config.keys import explained, leaves
from nanolm.config.words import typed
from nanolm.errors import ConfigError, sentence

C = TypeVar("C")


def convert(schema: type[C], container: object) -> C:
    """Build a configuration from nested dictionaries.

    Raises:
        ConfigError: with one line for each problem.
    """
    with explained(schema):
        config: C = schema.__pydantic_validator__.validate_python(container)  # type: ignore[attr-defined]
    return config


def dotted(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dictionaries with their dotted names."""
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def flatten(config: Any) -> dict[str, Any]:
    """Return the leaves of a configuration by their dotted names: ``{"trainer.max_steps": 400, …}``."""
    return dict(dotted(dataclasses.asdict(config)))


def differences(before: object, now: object) -> list[str]:
    """Return a line for each key that differs between two configurations and that no continued run may change."""
    keys, there, here = leaves(type(now)), flatten(before), flatten(now)
    return [
        f"  {name}: {typed(there.get(name))} there, {typed(here.get(name))} now"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not keys[name].changeable
    ]


def to_yaml(config: Any) -> str:
    """Write a configuration as YAML, from which ``from_yaml`` makes an equal object."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=120)
    return text


def from_yaml(text: str, schema: type[C]) -> C:
    """Read what ``to_yaml`` wrote, as strictly as a composed configuration; no tag of YAML makes an object.

    Raises:
        ConfigError: not YAML, or not this schema.
    """
    try:
        container = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not a configuration in YAML: {' '.join(str(error).split())}") from None
    return convert(schema, container)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = ", ".join(str(key.value) for key, _ in node.value)
            raise yaml.constructor.ConstructorError(None, None, f"a key twice among {keys}", node.start_mark)
        return mapping


def check_same_config(config: object, run_dir: Path) -> None:
    """Raise ConfigError if the directory's ``config.yaml``, if there is one, is that of another run."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    advice = "another hydra.run.dir for a new run."
    try:
        before = from_yaml(path.read_text(encoding="utf-8"), type(config))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected the configuration of this run as this version of nanolm writes it: {sentence(error)}\n"
            f"If the file was changed, restore it; if an older version wrote it, use that version, or give {advice}"
        ) from None
    if differing := "\n".join(differences(before, config)):
        raise ConfigError(
            f"{run_dir}: this directory holds a run with another configuration:\n{differing}\n"
            f"Give the same values to continue it, or {advice}"
        )
