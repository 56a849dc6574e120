"""Compose YAML files and overrides by Hydra, and turn its errors into messages of ours."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolm.config.catalog import find_configs
from nanolm.config.convert import convert, dotted
from nanolm.config.inputs import check_inputs
from nanolm.config.nearest import did_you_mean
from nanolm.config.overrides import prepare
from nanolm.config.schema import SCHEMAS
from nanolm.config.words import shown
from nanolm.errors import ConfigError

VERSION_BASE = "1.3"


@dataclass(frozen=True)
class Composition:
    """A composed configuration that is not converted yet, and the settings of Hydra that matter here.

    ``swept`` is ``hydra.sweeper.params``: the values that a study's YAML file sweeps, ``{"seed": "0,1,2"}``.
    """

    container: Any
    run_directory: str
    sweep_directory: str
    swept: dict[str, str]


def load(script: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Any:
    """Return the frozen configuration of ``scripts/<script>.py`` called with these overrides.

    Args:
        script: a key of ``nanolm.config.schema.SCHEMAS``, which has the type of the result.
        overrides: as on the command line, ``["model=micro", "trainer.max_steps=100"]``; free text needs no quotes.
        config_dir: the folder of YAML files; by default ``configs/`` of the source tree.

    Raises:
        ConfigError: anything wrong with the overrides, the values, or the files and devices that they name.
    """
    config_dir = (config_dir or find_configs(script)).resolve()
    return finish(script, compose(script, prepare(script, overrides, config_dir), config_dir).container)


def finish(script: str, container: object) -> Any:
    """Convert a composed container, and check the files and devices that it names."""
    config: Any = convert(SCHEMAS[script], container)
    check_inputs(config)
    return config


def compose(script: str, prepared: Sequence[str], config_dir: Path) -> Composition:
    """Let Hydra compose ``<config_dir>/<script>.yaml`` with overrides from ``overrides.prepare``."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    with hydra_errors(), hydra.initialize_config_dir(str(config_dir), job_name=script, version_base=VERSION_BASE):
        composed = hydra.compose(script, list(prepared), return_hydra_config=True)
        settings = composed.hydra
        directories = str(settings.run.dir), str(settings.sweep.dir)
        swept = {str(key): str(value) for key, value in (OmegaConf.select(settings, "sweeper.params") or {}).items()}
        _refuse_code(OmegaConf.to_container(settings, resolve=False), "hydra")
        choose_cell(composed, prepared)
        with open_dict(composed):
            del composed["hydra"]
        container = OmegaConf.to_container(composed, resolve=True)
    return Composition(container, *directories, swept)


def choose_cell(composed: Any, overrides: Sequence[str]) -> None:
    """Put the values of the chosen cell of a study into its composed configuration.

    A study may name cells in its YAML file, ``cells: {dropout: {model: {dropout: 0.2}}, …}``, and sweep over
    ``+cell``. Overrides have precedence over the values of a cell.
    """
    from omegaconf import OmegaConf, open_dict

    with open_dict(composed):
        cells = OmegaConf.to_container(OmegaConf.create(composed.pop("cells", {})), resolve=False)
        chosen = composed.pop("cell", None)
        if chosen is None:
            return
        if not isinstance(cells, dict) or not isinstance(cells.get(chosen), dict):
            raise ConfigError(f"cell: expected the name of one of the study's cells, found {shown(chosen)}")
        given = [override.lstrip("+").partition("=")[0] for override in overrides]
        for name, value in dotted(cells[chosen]):
            if name not in given:
                OmegaConf.update(composed, name, value)


# The keys by which Hydra and ``logging`` find what to call, and the harmless values: their own parts.
_CALLS = {
    "_target_": re.compile(r"(hydra\._internal\.core_plugins|hydra_plugins)\.[\w.]+"),
    "class": re.compile(r"logging\.(handlers\.)?\w+"),
    "()": None,
    "factory": None,
}
_PLUGINS = ("hydra.launcher", "hydra.sweeper")


def _refuse_code(node: Any, path: str) -> None:
    """Refuse settings of Hydra by which ``-m`` would call anything but a launcher, a sweeper or a log handler.

    A configuration file may be untrusted.
    """
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key in _CALLS:
            allowed = _CALLS[key] if key != "_target_" or path in _PLUGINS else None
            if allowed is None or not isinstance(value, str) or not allowed.fullmatch(value):
                found = f"{shown(value)} is refused; choose hydra/launcher=NAME or hydra/sweeper=NAME"
                raise ConfigError(f"{path}.{key}: a configuration runs no code, so {found}")
        _refuse_code(value, f"{path}.{key}")


def call_hydra(script: str, job: Callable[[Any], Any], arguments: list[str], config_dir: Path) -> None:
    """Call ``hydra.main`` with these arguments; its errors are raised instead of printed."""
    import hydra

    typed, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = [typed[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(config_dir), config_name=script, version_base=VERSION_BASE)(job)()
    finally:
        sys.argv = typed
        root.handlers[:], root.level = handlers, level  # --info leaves a handler of its own behind
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


@contextlib.contextmanager
def hydra_errors(kinds: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """Turn exceptions of these types into a ConfigError; of any type by default, for blocks that only compose."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
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
    found = [line.rstrip(".") for line in lines if line and not line.startswith(noise)]
    return f"the configuration cannot be composed: {'; '.join(dict.fromkeys(found)) or type(error).__name__}"
