"""The examples run as they stand, here on a short text and for a few steps."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_trains_calibrates_and_samples(path, tmp_path):
    (tmp_path / "text.txt").write_text("the state of our union is strong and free. " * 40, encoding="utf-8")
    command = [sys.executable, str(path), "text.txt", "2"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained, before, after, *sample = done.stdout.splitlines()
    assert trained.startswith("step 2: NLL")
    assert before.startswith("as trained (T = 1.000)")
    assert after.startswith("calibrated (T = ")
    assert "".join(sample).strip()
    assert "hydra" not in path.read_text(encoding="utf-8").lower().replace("no hydra", "")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 85
