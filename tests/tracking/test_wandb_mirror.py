"""wandb shows what metrics.jsonl says; and wandb broken, hanging or absent costs a line, never a run.

The first half reads back what an offline run of the real wandb wrote. The second half runs the mirror
against servers that do not answer and against wandb packages that are broken, on this machine alone.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nanolm.config import load
from nanolm.config.schema import WandbConfig
from nanolm.tracking import MetricsFile, read_metrics
from nanolm.tracking.wandb_mirror import WandbMirror, _run_id, choose_mode

ROOT = Path(__file__).parents[2]


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200"
    "01e221bc330000000049454e44ae426082"
)
"""One black pixel."""


def config(mode: str = "auto", **other) -> WandbConfig:
    given = {"project": "a project", "entity": None, "group": "a group", "tags": ("one", "two")} | other
    return WandbConfig(mode=mode, **given)


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[WandbMirror, list[str]]]]:
    """Start a mirror of ``tmp_path/metrics.jsonl``; whatever a test leaves running is ended."""
    mirrors = []

    def start(mode: str = "offline", folder: Path = tmp_path, **other) -> tuple[WandbMirror, list[str]]:
        notes: list[str] = []
        mirror = WandbMirror(
            config(mode, **other),
            run_directory=folder,
            metrics=folder / "metrics.jsonl",
            name="a name",
            run_config={"seed": 3, "model": {"hidden_size": 256, "head_dim": None}},
            note=notes.append,
        )
        mirrors.append(mirror)
        return mirror, notes

    yield start
    for mirror in mirrors:
        mirror.close(1, timeout=0.0)


def lasting(notes: list[str]) -> list[str]:
    """The notes but for the one that a slow machine adds while it waits."""
    return [note for note in notes if "still busy" not in note]


def write(folder: Path, first: int, last: int, resume_step: int | None = None) -> None:
    file = MetricsFile(folder / "metrics.jsonl", resume_step)
    for step in range(first, last + 1):
        line = {"step": step, "tokens": 768 * step, "train/nll": 9 / (step + 2), "train/seconds": step / 7}
        if step == 4:
            line["train/grad_norm"] = math.nan
        if step % 3 == 0:
            line |= {"val/nll": abs(step - 6.25), "val/accuracy": 0.5 - abs(step - 6.25) / 20}
        file.write(line)
    file.close()


def records(path: Path) -> list:
    """The records of a wandb file: a header of 7 bytes, then LevelDB's log format around protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    found, record, position, block = [], b"", 7, 32768
    while position + 7 <= len(data):
        if block - position % block < 7:  # no header fits into the rest of a block
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


class OfflineRun:
    """What the only offline run of a run directory says."""

    def __init__(self, folder: Path) -> None:
        (self.folder,) = (folder / "wandb").glob("offline-run-*")
        (file,) = self.folder.glob("*.wandb")
        by_type: dict[str, list] = {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            by_type.setdefault(kind, []).append(getattr(record, kind))
        (self.run,) = by_type["run"]
        self.metrics = by_type["metric"]
        self.history = [
            {key: value for key, value in self._items(history.item).items() if not key.startswith("_")}
            for history in by_type["history"]
        ]
        self.summary: dict = {}
        for summary in by_type["summary"]:
            self.summary |= self._items(summary.update)
        (self.exit,) = by_type["exit"]

    @staticmethod
    def _items(items: list) -> dict:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_an_offline_run_holds_the_metrics_file_and_the_whole_description(tmp_path: Path, start) -> None:
    write(tmp_path, 1, 5)
    mirror, notes = start("auto")
    write(tmp_path, 6, 7, resume_step=5)  # the file grows while it is mirrored
    (tmp_path / "report.html").write_text("<p>A report</p>")
    mirror.summary({"evaluation/nll": 3.25})
    bins = {"count": [0, 4, 1], "confidence": [0, 0.5, 0.9], "accuracy": [0, 0.25, 1]}
    mirror.report(tmp_path / "report.html", PNG, {"T = 1": bins})
    mirror.close(3)

    found = OfflineRun(tmp_path)
    *steps, diagrams = found.history
    assert steps == read_metrics(tmp_path / "metrics.jsonl")
    assert len(steps) == 7
    image = found.folder / "files" / diagrams["reliability_diagram/path"]
    assert image.read_bytes() == PNG
    table = json.loads(next((found.folder / "files").rglob("*.table.json")).read_text())
    assert table["data"] == [[0, "calibrated", 0], [1, "calibrated", 1], [0.5, "T = 1", 0.25], [0.9, "T = 1", 1]]
    run = found.run
    assert (run.display_name, run.run_group, run.project, list(run.tags)) == (
        "a name",
        "a group",
        "a project",
        ["one", "two"],
    )
    settings = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert settings["seed"] == 3
    assert settings["model"] == {"hidden_size": 256, "head_dim": None}
    steps = {metric.name or metric.glob_name: metric.step_metric for metric in found.metrics}
    assert steps["tokens"] == ""
    assert {steps[name] for name in ("*", "train/*", "val/*", "val/nll", "val/accuracy")} == {"tokens"}
    assert found.summary["val/nll"] == {"min": 0.25, "last": 0.25}
    assert found.summary["val/accuracy"] == {"max": 0.5 - 0.25 / 20, "last": 0.5 - 0.25 / 20}
    assert found.summary["evaluation/nll"] == 3.25
    assert (found.folder / "files" / found.summary["report"]["path"]).read_text() == "<p>A report</p>"
    assert found.exit.exit_code == 3
    # One line says that it is offline, why, and how to upload it.
    assert lasting(notes) == [f"wandb: offline, because no key was found; to upload the run: wandb sync {found.folder}"]
    # Neither the code nor the console has been copied.
    assert not list(found.folder.rglob("*.py"))
    assert not list(found.folder.rglob("output.log"))


def test_the_shipped_sweep_gives_its_runs_the_agents_id_and_values_that_hydra_reads(tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "configs/wandb_sweep.yaml").read_text())
    assert sweep["program"] == "scripts/train.py"
    chosen = [f"{name}={entry['values'][-1]}" for name, entry in sweep["parameters"].items()]
    macros = {"${env}": [], "${program}": [], "python": [], "${args_no_hyphens}": chosen}
    given = [word for part in sweep["command"] for word in macros.get(part, [part])]
    read = load("train", given)
    assert (read.loss.label_smoothing, read.seed, read.wandb.mode) == (0.2, 2, "online")
    assert sweep["metric"] == {"name": "val/nll", "goal": "minimize"}

    agent = {"WANDB_SWEEP_ID": "a1b2", "WANDB_RUN_ID": "given"}
    assert _run_id(tmp_path / "run-id", agent) == "given"
    assert _run_id(tmp_path / "run-id", {}) == "given"  # continued without the agent it stays that run
    own = _run_id(tmp_path / "other-id", {"WANDB_RUN_ID": "left over from another run"})
    assert own == _run_id(tmp_path / "other-id", {}) != "left over from another run"


def test_a_run_that_goes_on_stays_one_run_with_every_step_once(tmp_path: Path, start) -> None:
    write(tmp_path, 1, 7)
    mirror, _ = start()
    mirror.close(1)
    first = OfflineRun(tmp_path)
    write(tmp_path, 6, 12, resume_step=5)  # the last line holds the last val/nll
    mirror, notes = start()
    mirror.close(0)
    second = OfflineRun(tmp_path)
    assert second.run.run_id == first.run.run_id
    assert second.history == read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in second.history] == list(range(1, 13))
    assert second.summary["val/nll"] == {"min": 0.25, "last": 5.75}
    assert lasting(notes) == [f"wandb: offline; to upload the run: wandb sync {second.folder}"]


@pytest.mark.parametrize(
    ("mode", "environment", "chosen"),
    [
        ("auto", {}, "auto"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": ""}, "auto"),
        ("auto", {"WANDB_MODE": "Disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": " OFFLINE "}, "offline"),
        ("auto", {"WANDB_MODE": "nonsense"}, None),
        ("offline", {"WANDB_MODE": "nonsense"}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
    ],
)
def test_the_environment_decides_where_the_config_leaves_it_open(mode: str, environment: dict, chosen: str) -> None:
    assert choose_mode(config(mode), environment) == chosen


def test_an_unknown_mode_in_the_environment_sends_nothing_and_says_so(tmp_path: Path, start, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disable")
    mirror, notes = start("auto")
    mirror.close(0)
    assert list(tmp_path.iterdir()) == []
    (note,) = notes
    assert "WANDB_MODE" in note
    assert "'disable'" in note


@pytest.mark.parametrize(("project", "expected"), [(None, "the environment's"), ("a project", "a project")])
def test_the_environment_names_the_project_and_the_run(tmp_path: Path, start, monkeypatch, project, expected) -> None:
    write(tmp_path, 1, 2)
    for name in ("PROJECT", "NAME", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", "the environment's")
    mirror, _ = start("offline", project=project, tags=())
    mirror.close(0)
    run = OfflineRun(tmp_path).run
    assert (run.project, run.display_name, list(run.tags)) == (expected, "the environment's", ["the environment's"])


def test_disabled_starts_and_writes_nothing(tmp_path: Path, start) -> None:
    mirror, notes = start("disabled")
    mirror.summary({"evaluation/nll": 3.25})
    mirror.close(0)
    assert list(tmp_path.iterdir()) == []
    assert notes == []


def test_a_folder_that_cannot_be_written_turns_the_mirror_off(tmp_path: Path, start) -> None:
    (tmp_path / "wandb").write_text("a file in the way")
    mirror, notes = start()
    mirror.summary({"evaluation/nll": 3.25})
    mirror.close(0)
    (note,) = notes
    assert note.startswith("wandb is off, the run goes on: ")


def test_a_server_that_is_away_or_silent_leaves_an_offline_run(tmp_path: Path, start, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    with socket.socket() as silent, socket.socket() as away:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts, and never answers
        away.bind(("127.0.0.1", 0))  # refuses
        started = []
        for name, server in (("silent", silent), ("away", away)):
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            (tmp_path / name).mkdir()
            write(tmp_path / name, 1, 3)
            started.append((tmp_path / name, *start("auto", tmp_path / name)))
        for folder, mirror, notes in started:
            mirror.close(0)
            found = OfflineRun(folder)
            assert found.history == read_metrics(folder / "metrics.jsonl")
            assert lasting(notes)[-1].startswith("wandb: offline, because the server could not be used (")
            assert lasting(notes)[-1].endswith(f"to upload the run: wandb sync {found.folder}")


BROKEN = {
    "import raises": "raise ImportError('a broken installation')",
    "init raises": "def init(**_): raise RuntimeError('a bug in wandb\\nwith details')",
    "logging raises": "Run.log = broken",
    "setting the summary raises": "Summary.update = broken",
    "finishing raises": "Run.finish = broken",
    "the process dies": "import os; os._exit(7)",
    "import hangs": "import time; time.sleep(3600)",
    "init hangs": "import time\ndef init(**_): time.sleep(3600)",
    "logging hangs": "import time\nRun.log = lambda *_, **__: time.sleep(3600)",
    "finishing hangs": "import time\nRun.finish = lambda *_, **__: time.sleep(3600)",
}
"""wandb packages with one fault each."""

PACKAGE = """
import json, os

print("chatter that nobody should read")

class Summary(dict):
    pass

class Run:
    starting_step = int(os.environ.get("TEST_STARTING_STEP", 0))
    dir = "wandb/offline-run-1/files"
    url = "http://127.0.0.1/run"

    def __init__(self):
        self.summary = Summary()
        self.steps = []

    def define_metric(self, *arguments, **options):
        pass

    def log(self, line, step, commit):
        self.steps.append(step)

    def finish(self, exit_code):
        with open(os.environ["TEST_SEEN"], "w") as file:
            json.dump({"steps": self.steps, "summary": self.summary}, file)

def broken(*arguments, **options):
    raise RuntimeError("a bug in wandb\\nwith details")

def login(**options):
    return "TEST_STARTING_STEP" in os.environ

def init(**options):
    return Run()

def teardown():
    pass

def Settings(**options):
    return None

"""


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a wandb package with a fault in the way of the real one; the file that it leaves when it ends well."""

    def install(fault: str) -> Path:
        folder = tmp_path_factory.mktemp("package")
        (folder / "wandb.py").write_text(PACKAGE + fault)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("TEST_SEEN", str(folder / "seen.json"))
        return folder / "seen.json"

    return install


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_wandb_costs_one_line_and_bounded_time(tmp_path: Path, start, install, fault: str) -> None:
    install(BROKEN[fault])
    write(tmp_path, 1, 3)
    mirror, notes = start()
    process = mirror._process
    began = time.monotonic()
    mirror.summary({"evaluation/nll": 3.25})
    assert time.monotonic() - began < 60
    mirror.close(0, timeout=0.5 if fault.endswith("hangs") else 20.0)
    assert time.monotonic() - began < 60 or not fault.endswith("hangs")
    assert process.poll() is not None
    said = [note for note in lasting(notes) if "offline" not in note]
    assert len(said) == 1, notes
    expected = {
        "import raises": "wandb is off, the run goes on: a broken installation",
        "the process dies": "wandb is off, the run goes on: its process ended with exit code 7",
    }
    if fault.endswith("hangs"):
        assert said[0].startswith("wandb did not finish within 0.5 s and was stopped")
    else:
        assert said[0] == expected.get(fault, "wandb is off, the run goes on: a bug in wandb")


def test_a_run_continued_online_sends_what_the_server_lacks_and_knows_the_best_of_all(
    tmp_path: Path, start, install, monkeypatch
) -> None:
    seen = install("")
    monkeypatch.setenv("TEST_STARTING_STEP", "7")
    write(tmp_path, 1, 9)
    mirror, notes = start("online")
    mirror.close(0)
    found = json.loads(seen.read_text())
    assert found["steps"] == [7, 8, 9]
    assert found["summary"]["val/nll"] == {"min": 0.25, "last": 2.75}
    assert lasting(notes) == ["wandb: http://127.0.0.1/run"]


def test_a_process_that_stops_reading_never_blocks_the_run(tmp_path: Path, start, install) -> None:
    install("")
    mirror, notes = start()
    process = mirror._process
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    for step in range(200):
        mirror.summary({f"evaluation/{step}": "x" * 1000})  # more than a pipe holds
    mirror.close(0, timeout=1.0)
    assert time.monotonic() - began < 60
    assert process.poll() == -signal.SIGKILL
    assert notes[0] == "wandb is off, the run goes on: its process does not answer"


def test_a_program_that_forgets_to_close_ends_at_once(tmp_path: Path, install) -> None:
    install(BROKEN["init hangs"])
    program = (
        "import pathlib, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from nanolm.config.schema import WandbConfig\n"
        "from nanolm.tracking.wandb_mirror import WandbMirror\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "mirror = WandbMirror(WandbConfig('offline', 'a project', None, None, ()), run_directory=folder,\n"
        "    metrics=folder / 'metrics.jsonl', name='a name', run_config={}, note=print)\n"
        "print(mirror._process.pid); time.sleep(0.2)"
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert time.monotonic() - began < 60  # not an hour
    os.kill(int(ended.stdout), signal.SIGKILL)  # its init hangs for an hour
    assert (ended.returncode, ended.stderr) == (0, "")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_no_process_outlives_a_killed_mirror(tmp_path: Path, start) -> None:
    write(tmp_path, 1, 3)
    mirror, notes = start()
    pid = mirror._process.pid
    wait_until(lambda: notes)
    services = children(pid)
    assert services
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(alive(service) for service in services))
    wait_until(lambda: len(notes) == 2)
    assert notes[1] == "wandb is off, the run goes on: its process ended with exit code -9"
    mirror.close(0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_a_killed_training_process_leaves_a_whole_mirror_and_no_process(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys, time\n"
        "from nanolm.config.schema import WandbConfig\n"
        "from nanolm.tracking import MetricsFile\n"
        "from nanolm.tracking.wandb_mirror import WandbMirror\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "file = MetricsFile(folder / 'metrics.jsonl', None)\n"
        "mirror = WandbMirror(WandbConfig('offline', 'a project', None, None, ()), run_directory=folder,\n"
        "    metrics=file.path, name='a name', run_config={}, note=print)\n"
        "for step in range(1, 6): file.write({'step': step, 'tokens': step})\n"
        "print(mirror._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout.split()[0])
    wait_until(lambda: not alive(pid))
    found = OfflineRun(tmp_path)
    assert found.history == read_metrics(tmp_path / "metrics.jsonl")
    assert len(found.history) == 5
    assert found.exit.exit_code == 1
