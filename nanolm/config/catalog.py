"""Read what ``configs/`` holds for a script: its description, its groups, their choices, the values by default."""

import itertools
import sys
from pathlib import Path
from typing import Any

import yaml

from nanolm.config.convert import dotted
from nanolm.errors import ConfigError


def find_configs(script: str) -> Path:
    """Return ``configs/`` beside the folder of the running script, else of the source tree that holds nanolm."""
    running = getattr(sys.modules.get("__main__"), "__file__", None) or __file__
    folders = [Path(running).resolve().parent.parent / "configs", Path(__file__).resolve().parents[2] / "configs"]
    for folder in folders:
        if (folder / f"{script}.yaml").is_file():
            return folder
    raise ConfigError(f"{script}.yaml: not found in {' or '.join(map(str, folders))}; run from a clone")


def description(path: Path) -> list[str]:
    """Return the lines of the comment that a YAML file begins with, without Hydra's directives (``@package``)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return [line[2:].rstrip() for line in comment if not line.startswith("# @")]


def default_choices(config_dir: Path, script: str) -> dict[str, str | None]:
    """Return the groups of a script, each with its choice by default; None where nothing is chosen."""
    return {
        group: choice
        for entry in _read(config_dir / f"{script}.yaml").get("defaults", [])
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }


def choices(config_dir: Path, group: str, script: str = "") -> dict[str, str]:
    """Return the choices of a group, each with the first line of its description.

    Where the group has a folder with the script's name, the choices in that are the script's, ``<script>/<choice>``.
    """
    own = f"{script}/" if script and (config_dir / group / script).is_dir() else ""
    files = sorted((config_dir / group / own).glob("*.yaml"))
    return {own + file.stem: next(iter(description(file)), "") for file in files}


def default_values(config_dir: Path, script: str) -> dict[str, Any]:
    """Return the default of every key as its YAML file gives it, by dotted name.

    A key that the chosen file lacks has a default if all choices that have the key agree on it.
    """
    values = dict(dotted(_read(config_dir / f"{script}.yaml")))
    for group, chosen in default_choices(config_dir, script).items():
        if chosen is not None:
            files = [_read(config_dir / group / f"{choice}.yaml") for choice in (chosen, *choices(config_dir, group))]
            contents = [dict(dotted(content, f"{group}.")) for content in files]
            for name in dict.fromkeys(name for content in contents[1:] for name in content):
                found = [content[name] for content in contents if name in content]
                if name in contents[0] or all(value == found[0] for value in found):
                    values.setdefault(name, found[0])
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content
