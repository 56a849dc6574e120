"""Hydra composes the YAML files; everything it may say about that is told in one message of ours."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolm.config.catalog import SCRIPTS, default_choices, find_configs
from nanolm.config.convert import convert, shown
from nanolm.config.nearest import did_you_mean
from nanolm.config.overrides import prepare
from nanolm.config.validation import check_inputs, validate
from nanolm.errors import ConfigError

VERSION_BASE = "1.3"


@dataclass(frozen=True)
class Composition:
    """A script's configuration as nested dictionaries, and what it says of ``hydra.*``.

    ``swept`` is ``hydra.sweeper.params``: values that a study's YAML file sweeps, ``{"seed": "0,1,2"}``.
    """

    container: Any
    run_directory: str
    sweep_directory: str
    swept: dict[str, str]


def load(script: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Any:
    """The frozen configuration of ``scripts/<script>.py`` called with these overrides.

    Args:
        script: ``"train"``, ``"tokenize"``, ``"evaluate"`` or ``"sample"``.
        overrides: as on the command line, ``["model=micro", "trainer.max_steps=100"]``; free text needs no quotes.
        config_dir: the folder of YAML files; by default ``configs/`` of the source tree.

    Returns:
        an object of the script's schema in ``nanolm.config.schema``.

    Raises:
        ConfigError: anything wrong with the overrides, the values, or the files and devices that they name.
    """
    return finish(script, compose(script, overrides, config_dir).container)


def finish(script: str, container: object) -> Any:
    """Convert and check a composed container; see ``load``."""
    config: Any = convert(SCRIPTS[script].schema, container)
    validate(config)
    check_inputs(config)
    return config


def compose(script: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composition:
    """Let Hydra compose ``configs/<script>.yaml`` with checked overrides; nothing is converted yet.

    Raises:
        ConfigError: Hydra could not.
    """
    config_dir = (config_dir or find_configs(script)).resolve()
    return compose_prepared(
        script, prepare(SCRIPTS[script], default_choices(config_dir, script), overrides), config_dir
    )


def compose_prepared(script: str, overrides: list[str], config_dir: Path) -> Composition:
    """``compose`` for overrides that went through ``overrides.prepare``."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    with hydra_errors(), hydra.initialize_config_dir(str(config_dir), job_name=script, version_base=VERSION_BASE):
        composed = hydra.compose(script, overrides, return_hydra_config=True)
        run_directory, sweep_directory = (
            str(OmegaConf.select(composed, f"hydra.{kind}.dir")) for kind in ("run", "sweep")
        )
        swept = {
            str(key): str(value) for key, value in (OmegaConf.select(composed, "hydra.sweeper.params") or {}).items()
        }
        _refuse_code(OmegaConf.to_container(composed.hydra, resolve=False), "hydra")
        with open_dict(composed):
            del composed["hydra"]
        container = OmegaConf.to_container(composed, resolve=True)
    return Composition(container, run_directory, sweep_directory, swept)


# What Hydra and ``logging`` would make an object of or call, and the values that only name their own parts.
_CALLS = {
    "_target_": re.compile(r"(hydra\._internal\.core_plugins|hydra_plugins)\.[\w.]+"),
    "class": re.compile(r"logging\.(handlers\.)?\w+"),
    "()": None,
    "factory": None,
}
_PLUGINS = ("hydra.launcher", "hydra.sweeper")


def _refuse_code(node: Any, path: str) -> None:
    """Refuse a section ``hydra`` that would have ``-m`` call anything but a launcher, a sweeper or a log handler.

    A file of configuration may come from someone else, and its values are values.
    """
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key in _CALLS:
            allowed = _CALLS[key] if key != "_target_" or path in _PLUGINS else None
            if allowed is None or not isinstance(value, str) or not allowed.fullmatch(value):
                raise ConfigError(
                    f"{path}.{key}: a configuration runs no code, so {shown(value)} is refused; choose a launcher or a "
                    "sweeper with hydra/launcher=NAME or hydra/sweeper=NAME"
                )
        _refuse_code(value, f"{path}.{key}")


@contextlib.contextmanager
def hydra_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn what Hydra, OmegaConf or a YAML file raises in this block into a ConfigError.

    Args:
        kinds: the types of exceptions that mean a mistake in the configuration; by default all, for blocks that
            only compose: plain ValueError, KeyError and RecursionError are among what a wrong override raises there.
    """
    caught = kinds or (Exception,)
    try:
        yield
    except ConfigError:
        raise
    except caught as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: Exception) -> str:
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        near = did_you_mean(choice, error.options, f"{group}={{}}")
        return f"{group}={choice}: no such choice{near or ';'} {group} is one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: Hydra cannot read this ({error.message.splitlines()[0]})"
    lines = [line.strip() for text in (error, error.__cause__) if text is not None for line in str(text).splitlines()]
    noise = ("See http", "To append", "full_key", "object_type", "reference_type")
    told = [line.rstrip(".") for line in lines if line and not line.startswith(noise)]
    return f"the configuration cannot be composed: {'; '.join(dict.fromkeys(told)) or type(error).__name__}"
