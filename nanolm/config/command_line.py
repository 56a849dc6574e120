"""From a command line to an exit code: what every script in ``scripts/`` consists of.

    def train(config, run_directory, command): ...

    if __name__ == "__main__":
        sys.exit(command_line.run("train", train))

A single run goes its own way: the configuration is composed, converted and checked before a file or a folder is
made. ``-m`` (a sweep) and Hydra's flags that show something go through ``hydra.main``, so that any launcher and
sweeper works; see ``nanolm.config.sweep``. Exit codes: 0 done, 2 the input is wrong, 3 stopped on request
with a valid checkpoint, 1 anything else.
"""

import argparse
import contextlib
import itertools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import nanolm
from nanolm.config.catalog import SCRIPTS, Script, default_choices, find_configs
from nanolm.config.compose import compose_prepared, finish, hydra_errors
from nanolm.config.overrides import prepare
from nanolm.config.schema import leaves
from nanolm.config.streams import displays, require_output
from nanolm.config.validation import tilde
from nanolm.errors import ConfigError, NanolmError, out_of_memory
from nanolm.files import failure, working_directory_exists

Task = Callable[..., int | None]
Summarize = Callable[[Path], None]

USER_ERROR = ConfigError.exit_code
UNEXPECTED = "this is not your mistake but one in nanolm, or in what it builds on"
# What the memory that a script takes grows with.
MEMORY_KEYS = (
    "trainer.micro_batch_size",
    "trainer.sequence_length",
    "evaluate.batch_size",
    "max_new_tokens",
    "task.batch_size",
    "task.hidden_size",
)

logger = logging.getLogger(__name__)


def run(
    script: str,
    task: Task,
    arguments: Sequence[str] | None = None,
    config_dir: Path | None = None,
    summarize: Summarize | None = None,
) -> int:
    """Run one script and return its exit code; a user's mistake is told in one message, without a traceback.

    Args:
        script: its name in ``nanolm.config.catalog.SCRIPTS``.
        task: does the work. Called with the frozen configuration, and, where the script has a run directory, with
            that directory (it exists) and the command that continues the run. Returns an exit code, None being 0.
            It imports torch itself, so that ``--help`` and a mistake are answered at once.
        arguments: the command line without the script's name; by default that of this process.
        config_dir: the folder of YAML files; by default ``configs/`` beside the script's folder.
        summarize: called with the directory of a sweep when all its jobs have had their turn.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with displays(), _console():
        try:
            if not working_directory_exists():
                raise ConfigError("the working directory was deleted: change to a folder that exists and try again")
            config_dir = (config_dir or find_configs(script)).resolve()
            if {"-h", "--help"} & set(given):
                from nanolm.config.help import page

                print(page(SCRIPTS[script], config_dir))
                require_output()
                return 0
            return _run(SCRIPTS[script], task, given, config_dir, summarize)
        except NanolmError as error:
            logger.error("%s", error)
            return error.exit_code
        except KeyboardInterrupt:
            logger.error("interrupted")
            return 1
        except Exception as error:
            if told := refused_by_machine(SCRIPTS[script], error):
                logger.error("%s", told)
            else:
                logger.exception("%s", UNEXPECTED)
            return 1


def refused_by_machine(script: Script, error: Exception) -> str | None:
    """What to tell of an error that is neither the user's nor ours: one of the system, or no memory; None of others."""
    if isinstance(error, OSError) and error.errno is not None:
        return failure(error)
    if (reason := out_of_memory(error)) is None:
        return None
    keys = [name for name, _ in leaves(script.schema) if name in MEMORY_KEYS]
    return f"out of memory ({reason}); choose a smaller {' or '.join([*keys, 'model'])}, or a machine with more memory"


def _run(script: Script, task: Task, given: list[str], config_dir: Path, summarize: Summarize | None) -> int:
    flags, overrides = _parse(script, given)
    if flags.config_dir is not None:
        if not os.path.isdir(flags.config_dir):
            raise ConfigError(
                f"--config-dir: {flags.config_dir!r} is no folder; expected one that holds groups of YAML files"
            )
        overrides.insert(0, f"hydra.searchpath=['file://{os.path.abspath(flags.config_dir)}']")
    if flags.shell_completion:
        return _show(script, ["--shell-completion"], overrides, config_dir)
    sweep = flags.multirun or any(override.lstrip("+") == "hydra.mode=MULTIRUN" for override in overrides)
    prepared = prepare(script, default_choices(config_dir, script.name), overrides, sweep=sweep)
    shown = [flag for flag in ("cfg", "info", "hydra_help") if getattr(flags, flag)]
    if (shown and sweep) or len(shown) > 1:
        raise ConfigError(
            "-m, --cfg, --info and --hydra-help: expected one of them at most; each is a command of its own"
        )
    if shown:
        return _show(script, _hydra_flags(flags), prepared, config_dir)
    if flags.resolve or flags.package:
        raise ConfigError("--resolve and --package: they go with --cfg, such as --cfg job --package trainer")
    if sweep:
        from nanolm.config.sweep import run_sweep

        command = command_for(script, given)
        with _continued_by(command):
            return run_sweep(script, task, prepared, command, config_dir, summarize)
    return _run_once(script, task, overrides, prepared, config_dir)


def _run_once(script: Script, task: Task, overrides: list[str], prepared: list[str], config_dir: Path) -> int:
    composition = compose_prepared(script.name, prepared, config_dir)
    if composition.swept:
        raise ConfigError(
            f"{' '.join(overrides)}: this is a study, a sweep over {', '.join(composition.swept)}; add -m to run it: "
            f"{command_for(script, ['-m', *overrides])}"
        )
    config = finish(script.name, composition.container)
    if not script.has_run_directory:
        code = task(config) or 0
        if script.output_is_result:
            require_output()
        return code
    if not composition.run_directory or composition.run_directory.startswith("~"):
        found = composition.run_directory
        raise ConfigError(
            f"hydra.run.dir: expected a path, found {found!r}{tilde(found)}; without it: runs/<name>/<time>/"
        )
    directory = Path(composition.run_directory)
    kept = [override for override in overrides if not override.startswith("hydra.run.dir=")]
    if len(kept) == len(overrides):
        directory = _unused(directory)
    command = command_for(script, [*kept, f"hydra.run.dir={directory}"])
    log = log_file(directory / f"{script.name}.log")
    with _continued_by(command), run_directory(directory, "hydra.run.dir"), log:
        return task(config, directory, command) or 0


@contextlib.contextmanager
def _continued_by(command: str) -> Iterator[None]:
    """Ctrl-C ends this block with the command that goes on from there; the training loop has its own way to stop."""
    try:
        yield
    except KeyboardInterrupt:
        raise NanolmError(f"interrupted; to continue: {command}") from None


def _unused(directory: Path) -> Path:
    """The directory, or one with a number behind its name if two runs begin in the same second."""
    numbered = (directory.with_name(f"{directory.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([directory], numbered) if not os.path.lexists(path))


def command_for(script: Script, arguments: Sequence[str]) -> str:
    """What a user types in a shell to call a script with these arguments."""
    typed = sys.argv[0] if Path(sys.argv[0]).stem == script.name else f"scripts/{script.name}.py"
    return shlex.join(["python", typed, *arguments])


@contextlib.contextmanager
def run_directory(path: Path, key: str) -> Iterator[None]:
    """Make a run directory for this block; a mistake of the user found in the block leaves no empty one behind.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "no permission to write there")
        for entry in path.iterdir():  # writing to one of them would change another file, which may lie anywhere
            if entry.is_symlink() and not entry.is_dir():
                raise OSError(None, f"{entry.name} in it is a link to a file")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{key}: cannot make or use the folder {str(path)!r} ({reason}); give another {key}=PATH"
        ) from error
    try:
        yield
    except NanolmError as error:
        if made and error.exit_code == USER_ERROR:
            _remove_unused(path, made)
        raise


def _remove_unused(path: Path, made: list[Path]) -> None:
    """Remove the folders that this process made, if the log and the lock are all that is in them."""
    entries = list(path.iterdir())
    if all(entry.suffix == ".log" or entry.name == ".lock" for entry in entries):
        for entry in entries:
            entry.unlink()
        with contextlib.suppress(OSError):  # not empty: another run lives there
            for folder in made:
                folder.rmdir()


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.message}"


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """Warnings and errors go to standard error while this block runs, as ``warning: …``."""
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


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short: the error that matters is told where the disk is needed, and not hidden."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """What nanolm logs from INFO on, and others from WARNING on, is appended to a file while this block runs.

    The error that ends the block is logged too, with its traceback unless it is the user's.
    """
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger(nanolm.__name__)
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        ours.info("nanolm %s: %s", nanolm.__version__, shlex.join(sys.argv))
        yield
    except NanolmError as error:
        _log_to(handler, str(error))
        raise
    except Exception as error:
        _log_to(handler, "failed", error)
        raise
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


def _log_to(handler: logging.Handler, message: str, error: Exception | None = None) -> None:
    """Log an error to one handler alone: the console tells it where it is handled."""
    trace = (type(error), error, error.__traceback__) if error else None
    handler.handle(logging.LogRecord(logger.name, logging.ERROR, __file__, 0, message, None, trace))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help shows what there is")


def _parse(script: Script, given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags and the overrides, in any order.

    Left out on purpose: ``--config-name`` and ``--config-path``, since a script has one schema, and
    ``--experimental-rerun``, which unpickles a file.
    """
    parser = _Parser(prog=f"scripts/{script.name}.py", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=_INFORMATION)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--version", action="version", version=f"nanolm {nanolm.__version__}")
    flags = parser.parse_intermixed_args(given)
    return flags, flags.overrides


_INFORMATION = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


def _hydra_flags(flags: argparse.Namespace) -> list[str]:
    given = [f"--{name}={value}" for name in ("cfg", "package", "info") if (value := getattr(flags, name))]
    return given + [f"--{name.replace('_', '-')}" for name in ("resolve", "hydra_help") if getattr(flags, name)]


def _show(script: Script, flags: list[str], overrides: list[str], config_dir: Path) -> int:
    """What Hydra shows by itself: the composed configuration, its sources, its help."""
    try:
        with hydra_errors():
            call_hydra(script, lambda _: None, flags, overrides, config_dir)
    except SystemExit as ended:  # Hydra ends with 1 where, for example, a package to show does not exist
        return USER_ERROR if ended.code else 0
    require_output()
    return 0


def call_hydra(
    script: Script, job: Callable[[Any], Any], flags: list[str], overrides: list[str], config_dir: Path
) -> None:
    """``hydra.main`` with arguments of ours; what it raises comes out instead of being printed."""
    import hydra

    from nanolm.config.compose import VERSION_BASE

    arguments, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = [arguments[0], *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(config_dir), config_name=script.name, version_base=VERSION_BASE)(job)()
    finally:
        sys.argv = arguments
        root.handlers[:], root.level = handlers, level  # --info leaves a handler of its own behind
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
