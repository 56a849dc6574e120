"""A whole run beside a wandb that is away, raises or hangs: it ends well, and its metrics are those without (R17).

``tests/tracking/test_wandb_mirror.py`` has the mirror by itself, with ten faults and the time that each may cost.
"""

import functools
import os
import socket

import pytest

from nanolm.config import load
from nanolm.tracking.wandb_mirror import WandbMirror
from tests.faults.runs import metrics, run
from tests.faults.untrusted import overrides

FAULTS = {
    "raises": ("def init(**_): raise RuntimeError('a bug in wandb')", "a bug in wandb"),
    "dies": ("import os\ndef init(**_): os._exit(7)", "exit code 7"),
    "hangs": ("import time\ndef init(**_): time.sleep(3600)", "did not finish within 1 s"),
}
BASE = """
def login(**_): return False
def teardown(): pass
def Settings(**_): return None
"""


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
    assert run(config, run_dir) == 0
    return metrics(run_dir)


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_a_broken_wandb_costs_a_run_one_line(
    tmp_path, corpus_file, data_root, without, monkeypatch, capfd, fault, words
):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "wandb.py").write_text(BASE + fault)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "package"))
    if "sleep" in fault:  # half a minute by itself: that it ends is what is tested, not when
        monkeypatch.setattr(WandbMirror, "close", functools.partialmethod(WandbMirror.close, timeout=1.0))
    config = load("train", [*overrides(corpus_file, data_root), "wandb.mode=auto"])
    run_dir = tmp_path / "run"
    assert run(config, run_dir) == 0
    assert metrics(run_dir) == without
    assert (run_dir / "evaluation.json").exists()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "wandb" in line and "still busy" not in line]
    assert words in line


def test_a_server_that_is_away_leaves_the_run_whole_and_a_copy_offline(
    tmp_path, corpus_file, data_root, without, monkeypatch, capfd
):
    """The real wandb, a key, and a port of this machine where nobody listens."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    config = load("train", [*overrides(corpus_file, data_root), "wandb.mode=online"])
    run_dir = tmp_path / "run"
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{away.getsockname()[1]}")
        assert run(config, run_dir) == 0
    assert metrics(run_dir) == without
    assert (run_dir / "evaluation.json").exists()
    assert "wandb: offline" in capfd.readouterr().err
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1


def test_the_wait_at_the_end_is_bounded_by_default():
    """What the tests above shorten is no more than half a minute where nobody shortens it."""
    assert WandbMirror.close.__defaults__ == (30.0,)
