"""A folder of the user's own, a task that remembers its calls, and a call of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanolm.config import command_line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Recorder:
    """A task that raises or returns a result, the same for every call or one for each seed."""

    def __init__(self, result: Any = None, **by_seed: Any) -> None:
        self.configs: list[Any] = []
        self.directories: list[Path] = []
        self.commands: list[str] = []
        self.result = result
        self.by_seed = by_seed

    def __call__(self, config: Any, directory: Path = Path(), command: str = "") -> Any:
        self.configs.append(config)
        self.directories.append(directory)
        self.commands.append(command)
        result = self.by_seed.get(f"seed{getattr(config, 'seed', '')}", self.result)
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def call(here: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line with a task and arguments; returns the exit code and what was printed."""

    def call(task: Any, *arguments: str, script: str = "train", **options: Any) -> tuple[int, str, str]:
        code = command_line.run(script, task, arguments, **options)
        return code, *capfd.readouterr()

    return call
