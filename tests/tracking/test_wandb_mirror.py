"""wandb shows what metrics.jsonl holds; and wandb broken, hanging or absent costs a line, never a run.

The first half reads back what an offline run of the real wandb wrote. The second half runs the mirror against servers
that do not answer and against wandb packages that are broken, on this machine alone.
"""

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanolm.config import load
from nanolm.config.schema import WandbConfig
from nanolm.tracking import MetricsFile, read_metrics
from nanolm.tracking.wandb_mirror import WandbMirror, choose_mode, choose_run_id

ROOT = Path(__file__).parents[2]


def config(mode: str = "auto", **other) -> WandbConfig:
    given = {"project": "a project", "entity": None, "group": "a group", "tags": ("one", "two")} | other
    return WandbConfig(mode=mode, **given)


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


class Notes(list[str]):
    """The notes but for the one that a slow machine adds while it waits."""

    def __call__(self, note: str) -> None:
        if "still busy" not in note:
            self.append(note)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[WandbMirror, Notes]]]:
    """Start a mirror of ``metrics.jsonl`` in a folder; whatever a test leaves running is ended."""
    mirrors = []

    def start(mode: str = "offline", folder: Path = tmp_path, **other) -> tuple[WandbMirror, Notes]:
        notes, settings = Notes(), {"seed": 3, "model": {"hidden_size": 256, "head_dim": None}}
        mirrors.append(WandbMirror(config(mode, **other), folder / "metrics.jsonl", "a name", settings, notes))
        return mirrors[-1], notes

    yield start
    for mirror in mirrors:
        mirror.close(1, timeout=0.0)


def write(folder: Path, first: int, last: int, resume_step: int | None = None, amended: float | None = None) -> None:
    file = MetricsFile(folder / "metrics.jsonl", resume_step)
    for step in range(first, last + 1):
        line = {"step": step, "tokens": 768 * step, "train/nll": 9 / (step + 2), "train/seconds": step / 7}
        if step == 4:
            line["train/grad_norm"] = math.nan
        if step % 3 == 0:
            line |= {"val/nll": abs(step - 6.25), "val/accuracy": 0.5 - abs(step - 6.25) / 20}
        file.write(line)
    if amended is not None:
        file.amend({"val/nll": amended})
    file.close()


def records(path: Path) -> Iterator[Any]:
    """Read a wandb file: a header of 7 bytes, then LevelDB's log format around protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, record, position, block = path.read_bytes(), b"", 7, 32768
    while position + 7 <= len(data):
        if block - position % block < 7:  # no header fits into the rest of a block
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


class OfflineRun:
    """What the only offline run of a run directory holds."""

    def __init__(self, folder: Path) -> None:
        (self.folder,) = (folder / "wandb").glob("offline-run-*")
        (file,) = self.folder.glob("*.wandb")
        by_type = defaultdict(list)
        for record in records(file):
            kind = record.WhichOneof("record_type")
            by_type[kind].append(getattr(record, kind))
        (self.run,) = by_type["run"]
        (self.exit,) = by_type["exit"]
        self.metrics = by_type["metric"]
        history = [self._items(history.item) for history in by_type["history"]]
        self.history = [{k: v for k, v in line.items() if not k.startswith("_")} for line in history]
        self.summary: dict = {}
        for summary in by_type["summary"]:
            self.summary |= self._items(summary.update)

    @staticmethod
    def _items(items: list) -> dict:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def test_an_offline_run_holds_the_metrics_file_and_the_whole_description(tmp_path, start, monkeypatch) -> None:
    write(tmp_path, 1, 5)
    monkeypatch.setenv("WANDB_PROJECT", "the environment's, which the configuration overrides")
    mirror, notes = start("auto")
    write(tmp_path, 6, 7, resume_step=5)  # the file grows while it is mirrored
    (tmp_path / "report.html").write_text("<p>A report</p>")
    mirror.summary({"evaluation/nll": 3.25})
    bins = {"count": [0, 4, 1], "confidence": [0, 0.5, 0.9], "accuracy": [0, 0.25, 1]}
    mirror.report(tmp_path / "report.html", {"T = 1": bins})
    wait_until(lambda: notes)
    os.kill(mirror.pid, signal.SIGTERM)  # a batch system signals every process of a job
    mirror.close(3)

    found = OfflineRun(tmp_path)
    *lines, _ = found.history  # the last one is the diagram
    assert lines == read_metrics(tmp_path / "metrics.jsonl")
    assert len(lines) == 7
    files = found.folder / "files"
    table = json.loads(next(files.rglob("*.table.json")).read_text())
    assert table["data"] == [[0, "calibrated", 0], [1, "calibrated", 1], [0.5, "T = 1", 0.25], [0.9, "T = 1", 1]]
    run = found.run
    named = (run.display_name, run.run_group, run.project, list(run.tags))
    assert named == ("a name", "a group", "a project", ["one", "two"])
    settings = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert settings["seed"] == 3
    assert settings["model"] == {"hidden_size": 256, "head_dim": None}
    steps = {metric.name or metric.glob_name: metric.step_metric for metric in found.metrics}
    assert steps["tokens"] == ""
    assert {steps[name] for name in ("*", "train/*", "val/*", "val/nll", "val/accuracy")} == {"tokens"}
    assert found.summary["val/nll"] == {"min": 0.25, "last": 0.25}
    assert found.summary["val/accuracy"] == {"max": 0.5 - 0.25 / 20, "last": 0.5 - 0.25 / 20}
    assert found.summary["evaluation/nll"] == 3.25
    assert (files / found.summary["report"]["path"]).read_text() == "<p>A report</p>"
    assert found.exit.exit_code == 3
    (note,) = notes  # that it is offline, why, and how to upload it
    assert "no key" in note
    assert note.endswith(f"wandb sync {found.folder}")
    # Neither the code nor the console has been copied.
    assert not list(found.folder.rglob("*.py"))
    assert not list(found.folder.rglob("output.log"))


def test_the_shipped_sweep_gives_its_runs_the_agents_id_and_values_that_hydra_reads(tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "configs/wandb_sweep.yaml").read_text())
    assert sweep["program"] == "scripts/train.py"
    chosen = [f"{name}={entry['values'][-1]}" for name, entry in sweep["parameters"].items()]
    macros = {"${env}": [], "${program}": [], "python": [], "${args_no_hyphens}": chosen}
    read = load("train", [word for part in sweep["command"] for word in macros.get(part, [part])])
    assert (read.loss.label_smoothing, read.seed, read.wandb.mode) == (0.2, 2, "online")
    assert sweep["metric"] == {"name": "val/nll", "goal": "minimize"}

    agent = {"WANDB_SWEEP_ID": "a1b2", "WANDB_RUN_ID": "given"}
    assert choose_run_id(tmp_path / "run-id", agent) == "given"
    assert choose_run_id(tmp_path / "run-id", {}) == "given"  # continued without the agent it stays that run
    own = choose_run_id(tmp_path / "other-id", {"WANDB_RUN_ID": "left over from another run"})
    assert own == choose_run_id(tmp_path / "other-id", {}) != "left over from another run"


def test_a_run_that_goes_on_stays_one_run_with_every_step_once(tmp_path: Path, start) -> None:
    write(tmp_path, 1, 7)
    start()[0].close(1)
    first = OfflineRun(tmp_path)
    write(tmp_path, 6, 13, resume_step=5, amended=4.5)  # the last line holds the last val/nll
    mirror, notes = start()
    mirror.close(0)
    second = OfflineRun(tmp_path)
    assert second.run.run_id == first.run.run_id
    assert second.history == read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in second.history] == list(range(1, 14))
    assert second.summary["val/nll"] == {"min": 0.25, "last": 4.5}
    assert len(notes) == 1


def test_the_environment_decides_where_the_config_leaves_it_open() -> None:
    assert choose_mode(config("auto"), {}) == "auto"
    for environment, chosen in (("", "auto"), ("offline", "offline"), ("Disabled", "disabled"), (" ONLINE ", "online")):
        assert choose_mode(config("auto"), {"WANDB_MODE": environment}) == chosen
    for mode, environment in (("offline", "nonsense"), ("online", "offline"), ("disabled", "online")):
        assert choose_mode(config(mode), {"WANDB_MODE": environment}) == mode


@pytest.mark.parametrize(
    ("mode", "environment", "word"),
    [("disabled", "", None), ("auto", "nonsense", "WANDB_MODE"), ("offline", "", "wandb")],
)
def test_where_wandb_is_off_nothing_is_started(tmp_path, start, monkeypatch, mode, environment, word) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    (tmp_path / "wandb").write_text("a file where wandb's folder belongs")
    mirror, notes = start(mode)
    mirror.summary({"evaluation/nll": 3.25})
    mirror.report(tmp_path / "report.html", {})
    assert mirror.pid is None
    mirror.close(0)
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]
    assert [word in note for note in notes] == ([] if word is None else [True])


def test_the_environment_names_what_the_configuration_leaves_open(tmp_path: Path, start, monkeypatch) -> None:
    write(tmp_path, 1, 2)
    for name in ("PROJECT", "NAME", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", "the environment's")
    start(project=None, tags=())[0].close(0)
    run = OfflineRun(tmp_path).run
    assert {run.project, run.display_name, *run.tags} == {"the environment's"}


def test_a_server_that_never_answers_leaves_an_offline_run(tmp_path: Path, start, monkeypatch) -> None:
    """One that is away: ``tests/faults/test_wandb.py``."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    write(tmp_path, 1, 3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        mirror, notes = start("auto")
        mirror.close(0)
    found = OfflineRun(tmp_path)
    assert found.history == read_metrics(tmp_path / "metrics.jsonl")
    (note,) = notes
    assert "offline" in note
    assert note.endswith(f"wandb sync {found.folder}")


PACKAGE = """
import json, os, time

print("chatter that nobody should read")

class Run:
    starting_step = int(os.environ.get("TEST_STARTING_STEP", 0))
    dir = "wandb/offline-run-1/files"
    url = "http://127.0.0.1/run"

    def __init__(self):
        self.lines, self.summary = [], {}

    def define_metric(self, *_, **__): pass

    def log(self, line, step, commit):
        self.lines.append(line)
        self.finish()

    def finish(self, exit_code=None):
        with open(os.environ["TEST_SEEN"] + ".tmp", "w") as file:
            json.dump({"lines": self.lines, "summary": self.summary}, file)
        os.rename(file.name, os.environ["TEST_SEEN"])

def hang(*_, **__): time.sleep(3600)
def broken(*_, **__): raise RuntimeError("a bug in wandb\\nwith details")
def login(**_): return "TEST_STARTING_STEP" in os.environ
def init(**_): return Run()
def teardown(): pass
def Settings(**_): pass
"""
# What is wrong with the wandb package, and what the user must read.
FAULTS = {
    "import raises": ("raise ImportError('a bug in wandb')", "a bug in wandb"),
    "init raises": ("init = broken", "a bug in wandb"),
    "logging raises": ("Run.log = broken", "a bug in wandb"),
    "finishing raises": ("Run.finish = broken", "a bug in wandb"),
    "the process dies": ("os._exit(7)", "exit code 7"),
    "import hangs": ("hang()", "within 0.5 s"),
    "init hangs": ("init = hang", "within 0.5 s"),
    "logging hangs": ("Run.log = hang", "within 0.5 s"),
    "finishing hangs": ("Run.finish = hang", "within 0.5 s"),
}


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a wandb package with a fault in the way of the real one; return the file of what it logged."""

    def install(fault: str = "") -> Path:
        folder = tmp_path_factory.mktemp("package")
        (folder / "wandb.py").write_text(PACKAGE + fault)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("TEST_SEEN", str(folder / "seen.json"))
        return folder / "seen.json"

    return install


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_a_broken_wandb_costs_one_line_and_bounded_time(tmp_path: Path, start, install, fault, words) -> None:
    install(fault)
    write(tmp_path, 1, 3)
    began = time.monotonic()
    mirror, notes = start()
    pid = mirror.pid
    mirror.summary({"evaluation/nll": 3.25})
    hangs = "within" in words
    mirror.close(0, timeout=0.5 if hangs else 20.0)
    assert time.monotonic() - began < 60 or not hangs
    assert not alive(pid)
    (note,) = [note for note in notes if "offline" not in note]
    assert words in note
    assert "details" not in note


def test_a_run_continued_online_sends_what_the_server_lacks_and_knows_the_best_of_all(
    tmp_path: Path, start, install, monkeypatch
) -> None:
    seen = install()
    monkeypatch.setenv("TEST_STARTING_STEP", "7")
    write(tmp_path, 1, 9)
    mirror, notes = start("online")
    mirror.close(0)
    found = json.loads(seen.read_text())
    assert [line["step"] for line in found["lines"]] == [7, 8, 9]
    assert found["summary"]["val/nll"] == {"min": 0.25, "last": 2.75}
    assert notes == ["wandb: http://127.0.0.1/run"]


def test_metrics_that_are_added_to_the_last_line_are_mirrored(tmp_path: Path, start, install) -> None:
    seen = install()
    write(tmp_path, 1, 7)
    mirror, notes = start()
    wait_until(seen.exists)  # the file was read
    write(tmp_path, 8, 7, resume_step=7, amended=0.125)
    mirror.close(0)
    found = json.loads(seen.read_text())
    assert found["lines"] == read_metrics(tmp_path / "metrics.jsonl")
    assert found["lines"][-1]["val/nll"] == found["summary"]["val/nll"]["min"] == 0.125
    assert len(notes) == 1


def test_a_process_that_stops_reading_never_blocks_the_run(tmp_path: Path, start, install) -> None:
    install()
    mirror, notes = start()
    pid = mirror.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    mirror.summary({f"evaluation/{step}": "x" * 1000 for step in range(200)})  # more than a pipe holds
    mirror.close(0, timeout=1.0)
    assert time.monotonic() - began < 60
    assert not alive(pid)
    assert len(notes) == 1


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from nanolm.config.schema import WandbConfig
from nanolm.tracking import MetricsFile
from nanolm.tracking.wandb_mirror import WandbMirror
file = MetricsFile(Path(sys.argv[1], "metrics.jsonl"), None)
config = WandbConfig(mode="offline", project=None, entity=None, group=None, tags=())
mirror = WandbMirror(config, file.path, "a name", {}, lambda note: None)
for step in range(1, 6):
    file.write({"step": step, "tokens": step})
print(mirror.pid, flush=True)
"""


def run_program(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    """Run a program that starts a mirror, prints its process id and does not close it."""
    command = [sys.executable, "-c", PROGRAM + end, str(folder), str(ROOT)]
    with open(folder / "errors", "w") as errors:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")


def test_a_program_that_forgets_to_close_ends_at_once(tmp_path: Path, install) -> None:
    install(FAULTS["init hangs"][0])
    began = time.monotonic()
    ended = run_program(tmp_path, "")
    assert time.monotonic() - began < 60  # not an hour
    os.kill(int(ended.stdout), signal.SIGKILL)
    assert ended.returncode == 0
    assert (tmp_path / "errors").read_text() == ""


@needs_proc
def test_no_process_outlives_a_killed_mirror(tmp_path: Path, start) -> None:
    write(tmp_path, 1, 3)
    mirror, notes = start()
    wait_until(lambda: notes)
    services = Path(f"/proc/{mirror.pid}/task/{mirror.pid}/children").read_text().split()
    assert services
    os.kill(mirror.pid, signal.SIGKILL)
    wait_until(lambda: not any(alive(int(service)) for service in services))
    wait_until(lambda: len(notes) == 2)
    assert "-9" in notes[1]
    mirror.close(0)


@needs_proc
def test_a_killed_training_process_leaves_a_whole_mirror_and_no_process(tmp_path: Path) -> None:
    ended = run_program(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(int(ended.stdout)))
    found = OfflineRun(tmp_path)
    assert found.history == read_metrics(tmp_path / "metrics.jsonl")
    assert len(found.history) == 5
    assert found.exit.exit_code == 1
