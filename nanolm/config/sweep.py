"""Sweeps: one job for each combination of values, by Hydra's sweepers and launchers.

When a job fails the others go on, and at the end the failed ones are listed with their messages. A job that was
stopped on request stops the sweep. The same command continues a sweep, since ``sweeps/<name>/<number>/`` has no time
in it. A study is an experiment whose YAML file says what is swept, as ``hydra.sweeper.params``.
"""

import contextlib
import logging
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanolm.config.compose import VERSION_BASE, call_hydra, choose_cell, compose, finish, hydra_errors
from nanolm.config.convert import convert
from nanolm.config.keys import BrokenRule
from nanolm.config.run_directory import log_file, refused_by_machine
from nanolm.config.schema import SCHEMAS, has_run_directory
from nanolm.config.streams import displays
from nanolm.errors import ConfigError, NanolmError
from nanolm.files import failure
from nanolm.stop import STOPPED

Task = Callable[..., int | None]
Summarize = Callable[[Path], None]

logger = logging.getLogger(__name__)


class JobError(Exception):
    """The failure of one job, with its directory, its overrides and the reason."""


def run_sweep(
    script: str,
    task: Task,
    prepared: list[str],
    command: str,
    config_dir: Path,
    summarize: Summarize | None = None,
) -> int:
    """Run all jobs of a sweep; the exit code is 1 if any failed.

    Args:
        prepared: overrides from ``overrides.prepare(..., sweep=True)``.
        command: the command that continues the sweep.
        summarize: called with the sweep's directory after the last job, before the failed ones are listed.

    Raises:
        ConfigError: the first job has a mistake that every job has, or no folder can be made: nothing was run.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    composition = compose(script, _first_job(prepared, config_dir), config_dir)
    if composition.swept:
        in_file = [f"{key}={value}" for key, value in composition.swept.items()]
        composition = compose(script, _first_job([*in_file, *prepared], config_dir), config_dir)
    with contextlib.suppress(BrokenRule):  # other values of the sweep may keep the rule
        convert(SCHEMAS[script], composition.container)
    outcomes: list[str | None] = []
    job = _job(script, task, outcomes, command)
    failures: list[str] = []
    try:
        with hydra_errors((HydraException, OmegaConfBaseException)):
            call_hydra(script, job, ["--multirun", *prepared], config_dir)
    except JobError as error:  # raised by the sweeper when all jobs have ended, or from another process
        failures = [outcome for outcome in outcomes if outcome] or [str(error)]
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir: cannot make or use the folder ({failure(error)}); give another") from error
    code = 1 if failures else 0
    try:
        if summarize:
            summarize(Path(composition.sweep_directory))
    except Exception:  # must not hide which jobs failed
        logger.exception("the runs are there, but their summary failed")
        code = 1
    if failures:
        count = f"{len(failures)} of {len(outcomes)} jobs" if outcomes else "a job (each directory has its log)"
        logger.error("%s failed:\n%s", count, textwrap.indent("\n".join(failures), "  "))
        logger.error("to run what is left, finished jobs stay as they are: %s", command)
    return code


def _first_job(prepared: list[str], config_dir: Path) -> list[str]:
    """Return the overrides with the first of several values: what is wrong with them is wrong in some job.

    Raises:
        ConfigError: one of them has no value at all, so that there would be no job.
    """
    import hydra
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    first: dict[str, str] = {}  # the last one of a key counts, as it does for the sweeper
    with hydra_errors(), hydra.initialize_config_dir(str(config_dir), version_base=VERSION_BASE):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for override in parser.parse_overrides(prepared):
            if override.is_sweep_override() and not override.is_discrete_sweep():
                continue  # an interval, which some sweepers take
            jobs = BasicSweeper.split_arguments([override], max_batch_size=None)[0]
            if not jobs:
                raise ConfigError(f"{override.key_or_group}: expected one value or more, found none: no job to run")
            first[override.get_key_element()] = jobs[0][0]
    return list(first.values())


def _job(script: str, task: Task, outcomes: list[str | None], command: str) -> Callable[[Any], None]:
    """Make the function that Hydra calls for each job, here or unpickled in another process."""

    def job(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        settings = HydraConfig.get()
        directory = Path(settings.runtime.output_dir)
        with contextlib.suppress(ValueError):
            directory = directory.relative_to(Path.cwd())
        title = f"{directory}: {' '.join(override.lstrip('+') for override in settings.overrides.task)}"
        try:
            with displays(), log_file(directory / f"{script}.log"):
                print(f"\njob {settings.job.num}, {title}", flush=True)
                with hydra_errors():
                    choose_cell(composed, settings.overrides.task)
                    container = OmegaConf.to_container(composed, resolve=True)
                config = finish(script, container)
                if getattr(config, "wandb", None) is not None and config.wandb.group is None:
                    config = replace(config, wandb=replace(config.wandb, group=Path(settings.sweep.dir).name))
                code = task(config, directory, command) if has_run_directory(type(config)) else task(config)
        except NanolmError as error:
            reason = str(error)
        except Exception as error:
            message = refused_by_machine(SCHEMAS[script], error)
            if message is None:
                traceback.print_exc()
            reason = message or f"{type(error).__name__}: {error}"
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
