"""The child process that mirrors a metrics file to wandb; the only place that imports wandb.

Run as a script, with two lines of JSON on standard input: the description of the run at the start and its results at
the end (see ``WandbMirror``). An input that ends without results means that the training process has died. Each line
on standard output is for the user. It knows nothing of nanolm, so that it starts fast.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

LOWEST_IS_BEST = ("val/nll", "val/perplexity", "val/bits_per_byte", "val/brier", "val/ece", "val/smooth_ece")
# Metrics whose best value is kept in the summary beside the last one.
BEST: dict[str, Any] = {**dict.fromkeys(LOWEST_IS_BEST, min), "val/accuracy": max}
SECONDS_BETWEEN_READS = 1.0
SECONDS_AFTER_THE_END = 60.0  # for wandb to finish; longer than a living training process waits
EXPLAINED = 2


class Parent:
    """Hold the pipes to the training process; a thread reads its last message, so that any hang of wandb ends."""

    def __init__(self) -> None:
        # wandb's service inherits descriptors 0 to 2; it must not hold the pipes of the training process.
        self._input, self._output = os.fdopen(os.dup(0), "rb"), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        self.job: dict[str, Any] = json.loads(self._input.readline() or "{}")
        self.results: dict[str, Any] = {"exit_code": 1}
        self.ended = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        with contextlib.suppress(ValueError):  # no whole line: the training process has died
            self.results |= json.loads(self._input.readline())
        self.ended.set()
        time.sleep(SECONDS_AFTER_THE_END)
        os._exit(EXPLAINED)

    def print(self, text: str) -> None:
        """Pass a line on to the user, if the training process is still there to print it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._output, text.encode() + b"\n")


class Mirror:
    """Log a metrics file to one wandb run."""

    def __init__(self, run: Any, metrics: str) -> None:
        self._run = run
        self._metrics = metrics
        self._position = 0
        self._best: dict[str, dict[str, float]] = {}
        run.define_metric("tokens")
        for group in ("*", "train/*", "val/*"):
            run.define_metric(group, step_metric="tokens")
        for key, best in BEST.items():
            run.define_metric(key, step_metric="tokens", summary=f"{best.__name__},last")

    def read(self, *, to_the_end: bool = False) -> None:
        """Log new whole lines; the last one waits ``to_the_end``, since metrics may still be added to it."""
        with open(self._metrics, "rb") as file:  # by its name: an added metric replaces the file
            file.seek(self._position)
            lines = [line for line in file if line.endswith(b"\n")]
        for raw in lines if to_the_end else lines[:-1]:
            self._position += len(raw)
            line = json.loads(raw)
            # A run that goes on at the server already has the steps before this one.
            if line["step"] >= self._run.starting_step:
                self._run.log(line, step=line["step"], commit=True)
            for key, best in BEST.items():
                if (value := line.get(key)) is not None:
                    before = self._best.get(key, {}).get(best.__name__, value)
                    self._best[key] = {best.__name__: best(before, value), "last": value}

    def finish(self, results: dict[str, Any]) -> None:
        """Log the rest of the file and the results, and end the run."""
        self.read(to_the_end=True)
        # wandb's own minimum knows only the steps of this start; the file knows all.
        self._run.summary.update(results.get("summary", {}) | self._best)
        if "report" in results:
            show_report(self._run, results)
        self._run.finish(exit_code=results["exit_code"])


def start_run(parent: Parent) -> Any:
    """Start the wandb run: online with a key and a server, else offline with a line that says so."""
    import wandb

    job, reason = parent.job, ""
    if job["mode"] != "offline":
        try:
            if wandb.login(prompt=False, verify=False):
                run = init(job, "online")
                parent.print(f"wandb: {run.url}")
                return run
            reason = "no key was found" if job["mode"] == "auto" else "wandb.mode=online, but no key was found"
        except Exception as error:
            reason = f"the server could not be used ({first_line(error)})"
            wandb.teardown()
    run = init(job, "offline")
    folder = Path(job["metrics"]).parent / "wandb" / Path(run.dir).parent.name
    for older in folder.parent.glob(f"offline-run-*-{job['id']}"):
        if older.name != folder.name:
            shutil.rmtree(older, ignore_errors=True)  # this start writes the whole run again
    because = f", because {reason}" if reason else ""
    parent.print(f"wandb: offline{because}; to upload the run: wandb sync {shlex.quote(str(folder))}")
    return run


def init(job: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    import wandb

    return wandb.init(
        mode=mode,
        dir=os.path.dirname(job["metrics"]),
        # Offline the run is written whole, and replaces what an earlier upload of it has left.
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(console="off", disable_code=True, save_code=False, silent=True, x_stats_pid=job["pid"]),
        **{key: job[key] for key in ("id", "project", "entity", "group", "tags", "name", "config")},
    )


def show_report(run: Any, results: dict[str, Any]) -> None:
    """Show the page, and the reliability diagram as lines that can be read off."""
    import wandb

    run.summary["report"] = wandb.Html(results["report"], inject=False)
    lines = {"calibrated": [[0, 0], [1, 1]]} | results["reliability"]
    xs, ys = ([[point[axis] for point in line] for line in lines.values()] for axis in (0, 1))
    chart = wandb.plot.line_series(xs, ys, keys=list(lines), title="Reliability", xname="confidence")
    run.log({"reliability": chart})


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    # A batch system signals every process of a job; this one ends when the training process does.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(10)  # the training comes first
    parent = Parent()
    if not parent.job:  # the training process died at once
        return
    sys.argv = parent.job["argv"]  # what wandb shows as the program
    try:
        mirror = Mirror(start_run(parent), parent.job["metrics"])
        while not parent.ended.wait(SECONDS_BETWEEN_READS):
            mirror.read()
        mirror.finish(parent.results)
    except Exception as error:
        parent.print(f"wandb is disabled, the run continues: {first_line(error)}")
        os._exit(EXPLAINED)  # no exit hook may wait for a server


if __name__ == "__main__":
    main()
