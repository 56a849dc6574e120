"""A whole run beside a wandb that is away, raises or hangs: it ends well, and its metrics are those without (R17).

``tests/tracking/test_wandb_mirror.py`` has the mirror by itself, with ten faults and the time that each may cost.
"""

import functools
import json
import os
import socket

import pytest

from nanolm.config import load
from nanolm.report import write_run_report
from nanolm.tracking.wandb_mirror import WandbMirror
from nanolm.training import train
from tests.faults.strangers import overrides

TIMES = {"train/seconds", "train/tokens_per_second", "train/mfu"}
PACKAGES = {
    "raises when imported": "raise RuntimeError('a bug in wandb')",
    "raises when it starts": "def init(**_): raise RuntimeError('a bug in wandb')",
    "dies when it starts": "import os\ndef init(**_): os._exit(7)",
    "hangs when imported": "import time\ntime.sleep(3600)",
    "hangs when it starts": "import time\ndef init(**_): time.sleep(3600)",
}
BASE = """
def login(**_): return False
def teardown(): pass
def Settings(**_): return None
"""
LONGEST_WAIT = 1.0


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def without(tmp_path_factory, corpus_file, data_root):
    """The metrics of a run without wandb."""
    run_dir = tmp_path_factory.mktemp("without")
    config = load("train", overrides(corpus_file, data_root))
    assert train(config, run_dir, "", write_run_report) == 0
    return metrics(run_dir)


def metrics(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.parametrize("fault", PACKAGES)
def test_a_broken_wandb_costs_a_run_one_line(tmp_path, corpus_file, data_root, without, monkeypatch, capfd, fault):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "wandb.py").write_text(BASE + PACKAGES[fault])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "package"))
    if fault.startswith("hangs"):  # half a minute by itself: that it ends is what is tested, not when
        monkeypatch.setattr(WandbMirror, "close", functools.partialmethod(WandbMirror.close, timeout=LONGEST_WAIT))
    config = load("train", [*overrides(corpus_file, data_root), "wandb.mode=auto"])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert train(config, run_dir, "", write_run_report) == 0
    assert metrics(run_dir) == without
    assert (run_dir / "evaluation.json").exists()
    said = [line for line in capfd.readouterr().err.splitlines() if "wandb" in line and "still busy" not in line]
    assert len(said) == 1, said
    told = {
        "dies": "wandb is off, the run goes on: its process ended with exit code 7",
        "hangs": f"wandb did not finish within {LONGEST_WAIT:g} s and was stopped; metrics.jsonl is complete",
    }
    assert said[0] == told.get(fault.split()[0], "wandb is off, the run goes on: a bug in wandb")


def test_a_server_that_is_away_leaves_the_run_whole_and_a_copy_offline(
    tmp_path, corpus_file, data_root, without, monkeypatch, capfd
):
    """The real wandb, a key, and a port of this machine where nobody listens."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    config = load("train", [*overrides(corpus_file, data_root), "wandb.mode=online"])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{away.getsockname()[1]}")
        assert train(config, run_dir, "", write_run_report) == 0
    assert metrics(run_dir) == without
    assert (run_dir / "evaluation.json").exists()
    assert "wandb: offline, because the server could not be used (" in capfd.readouterr().err
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1


def test_the_wait_at_the_end_is_bounded_by_default():
    """What the tests above shorten is no more than half a minute where nobody shortens it."""
    assert WandbMirror.close.__defaults__ == (30.0,)
