"""The child process that mirrors a metrics file to wandb; the only place that imports wandb.

Run as a script, with messages as lines of JSON on standard input: first the job (see ``WandbMirror``),
then ``summary``, ``report`` and last ``finish``. An input that ends without ``finish`` means that the
training process has died. Each line on standard output is for the user. It knows nothing of nanolm, so
that it starts fast.
"""

import contextlib
import json
import os
import queue
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

BEST = {
    "val/nll": "min",
    "val/perplexity": "min",
    "val/bits_per_byte": "min",
    "val/brier": "min",
    "val/ece": "min",
    "val/smooth_ece": "min",
    "val/accuracy": "max",
}
"""Metrics whose best value is kept in the summary beside the last one, and which one is best."""
SECONDS_BETWEEN_READS = 1.0
SECONDS_AFTER_THE_PARENT = 30.0
"""How long wandb may take to finish when nobody is there to wait for it."""
EXPLAINED = 2


class Messages:
    """Lines of JSON from the parent, read in a thread of their own, so that its death is noticed in any hang."""

    def __init__(self, descriptor: int) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=[descriptor], daemon=True).start()

    def _read(self, descriptor: int) -> None:
        with open(descriptor, "rb") as pipe:
            for line in pipe:
                self._queue.put(json.loads(line))
        self._queue.put({"finish": 1})
        time.sleep(SECONDS_AFTER_THE_PARENT)
        os._exit(EXPLAINED)

    def next(self, timeout: float) -> dict[str, Any]:
        """The next message, ``{"finish": 1}`` where the parent has died, or ``{}`` if there is none in time."""
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return {}


class User:
    """Who reads this process's standard output, if the training process is still there to pass it on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, text.encode() + b"\n")


class Mirror:
    """One wandb run and how far it has read the metrics file."""

    def __init__(self, run: Any, metrics: str) -> None:
        self._run = run
        self._file = open(metrics, "rb")  # noqa: SIM115
        self._rest = b""
        self._best: dict[str, dict[str, float]] = {}
        run.define_metric("tokens")
        for group in ("*", "train/*", "val/*"):
            run.define_metric(group, step_metric="tokens")
        for key, which in BEST.items():
            run.define_metric(key, step_metric="tokens", summary=f"{which},last")

    def read(self) -> None:
        """Log the lines that were written since the last call; a line still being written waits."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for raw in lines:
            line = json.loads(raw)
            # A run that goes on at the server already has the steps before this one.
            if line["step"] >= self._run.starting_step:
                self._run.log(line, step=line["step"], commit=True)
            self._keep_best(line)

    def _keep_best(self, line: dict[str, Any]) -> None:
        for key, which in BEST.items():
            value = line.get(key)
            if value is not None:
                best = self._best.get(key, {}).get(which, value)
                self._best[key] = {which: min(best, value) if which == "min" else max(best, value), "last": value}

    def finish(self, exit_code: int) -> None:
        self.read()
        # wandb's own minimum knows only the steps of this start; the file knows all.
        self._run.summary.update(self._best)
        self._run.finish(exit_code=exit_code)


def start_run(job: dict[str, Any], user: User) -> Any:
    """The wandb run: online with a key and a server, else offline with a line that says so."""
    import wandb

    mode = job["mode"]
    reason = ""
    if mode != "offline":
        try:
            if wandb.login(prompt=False, verify=False):
                run = init(job, "online")
                user.tell(f"wandb: {run.url}")
                return run
            reason = "no key was found" if mode == "auto" else "wandb.mode=online, but no key was found"
        except Exception as error:
            reason = f"the server could not be used ({first_line(error)})"
            wandb.teardown()
    run = init(job, "offline")
    folder = Path(job["run_directory"], "wandb", Path(run.dir).parent.name)
    for older in folder.parent.glob(f"offline-run-*-{job['id']}"):
        if older.name != folder.name:
            shutil.rmtree(older, ignore_errors=True)  # this start writes the whole run again
    because = f", because {reason}" if reason else ""
    user.tell(f"wandb: offline{because}; to upload the run: wandb sync {shlex.quote(str(folder))}")
    return run


def init(job: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    """Start the run as the job describes it."""
    import wandb

    return wandb.init(
        mode=mode,
        dir=job["run_directory"],
        id=job["id"],
        # Offline the run is written whole, and replaces what an earlier upload of it has left.
        resume="allow" if mode == "online" else None,
        project=job["project"],
        entity=job["entity"],
        group=job["group"],
        tags=job["tags"],
        name=job["name"],
        config=job["config"],
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            save_code=False,
            silent=True,
            x_stats_pid=job["pid"],
        ),
    )


def mirror(messages: Messages, user: User) -> None:
    """Mirror until the parent says ``finish`` or is gone."""
    job = messages.next(timeout=60.0)
    if "metrics" not in job:  # the parent died at once
        return
    sys.argv = job["argv"]  # what wandb shows as the program
    run = start_run(job, user)
    mirrored = Mirror(run, job["metrics"])
    while True:
        message = messages.next(SECONDS_BETWEEN_READS)
        mirrored.read()
        if "summary" in message:
            run.summary.update(message["summary"])
        if "report" in message:
            show_report(run, message)
        if "finish" in message:
            mirrored.finish(message["finish"])
            return


def show_report(run: Any, message: dict[str, Any]) -> None:
    """The page, and the reliability diagram as an image and as lines that can be read off."""
    import wandb

    run.summary["report"] = wandb.Html(message["report"], inject=False)
    lines = {"calibrated": [[0, 0], [1, 1]]} | message["reliability"]
    chart = wandb.plot.line_series(
        xs=[[x for x, _ in line] for line in lines.values()],
        ys=[[y for _, y in line] for line in lines.values()],
        keys=list(lines),
        title="Reliability",
        xname="confidence",
    )
    run.log({"reliability": chart, "reliability_diagram": wandb.Image(message["image"])})


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> int:
    # wandb's service inherits descriptors 0 to 2; it must not hold the pipes of the training process.
    messages = Messages(os.dup(0))
    user = User(os.dup(1))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.nice(10)  # the training comes first
    # A batch system signals every process of a job; this one ends when the training process does.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        mirror(messages, user)
    except Exception as error:
        user.tell(f"wandb is off, the run goes on: {first_line(error)}")
        os._exit(EXPLAINED)  # no exit hook may wait for a server
    return 0


if __name__ == "__main__":
    sys.exit(main())
