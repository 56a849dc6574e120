"""The studies that are shipped: each a sweep whose jobs all differ, teachers before their students."""

from pathlib import Path
from typing import Any

import pytest

from nanolm.config import command_line, flatten
from nanolm.config.catalog import choices, find_configs

STUDIES = [
    (script, name)
    for script in ("train", "baseline")
    for name in choices(find_configs(script), "experiment", script)
    if "study" in name
]


def test_there_are_the_same_studies_for_each_task() -> None:
    kinds = {"label_smoothing", "temperature", "regularization", "overfit", "distillation"}
    assert {name for script, name in STUDIES if script == "train"} == {f"study_{kind}" for kind in kinds}
    assert {name for script, name in STUDIES if script == "baseline"} == {f"baseline/study_{kind}" for kind in kinds}


@pytest.mark.parametrize(("script", "name"), STUDIES)
def test_every_job_of_a_study_differs_from_the_others(
    script: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell whose values the study's own would override is the baseline under another name."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Path] = {}

    def task(config: Any, directory: Path, command: str) -> None:
        settings = repr(flatten(config))
        assert settings not in seen, f"{directory} is {seen[settings]} again"
        seen[settings] = directory
        teacher = config.loss.distillation.teacher
        assert teacher is None or Path(teacher).resolve() in [made.resolve() for made in seen.values()]

    arguments = ["-m", f"experiment={name}", "seed=0", "hydra.sweep.dir=elsewhere"]
    assert command_line.run(script, task, arguments) == 0
    assert len(seen) >= 3
