"""A bar on a terminal, plain lines elsewhere, and every line once in the log."""

import io
import logging
import math
import os
import re
import threading

import pytest

from nanolm.tracking.console import Console, duration, number

ESCAPE = "\x1b"


class Terminal:
    """A real pseudo-terminal, and what was written to it."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115
        self._seen = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._master, 65536):
                self._seen += piece
        except OSError:
            pass  # the way a terminal says that its other end is closed

    def text(self) -> str:
        self.stream.close()
        self._reader.join(5)
        os.close(self._master)
        return self._seen.decode()


@pytest.fixture(autouse=True)
def _terminal_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")  # not the width of the terminal that the tests run in


def line(step: int, **more: float) -> dict:
    return {
        "step": step,
        "tokens": 768 * step,
        "train/nll": 3.2142,
        "train/tokens_per_second": 3410.4,
        "train/seconds": 0.25 * step,
        **{key.replace("_", "/", 1): value for key, value in more.items()},
    }


def test_plain_lines_every_log_every_steps_with_no_control_codes() -> None:
    stream = io.StringIO()
    console = Console(400, None, 50, stderr=stream)
    for step in range(1, 121):
        console.step(line(step, val_nll=3.4) if step == 110 else line(step))
    console.note("a [note] in brackets")
    console.close()
    assert stream.getvalue().splitlines() == [
        "step 1/400 (0%) | nll 3.214 | ppl 24.88 | 3,410 tok/s | 1 min 30 s left",
        "step 50/400 (12%) | nll 3.214 | ppl 24.88 | 3,410 tok/s | 1 min 19 s left",
        "step 100/400 (25%) | nll 3.214 | ppl 24.88 | 3,410 tok/s | 1 min 08 s left",
        "step 110/400 (28%) | nll 3.214 | ppl 24.88 | val 3.400 | 3,410 tok/s | 1 min 05 s left",
        "a [note] in brackets",
        "step 120/400 (30%) | nll 3.214 | ppl 24.88 | val 3.400 | 3,410 tok/s | 1 min 03 s left",
    ]


def test_a_limit_in_seconds_gives_the_share_and_the_time_left() -> None:
    stream = io.StringIO()
    Console(None, 100.0, 1, stderr=stream).step(line(200))
    assert stream.getvalue() == "step 200 (50%) | nll 3.214 | ppl 24.88 | 3,410 tok/s | 50 s left\n"


@pytest.mark.parametrize("nll", [math.nan, math.inf, 1e6, None])
def test_a_loss_that_is_no_number_is_shown_and_stops_nothing(nll: float | None) -> None:
    stream = io.StringIO()
    Console(None, None, 1, stderr=stream).step({"step": 1, "tokens": 768, "train/nll": nll})
    assert stream.getvalue().startswith("step 1 | nll ")


def test_results_go_to_standard_output_and_progress_does_not_and_the_log_has_each_line_once(capsys, caplog) -> None:
    console = Console(2)
    with caplog.at_level(logging.INFO, "nanolm"):
        console.step(line(1))
        console.note("a note")
        rows = [("nll", 3.21345, "nats per token"), ("tokens", 1_234_567, ""), ("a", "b", "c")]
        console.table("Evaluation on val", rows)
        console.result("The state of the Union\nruns/a/b")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "Evaluation on val",
        "  metric      value  note",
        "  nll         3.213  nats per token",
        "  tokens  1,234,567",
        "  a               b  c",
        "The state of the Union",
        "runs/a/b",
    ]
    step, note = captured.err.splitlines()
    assert step.startswith("step 1/2")
    assert note == "a note"
    assert caplog.messages == [step, note, *captured.out.splitlines()]


def test_a_terminal_gets_a_bar_with_notes_above_it(caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    console = Console(400, None, 100, stderr=terminal.stream)
    with caplog.at_level(logging.INFO, "nanolm"):
        for step in range(1, 401):
            console.step(line(step, val_nll=3.4) if step == 100 else line(step))
            if step == 150:
                console.note("a [bold]note[/bold] with brackets")
    console.close()
    text = terminal.text()
    assert "a [bold]note[/bold] with brackets\r\n" in text
    assert "━" in text
    last = text.rindex("step 400/400 (100%) | 0 s left")
    assert last > text.rindex(f"{ESCAPE}[2K")  # it is not wiped off again
    assert "nll 3.214 | ppl 24.88 | val 3.400 | 3,410 tok/s" in text
    assert text.count(f"{ESCAPE}[?25l") == text.count(f"{ESCAPE}[?25h") == 1  # the cursor comes back
    logged = [message.split()[1] for message in caplog.messages if message.startswith("step")]
    assert logged == ["1/400", "100/400", "200/400", "300/400", "400/400"]  # the plain lines all the same


@pytest.mark.parametrize("width", [2, 7, 20, 60, 200])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    console = Console(400, stderr=terminal.stream, stdout=terminal.stream)
    console.step(line(1, val_nll=3.4))
    with console.progress("tokenizing") as update:
        update(10, 20)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text())
    assert "s" in plain
    assert max(len(row) for row in re.split("[\r\n]+", plain)) <= width


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_codes_gets_plain_lines(monkeypatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    terminal = Terminal()
    console = Console(2, stderr=terminal.stream, stdout=terminal.stream)
    console.step(line(1))
    console.close()
    text = terminal.text()
    assert ESCAPE not in text
    assert text.startswith("step 1/2 (50%) | nll 3.214")


def test_a_table_on_a_terminal_fits_its_width() -> None:
    terminal = Terminal()
    Console(stdout=terminal.stream).table("Evaluation", [("nll", 3.2, "[nats] per token " * 9), ("tokens", 12345, "")])
    lines = terminal.text().splitlines()
    assert max(map(len, lines)) <= 80
    for cell in ("Evaluation", "nll", "3.200", "[nats] per token", "12,345"):
        assert any(cell in line for line in lines)


def test_progress_in_bytes_and_without_a_total() -> None:
    stream = io.StringIO()
    console = Console(stderr=stream)
    with console.progress("tokenizing") as update:
        for done in range(0, 11_000_001, 1_000_000):
            update(done, 11_000_000)
    with console.progress("scoring", unit="documents") as update:
        update(1234, None)
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"tokenizing \(100%\) \| 11.0/11.0 MB \| [\d.,]+ MB/s \| 0 s left", first)
    assert re.fullmatch(r"scoring \| 1,234 documents \| [\d,]+ documents/s", second)


@pytest.mark.parametrize("done", [1000, 1001, 3990, 10**12])
def test_more_than_the_whole_is_never_shown(done: int) -> None:
    stream = io.StringIO()
    with Console(stderr=stream).progress("scoring", unit="tokens") as update:
        update(done, 1000)
    (shown,) = stream.getvalue().splitlines()
    assert ("(100%)" in shown) == (done == 1000)
    assert "-" not in shown
    assert max(map(int, re.findall(r"(\d+)%", shown)), default=0) <= 100


def test_a_character_that_the_output_cannot_show_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Console(stdout=stream).result("naïve \ud800 →")
    assert raw.getvalue() == b"na\\xefve \\ud800 \\u2192\n"


def test_a_broken_display_stops_nothing_but_a_broken_result_is_an_error() -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    console = Console(10, stderr=full, stdout=full)
    console.step(line(1))
    console.note("a note")
    with pytest.raises(OSError, match="No space left"):
        console.result("a path")


def test_durations_and_numbers_as_people_read_them() -> None:
    seconds = {0.4: "0 s", 59.6: "1 min 00 s", 3599.4: "59 min 59 s", 7500: "2 h 05 min", 97200: "1 d 3 h"}
    assert {value: duration(value) for value in seconds} == seconds
    numbers = {24.9299: "24.93", 0.0412: "0.04120", 3: "3", 1543.2: "1,543", 1e12: "1.000e+12", math.inf: "inf"}
    assert {value: number(value) for value in numbers} == numbers
