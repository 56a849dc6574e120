"""The metrics file holds exactly one whole line a step, in order, whatever interrupts it."""

import json
import math
import os
import re
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.errors import DataError
from nanolm.tracking import MetricsFile, read_metrics
from tests.faults.injection import FAILED, file_limit, in_child, kill_at


def line(step: int) -> dict:
    return {"step": step, "tokens": 768 * step, "train/nll": step / 7, "train/note": "ü"}


def written(path: Path, num_lines: int) -> bytes:
    file = MetricsFile(path, None)
    for step in range(1, num_lines + 1):
        file.write(line(step))
    file.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics")


@given(values=st.lists(st.floats(), min_size=1, max_size=5))
def test_every_float_comes_back_and_every_line_is_strict_json(folder: Path, values: list[float]) -> None:
    path = folder / "floats.jsonl"
    path.unlink(missing_ok=True)
    file = MetricsFile(path, None)
    for step, value in enumerate(values, start=1):
        file.write({"train/nll": value, "tokens": step, "step": step})
    file.close()
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", path.read_text()))
    lines = read_metrics(path)
    assert all(list(line) == ["step", "tokens", "train/nll"] for line in lines)  # in this order
    back = [found["train/nll"] for found in lines]
    assert [math.copysign(1, v) for v in back if v is not None] == [
        math.copysign(1, v) for v in values if math.isfinite(v)
    ]
    assert back == [value if math.isfinite(value) else None for value in values]


@given(data=st.data())
def test_resume_keeps_the_lines_up_to_the_checkpoint_and_cuts_the_rest(folder: Path, data: st.DataObject) -> None:
    path = folder / "resume.jsonl"
    path.unlink(missing_ok=True)
    num_lines = data.draw(st.integers(0, 6))
    whole = written(path, num_lines)
    resume_step = data.draw(st.integers(0, num_lines))
    kept = b"".join(whole.splitlines(keepends=True)[:resume_step])
    # A kill or a power cut: the file ends anywhere behind the checkpoint's line, perhaps in noughts.
    end = data.draw(st.integers(len(kept), len(whole)))
    path.write_bytes(whole[:end] + data.draw(st.sampled_from([b"", b"\0\n\0"])))
    dropped = len(path.read_bytes()[len(kept) :].splitlines())

    file = MetricsFile(path, resume_step)
    assert path.read_bytes() == kept
    assert file.num_dropped == dropped
    assert file.step == resume_step
    assert file.last == (json.loads(kept.splitlines()[-1]) if kept else None)
    for step in range(resume_step + 1, num_lines + 1):
        file.write(line(step))
    file.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "number"),
    [
        (lambda lines: [*lines[:4], lines[4][:-3]], 5),
        (lambda lines: lines[:4], 5),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[0], *lines], 2),
        (lambda lines: [lines[0], b"[1, 2]\n", *lines[2:]], 2),
        (lambda lines: [lines[0], b'{"step": 2\n', *lines[2:]], 2),
        (lambda lines: [lines[0], b'{"step": "\xff"}\n', *lines[2:]], 2),
    ],
)
def test_damage_before_the_checkpoint_is_refused_by_line_and_nothing_is_changed(tmp_path, damage, number) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = b"".join(damage(written(path, 6).splitlines(keepends=True)))
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"metrics\.jsonl, line {number}: "):
        MetricsFile(path, 5)
    assert path.read_bytes() == damaged


def test_missing_files_and_files_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match="steps 1 to 3"):
        MetricsFile(path, 3)
    assert not path.exists()
    with pytest.raises(DataError, match="metrics file"):
        read_metrics(path)
    MetricsFile(path, 0).close()
    MetricsFile(path, None).close()
    path.unlink()
    whole = written(path, 2)
    with pytest.raises(DataError, match=r"trainer\.resume=auto"):
        MetricsFile(path, None)
    assert path.read_bytes() == whole


def test_reading_leaves_out_a_line_that_is_being_written_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path, 3)
    path.write_bytes(whole + b'{"step": 4, "tok')
    assert [found["step"] for found in read_metrics(path)] == [1, 2, 3]
    path.write_bytes(b"{}}\n" + whole)
    with pytest.raises(DataError, match="line 1:"):
        read_metrics(path)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_only_the_next_step_can_be_written(tmp_path: Path, step: int) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", None)
    for earlier in range(1, 3):
        file.write(line(earlier))
    with pytest.raises(AssertionError, match="step 3"):
        file.write(line(step))


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    def write_and_die() -> None:
        file = MetricsFile(tmp_path / "metrics.jsonl", None)
        for step in range(1, 101):
            file.write(line(step))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die) == signal.SIGKILL
    assert [found["step"] for found in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 101))


def test_the_last_line_is_whole_at_any_instant_of_an_amendment(tmp_path: Path) -> None:
    """Killed before each call that changes something, and on a full disk: the old line or the new one."""
    path = tmp_path / "metrics.jsonl"
    whole = written(path, 3)
    amended = [*read_metrics(path)[:2], line(3) | {"val/nll": 2.5}]

    def amend() -> None:
        file = MetricsFile(path, 3)
        file.amend({"val/nll": 2.5})
        assert file.last == amended[-1]
        file.write(line(4))

    call = statuses = 0
    while True:
        path.write_bytes(whole)
        status = in_child(amend, kill_at(call))
        if status == 0:
            break
        assert status == signal.SIGKILL
        statuses += path.read_bytes() == whole
        assert read_metrics(path)[:3] in (amended, [*amended[:2], line(3)])
        call += 1
    assert read_metrics(path) == [*amended, line(4)]
    assert 0 < statuses < call
    path.write_bytes(whole)
    assert in_child(amend, file_limit(len(whole) + 5, fatal=False)) == FAILED << 8
    assert path.read_bytes() == whole


def test_a_write_that_fails_half_way_is_an_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, None)
    file.write(line(1))
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))  # the next line fits by 20 bytes
    try:
        with pytest.raises(OSError, match="too large") as caught:
            file.write(line(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == whole
    file.write(line(2))
    assert [found["step"] for found in read_metrics(path)] == [1, 2]
