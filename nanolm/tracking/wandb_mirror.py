"""The mirror of ``metrics.jsonl`` at Weights & Biases, in a process of its own.

wandb in the training process would mean its threads, its exit hooks, its uploads that wait for a server that never
answers, and at worst a run that cannot end. So a child process (``wandb_process.py``) reads the metrics file as it
grows and logs its lines with wandb. It is sent two messages: the description of the run at the start, and its results
at the end, when this process waits for it for a limited time and then kills it. No step waits for wandb, no line is
lost while wandb is slow, and whatever breaks costs one line of warning and the mirror.

The mirror can always be made again from the file: offline, each start of a run writes it whole; online, a start sends
the steps that the server lacks. Metrics added to a line that an earlier start has sent (``MetricsFile.amend``) are
therefore missing online, except in the best values of the summary. The run's id is kept in ``wandb/run-id`` beside
wandb's files, so that a run that goes on in the same directory stays one run at wandb.
"""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nanolm.config.schema import WandbConfig
from nanolm.errors import ConfigError
from nanolm.files import write_atomically

WORKER = Path(__file__).with_name("wandb_process.py")
EXPLAINED = 2
"""Exit code of the child process when it has printed why it stopped."""

Reliability = Mapping[str, Mapping[str, Sequence[float]]]
"""``count``, ``confidence`` and ``accuracy`` of the bins of each line of a reliability diagram, by the line's name."""


def choose_mode(config: WandbConfig, environment: Mapping[str, str]) -> str:
    """Return ``wandb.mode``, or ``WANDB_MODE`` where that is ``auto`` and the variable is set.

    Raises ConfigError where ``WANDB_MODE`` is unknown.
    """
    given = environment.get("WANDB_MODE", "").strip().lower()
    if config.mode != "auto" or not given:
        return config.mode
    if given not in ("online", "offline", "disabled"):
        raise ConfigError(f"WANDB_MODE: expected online, offline or disabled, found {given!r}")
    return given


def choose_run_id(path: Path, environment: Mapping[str, str]) -> str:
    """Return the id kept in a file; where there is none that is valid, make one and keep it.

    wandb's sweep agent gives an id of its own, by which the server knows the run.
    """
    run_id = environment.get("WANDB_RUN_ID") if environment.get("WANDB_SWEEP_ID") else None
    if run_id is None and path.is_file() and (kept := re.fullmatch(rb"([0-9a-z]{1,64})\n", path.read_bytes())):
        return kept[1].decode()
    run_id = run_id or secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, run_id + "\n")
    return run_id


class WandbMirror:
    """Start the child process and send it the results. No method raises because of wandb; only ``close`` waits for it.

    ``pid`` is the child's process id, None where there is no child.
    """

    def __init__(
        self,
        config: WandbConfig,
        metrics: Path,
        name: str,
        run_config: Mapping[str, object],
        note: Callable[[str], None],
    ) -> None:
        """Start mirroring ``metrics``, which exists; wandb's files go to the folder ``wandb`` beside it.

        ``name`` is the run's display name where ``WANDB_NAME`` gives no other, ``run_config`` the whole configuration
        as plain values. ``note`` is called from another thread with each line for the user.
        """
        self._note = note
        self._results: dict[str, Any] = {"summary": {}}
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self.pid: int | None = None
        try:
            if (mode := choose_mode(config, os.environ)) == "disabled":
                return
            job = {
                "mode": mode,
                "metrics": str(metrics),
                "id": choose_run_id(metrics.parent / "wandb" / "run-id", os.environ),
                "project": config.project or os.environ.get("WANDB_PROJECT") or "nanolm",
                "entity": config.entity,
                "group": config.group,
                "tags": list(config.tags) or None,  # None: those of WANDB_TAGS
                "name": os.environ.get("WANDB_NAME") or name,
                "config": run_config,
                "argv": sys.argv,
                "pid": os.getpid(),
            }
            self._process = self._start(job)
            self.pid = self._process.pid
        except (ConfigError, OSError) as error:
            note(f"wandb is disabled, the run continues: {error}")

    def summary(self, values: Mapping[str, float | int | str | None]) -> None:
        """Set values of the run's summary, such as the metrics of its evaluation."""
        self._results["summary"] |= values

    def report(self, path: Path, reliability: Reliability) -> None:
        """Show an HTML file and the lines of a reliability diagram on the run's page."""
        lines = {
            name: [[c, a] for n, c, a in zip(*(line[k] for k in ("count", "confidence", "accuracy")), strict=True) if n]
            for name, line in reliability.items()
        }
        self._results |= {"report": str(path), "reliability": lines}

    def close(self, exit_code: int, timeout: float = 30.0) -> None:
        """Send the results and let wandb finish, for at most ``timeout`` seconds; its local files stay in any case."""
        process, self._process = self._process, None
        if process is None:
            return
        with process:
            try:
                try:
                    process.communicate(_encode(self._results | {"exit_code": exit_code}), min(3.0, timeout))
                except subprocess.TimeoutExpired:
                    self._note(f"wandb is still busy; waiting for it at most {timeout:g} s")
                    process.communicate(timeout=max(0.0, timeout - 3.0))
            except subprocess.TimeoutExpired:
                self._killed = True
                self._note(f"wandb did not finish within {timeout:g} s and was stopped; metrics.jsonl is complete")
            finally:
                process.kill()
                self._listener.join(1.0)

    def _start(self, job: Mapping[str, object]) -> subprocess.Popen[bytes]:
        # Another wandb run around this one, and a mode that has been decided on already, are not the child's.
        environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_SERVICE", "WANDB_MODE")}
        environment = {"WANDB_ERROR_REPORTING": "false", "WANDB_INIT_TIMEOUT": "15"} | environment
        process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],  # -P: the modules beside the worker hide none of wandb's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C stops the training, not the mirror of how it ended
        )
        assert process.stdin is not None
        assert process.stdout is not None
        printed, process.stdout = process.stdout, None  # the thread's, which ``communicate`` must not read
        self._listener = threading.Thread(target=self._listen, args=[process, printed], daemon=True)
        self._listener.start()
        with contextlib.suppress(BrokenPipeError):  # the listener reports a child that has ended
            os.write(process.stdin.fileno(), _encode(job))
        return process

    def _listen(self, process: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
        """Pass on what the child prints, and report a death that it could not explain."""
        with printed:
            for line in printed:
                self._note(line.decode(errors="replace").rstrip("\n"))
        if (code := process.wait()) not in (0, EXPLAINED) and not self._killed:
            self._note(f"wandb is disabled, the run continues: its process ended with exit code {code}")


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, default=str).encode() + b"\n"
