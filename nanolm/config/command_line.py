"""Run a script: from a command line to an exit code.

    def train(config, run_directory, command): ...

    if __name__ == "__main__":
        sys.exit(command_line.run("train", train))

A single run is composed and checked before a file or a folder is made. ``-m`` (a sweep) and the flags that show
something go through ``hydra.main``, so that any launcher and sweeper works; see ``nanolm.config.sweep``. Exit codes:
0 done, 2 the input is wrong, 3 stopped on request with a valid checkpoint, 1 anything else.
"""

import argparse
import contextlib
import itertools
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import nanolm
from nanolm.config.catalog import find_configs
from nanolm.config.compose import call_hydra, compose, finish, hydra_errors
from nanolm.config.help import page
from nanolm.config.inputs import tilde
from nanolm.config.overrides import prepare
from nanolm.config.run_directory import log_file, refused_by_machine, run_directory
from nanolm.config.schema import SCHEMAS, has_run_directory
from nanolm.config.streams import displays, require_output
from nanolm.config.sweep import Summarize, Task, run_sweep
from nanolm.errors import ConfigError, NanolmError
from nanolm.files import working_directory_exists

logger = logging.getLogger(__name__)


def run(
    script: str,
    task: Task,
    arguments: Sequence[str] | None = None,
    config_dir: Path | None = None,
    summarize: Summarize | None = None,
) -> int:
    """Run one script and return its exit code; a user's mistake becomes one message, without a traceback.

    Args:
        script: a key of ``nanolm.config.schema.SCHEMAS``.
        task: does the work. Called with the frozen configuration, and, where the script has a run directory, with
            that directory (it exists) and the command that continues the run. Returns an exit code, None being 0.
            It imports torch itself, so that ``--help`` and a mistake are answered at once.
        arguments: the command line without the script's name; by default that of this process.
        config_dir: the folder of YAML files; by default ``configs/`` next to the script's folder.
        summarize: called with the directory of a sweep after its last job.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with displays(), _console():
        try:
            if not working_directory_exists():
                raise ConfigError("the working directory was deleted: change to a folder that exists and try again")
            config_dir = (config_dir or find_configs(script)).resolve()
            if {"-h", "--help"} & set(given):
                print(page(script, config_dir))
                require_output()
                return 0
            return _run(script, task, given, config_dir, summarize)
        except NanolmError as error:
            logger.error("%s", error)
            return error.exit_code
        except KeyboardInterrupt:
            logger.error("interrupted")
        except Exception as error:
            if message := refused_by_machine(SCHEMAS[script], error):
                logger.error("%s", message)
            else:
                logger.exception("internal error in nanolm or a dependency; please report it")
        return 1


def _run(script: str, task: Task, given: list[str], config_dir: Path, summarize: Summarize | None) -> int:
    flags, overrides = _parse(script, given)
    if flags.package and not flags.cfg:
        raise ConfigError("--package: only works with --cfg, such as --cfg job --package trainer")
    added = []
    if flags.config_dir is not None:
        if not os.path.isdir(flags.config_dir):
            raise ConfigError(f"--config-dir: expected a folder of YAML files, found {flags.config_dir!r}")
        added.append(f"hydra.searchpath=['file://{os.path.abspath(flags.config_dir)}']")
    sweep = flags.multirun or "hydra.mode=MULTIRUN" in overrides
    prepared = prepare(script, [*overrides, *added], config_dir, sweep=sweep)
    if flags.cfg or flags.resolve or flags.info or flags.hydra_help:
        shown = [argument for argument in given if argument not in overrides]
        return _show(script, [*shown, *prepared], config_dir)
    if sweep:
        command = command_for(script, given)
        with _continued_by(command):
            return run_sweep(script, task, prepared, command, config_dir, summarize)
    return _run_once(script, task, given, prepared, config_dir)


def _run_once(script: str, task: Task, given: list[str], prepared: list[str], config_dir: Path) -> int:
    composition = compose(script, prepared, config_dir)
    if composition.swept:
        swept, command = ", ".join(composition.swept), command_for(script, ["-m", *given])
        raise ConfigError(f"{' '.join(given)}: this is a study, a sweep over {swept}; add -m to run it: {command}")
    config = finish(script, composition.container)
    if not has_run_directory(type(config)):
        return task(config) or 0
    found = composition.run_directory
    if not found or found.startswith("~"):
        raise ConfigError(f"hydra.run.dir: expected a path, found {found!r}{tilde(found)}")
    directory = Path(found)
    kept = [argument for argument in given if not argument.startswith("hydra.run.dir=")]
    if len(kept) == len(given):  # another run may begin in the same second
        numbered = (directory.with_name(f"{directory.name}-{number}") for number in itertools.count(2))
        directory = next(path for path in itertools.chain([directory], numbered) if not os.path.lexists(path))
    command = command_for(script, [*kept, f"hydra.run.dir={directory}"])
    with (
        _continued_by(command),
        run_directory(directory, "hydra.run.dir"),
        log_file(directory / f"{script}.log"),
    ):
        return task(config, directory, command) or 0


@contextlib.contextmanager
def _continued_by(command: str) -> Iterator[None]:
    """Let the message of a Ctrl-C in this block name the command that continues; training has its own way to stop."""
    try:
        yield
    except KeyboardInterrupt:
        raise NanolmError(f"interrupted; to continue: {command}") from None


def command_for(script: str, arguments: Sequence[str]) -> str:
    """Return the shell command that calls a script with these arguments."""
    typed = sys.argv[0] if Path(sys.argv[0]).stem == script else f"scripts/{script}.py"
    return shlex.join(["python", typed, *arguments])


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.message}"


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """Print warnings and errors to standard error while this block runs, as ``warning: …``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Formatter())
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.captureWarnings(False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists all flags")


def _parse(script: str, given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate the flags from the overrides, in any order.

    Of Hydra's flags those are left out that choose another schema (``--config-name``), unpickle a file
    (``--experimental-rerun``), or do nothing here (``--run``).
    """
    parser = _Parser(prog=f"scripts/{script}.py", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--version", action="version", version=f"nanolm {nanolm.__version__}")
    flags = parser.parse_intermixed_args(given)
    return flags, flags.overrides


def _show(script: str, arguments: list[str], config_dir: Path) -> int:
    """Let Hydra print the composed configuration, its sources, or its own help."""
    try:
        with hydra_errors():
            call_hydra(script, lambda _: None, arguments, config_dir)
    except SystemExit as ended:  # Hydra ends with 1 where, for example, a package to show does not exist
        return ConfigError.exit_code if ended.code else 0
    require_output()
    return 0
