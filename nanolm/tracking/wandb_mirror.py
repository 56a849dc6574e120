"""The mirror of ``metrics.jsonl`` at Weights & Biases, in a process of its own.

wandb in the training process would mean its threads, its exit hooks, its uploads that wait for a server
that never answers, and at worst a run that cannot end. So a child process (``wandb_process.py``) reads
the metrics file as it grows and tells wandb; this side starts it, passes on what it has to say, and at
the end waits for it as long as it promised, then kills it. Nothing here waits for wandb in a step, no line
is lost while wandb is slow, and whatever breaks costs one line of warning and the mirror.

The mirror can always be made again from the file: offline, each start of a run writes it whole; online, a
start sends the steps that the server lacks. The run's id is kept in ``wandb/run-id`` beside wandb's files,
so that a run that goes on in the same directory stays one run at wandb.
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
from typing import Literal

from nanolm.config.schema import WandbConfig
from nanolm.files import write_atomically

WORKER = Path(__file__).with_name("wandb_process.py")
Mode = Literal["auto", "online", "offline", "disabled"]
GIVEN_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""What the environment's WANDB_MODE may say, with wandb's older names."""
EXPLAINED = 2
"""Exit code of the child process when it has said itself why it stopped."""


DEFAULT_PROJECT = "nanolm"


def choose_mode(config: WandbConfig, environment: Mapping[str, str]) -> Mode | None:
    """``wandb.mode``, or what ``WANDB_MODE`` says where that is ``auto``; what stays ``auto`` looks for a key.

    None where ``WANDB_MODE`` is unknown: whatever it should have meant, sending nothing is not wrong.
    """
    given = environment.get("WANDB_MODE", "").strip().lower()
    if config.mode != "auto" or not given:
        return config.mode
    return GIVEN_MODES.get(given)


class WandbMirror:
    """The child process and the way to it. No method raises or waits because of wandb, but for ``close``."""

    def __init__(
        self,
        config: WandbConfig,
        *,
        run_directory: Path,
        metrics: Path,
        name: str,
        run_config: Mapping[str, object],
        note: Callable[[str], None],
    ) -> None:
        """Start mirroring ``metrics``.

        Args:
            config: project, entity, group, tags and mode.
            run_directory: wandb's files go to its folder ``wandb``.
            name: the run's display name, where ``WANDB_NAME`` gives no other.
            run_config: the whole configuration as nested dictionaries of plain values.
            note: called from another thread with each line that the user should read.
        """
        self._note = note
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._folder = run_directory / "wandb"
        mode = choose_mode(config, os.environ)
        if mode is None:
            self._note(
                f"wandb is off, the run goes on: WANDB_MODE: expected online, offline or disabled, found "
                f"{os.environ['WANDB_MODE']!r}; correct it, or set wandb.mode"
            )
        if mode in (None, "disabled"):
            return
        try:
            self._start(
                {
                    "mode": mode,
                    "run_directory": str(run_directory),
                    "metrics": str(metrics),
                    "id": _run_id(self._folder / "run-id", os.environ),
                    "project": config.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
                    "entity": config.entity,
                    "group": config.group,
                    "tags": list(config.tags) or None,  # None: what WANDB_TAGS says
                    "name": os.environ.get("WANDB_NAME") or name,
                    "config": run_config,
                    "argv": sys.argv,
                    "pid": os.getpid(),
                }
            )
        except OSError as error:
            self._note(f"wandb is off, the run goes on: {error}")

    def _start(self, job: Mapping[str, object]) -> None:
        # Another wandb run around this one, and a mode that has been decided on already, are not the child's.
        environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_SERVICE", "WANDB_MODE")}
        environment = {"WANDB_ERROR_REPORTING": "false", "WANDB_INIT_TIMEOUT": "15"} | environment
        # -P: the modules beside the worker hide none of wandb's.
        # A session of its own: Ctrl-C stops the training, not the mirror of how it ended.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._listener = threading.Thread(target=self._listen, args=[self._process], name="wandb-notes", daemon=True)
        self._listener.start()
        self._send(job)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._note(line.decode(errors="replace").rstrip("\n"))
        code = process.wait()
        if code not in (0, EXPLAINED) and not self._ending:
            self._note(f"wandb is off, the run goes on: its process ended with exit code {code}")

    def _send(self, message: Mapping[str, object]) -> None:
        """Hand a message to the child; one that does not take it is stuck and is given up."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        data = json.dumps(message, default=str).encode() + b"\n"
        try:
            sent = os.write(self._process.stdin.fileno(), data)
        except BrokenPipeError:
            return  # it has ended, and the listener says why
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._ending = True
            self._process.kill()
            self._note("wandb is off, the run goes on: its process does not answer")

    def summary(self, values: Mapping[str, float | int | str | None]) -> None:
        """Set values of the run's summary, such as the results of its evaluation."""
        self._send({"summary": dict(values)})

    def report(self, path: Path, diagram: bytes, reliability: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Show an HTML file and the reliability diagram, as PNG and as lines, on the run's page."""
        if self._process is None:
            return
        image = self._folder / "reliability.png"
        try:
            write_atomically(image, diagram)
        except OSError as error:
            self._note(f"wandb gets no reliability diagram: {error}")
            return
        lines = {
            name: [[c, a] for n, c, a in zip(*(line[k] for k in ("count", "confidence", "accuracy")), strict=True) if n]
            for name, line in reliability.items()
        }
        self._send({"report": str(path), "image": str(image), "reliability": lines})

    def close(self, exit_code: int, timeout: float = 30.0) -> None:
        """Let wandb finish, for at most ``timeout`` seconds; then it is killed, its local files stay."""
        process = self._process
        if process is None:
            return
        self._send({"finish": exit_code})
        self._process = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(3.0, timeout))
            if process.poll() is None and timeout > 3:
                self._note(f"wandb is still busy; waiting for it at most {timeout:g} s")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout - 3)
        finally:
            if process.poll() is None:
                self._ending = True
                process.kill()
                self._note(f"wandb did not finish within {timeout:g} s and was stopped; metrics.jsonl is complete")
            process.wait()
            self._listener.join(1.0)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _run_id(path: Path, environment: Mapping[str, str]) -> str:
    """The id kept in a file, or a new one where there is none, or none that can be one.

    Under wandb's agent it is the one that the agent has given: by it the server knows the run as one of its sweep.
    """
    run_id = environment.get("WANDB_RUN_ID") if environment.get("WANDB_SWEEP_ID") else None
    if run_id is None and path.is_file() and (kept := re.fullmatch(rb"([0-9a-z]{1,64})\n", path.read_bytes())):
        return kept[1].decode()
    run_id = run_id or secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, run_id + "\n")
    return run_id
