"""Sweeps: one job for each combination of values, by Hydra's sweepers and launchers.

A job that fails raises; the others go on, and at the end the failed ones are listed with their messages. A job
that was stopped on request stops the sweep. The same command continues a sweep, since ``sweeps/<name>/<number>/``
has no time in it and each job continues its directory: a finished one has nothing left to do. What is swept may
stand in a YAML file too, as ``hydra.sweeper.params``: that is what makes an experiment a study.
"""

import contextlib
import logging
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanolm.config.catalog import SCRIPTS, Script, choices
from nanolm.config.command_line import Summarize, Task, call_hydra, log_file, refused_by_machine
from nanolm.config.compose import compose_prepared, finish, hydra_errors
from nanolm.config.convert import convert
from nanolm.config.streams import displays
from nanolm.errors import ConfigError, NanolmError
from nanolm.files import failure

STOPPED = 3

logger = logging.getLogger(__name__)


class JobError(Exception):
    """One job of a sweep failed; its text names the job's directory, its overrides and the reason."""


def run_sweep(
    script: Script,
    task: Task,
    prepared: list[str],
    command: str,
    config_dir: Path,
    summarize: Summarize | None = None,
) -> int:
    """Run all jobs of a sweep; the exit code is 1 if any failed.

    Args:
        prepared: overrides from ``overrides.prepare(..., sweep=True)``.
        command: what the user types to continue the sweep.
        summarize: called with the sweep's directory after the last job, before the failed ones are listed.

    Raises:
        ConfigError: the configuration is wrong already before any job, or no folder can be made: nothing was run.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    composition = compose_prepared(script.name, _first_job(prepared, config_dir), config_dir)
    if composition.swept:
        in_file = [f"{key}={value}" for key, value in composition.swept.items()]
        composition = compose_prepared(script.name, _first_job([*in_file, *prepared], config_dir), config_dir)
    convert(script.schema, composition.container)
    outcomes: list[str | None] = []
    job = _job(script.name, task, outcomes, command)
    failures: list[str] = []
    try:
        with hydra_errors(HydraException, OmegaConfBaseException):
            call_hydra(script, job, ["--multirun"], prepared, config_dir)
    except JobError as error:  # raised by the sweeper when all jobs have ended, or from another process
        failures = [outcome for outcome in outcomes if outcome] or [str(error)]
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir: cannot make or use the folder ({failure(error)}); give another") from error
    summarized = summarize is None or _summarized(summarize, Path(composition.sweep_directory))
    if failures:
        count = f"{len(failures)} of {len(outcomes)} jobs" if outcomes else "a job (each directory has its log)"
        logger.error("%s failed:\n%s", count, textwrap.indent("\n".join(failures), "  "))
        logger.error("to run what is left, finished jobs stay as they are: %s", command)
    return 0 if summarized and not failures else 1


def _summarized(summarize: Summarize, directory: Path) -> bool:
    """Whether the summary came to its end; what failed in it must not hide which jobs failed."""
    try:
        summarize(directory)
    except Exception:
        logger.exception("the runs are there, but their summary failed")
        return False
    return True


def _first_job(prepared: list[str], config_dir: Path) -> list[str]:
    """The overrides with the first value of each that has several: what is wrong with them is wrong in any job.

    Raises:
        ConfigError: one of them has no value at all, so that there would be no job.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    first: dict[str, str | None] = {}  # the last one of a key counts, as it does for the sweeper
    with hydra_errors():
        for override in OverridesParser.create().parse_overrides(prepared):
            key, value = override.get_key_element(), override.value()
            if not override.is_sweep_override():
                first[key] = str(override.input_line)
            elif isinstance(value, Glob):
                first[key] = next((f"{key}={name}" for name in value.filter(list(choices(config_dir, key)))), None)
            elif override.is_discrete_sweep():
                first[key] = next((f"{key}={text}" for text in override.sweep_string_iterator()), None)
    elsewhere = any(override.startswith("hydra.searchpath=") for override in prepared)  # choices that are not ours
    for key, job in first.items():
        if job is None and not elsewhere:
            known = ", ".join(choices(config_dir, key))
            raise ConfigError(
                f"{key}: expected one value or more, found none, so there is no job to run"
                + (f"; {key} is one of {known}" if known else "")
            )
    return [job for job in first.values() if job is not None]


def _job(script: str, task: Task, outcomes: list[str | None], command: str) -> Callable[[Any], None]:
    """What Hydra calls for each job: here, or unpickled in another process."""

    def job(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        settings = HydraConfig.get()
        directory = Path(settings.runtime.output_dir)
        with contextlib.suppress(ValueError):
            directory = directory.relative_to(Path.cwd())
        title = f"{directory}: {' '.join(settings.overrides.task)}"
        try:
            with displays(), log_file(directory / f"{script}.log"):
                print(f"\njob {settings.job.num}, {title}", flush=True)
                with hydra_errors():
                    container = OmegaConf.to_container(composed, resolve=True)
                config = _grouped(finish(script, container), Path(settings.sweep.dir).name)
                code = task(config, directory, command) if SCRIPTS[script].has_run_directory else task(config)
        except NanolmError as error:
            reason = str(error)
        except Exception as error:
            told = refused_by_machine(SCRIPTS[script], error)
            if told is None:
                traceback.print_exc()
            reason = told or f"{type(error).__name__}: {error}"
        else:
            if code == STOPPED:
                raise SystemExit(STOPPED)
            if not code:
                outcomes.append(None)
                return
            reason = f"ended with code {code}"
        outcomes.append(f"{title}\n{textwrap.indent(reason, '  ')}")
        raise JobError(outcomes[-1])

    return job


def _grouped(config: Any, group: str) -> Any:
    """The configuration with the sweep's name as the group of its runs at wandb, unless it names one itself."""
    if getattr(config, "wandb", None) is None or config.wandb.group is not None:
        return config
    return replace(config, wandb=replace(config.wandb, group=group))
