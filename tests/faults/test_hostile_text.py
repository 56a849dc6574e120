"""Text and names of files that are markup or commands of a terminal: shown, never obeyed (R11)."""

import html.parser
import io
import json
import logging

import pytest

from nanolm.errors import DataError, visible
from nanolm.tracking import Console
from tests.faults.untrusted import call, make_checkpoint, overrides, resign

MARKUP = "</pre></style><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}{# &amp; \"'`"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\x08\x9b1m\u202egnp.exe"


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def check(page):
    found = Page(page)
    assert not found.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "b"}
    assert not [name for name in found.attributes if name.startswith("on") or name == "src"]
    assert page.count("</style>") == page.count("<style")
    return found


@pytest.fixture
def corpus(tmp_path):
    """A corpus of markup in a file whose name is markup."""
    path = tmp_path / "<img src=x onerror=alert(2)>{{ 6 * 6 }}.jsonl"
    path.write_text("".join(json.dumps({"text": MARKUP + f" number {i}"}) + "\n" for i in range(20)))
    return path


def test_markup_in_the_corpus_the_prompt_and_the_names_is_text_on_every_page(tmp_path, corpus):
    run_dir = tmp_path / "<b>bold</b>" / "{{ 5 * 5 }}"
    code, said = call(
        "train",
        [*overrides(corpus, tmp_path / "data"), f"sample.prompt={MARKUP}", f"hydra.run.dir={run_dir}"],
    )
    assert code == 0, said
    page = check((run_dir / "report.html").read_text(encoding="utf-8"))
    assert MARKUP in page.text, "the samples, as they are"
    assert corpus.name in page.text, "the configuration"
    assert "{{ 5 * 5 }}" in page.text, "the title"

    code, said = call("evaluate", [f"checkpoint={run_dir}", "split=train", f"out={tmp_path / 'out'}"])
    assert code == 0, said
    assert "{{ 5 * 5 }}" in check((tmp_path / "out" / "report-train.html").read_text(encoding="utf-8")).text


def test_markup_in_an_untrusted_calibration_is_text(tmp_path, corpus):
    given = overrides(corpus, tmp_path / "data")
    checkpoint, _ = make_checkpoint(tmp_path / "run", given)
    (checkpoint / "calibration.json").write_text(json.dumps({"temperature": None, "reason": MARKUP + ESCAPES}))
    resign(checkpoint)
    code, said = call("evaluate", [f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"])
    assert code == 0, said
    assert MARKUP in check((tmp_path / "out" / "report-val.html").read_text(encoding="utf-8")).text


# Commands of a terminal


def is_harmless(text):
    return not any(character in text for character in "\x1b\x07\x08\x9b\r\u202e\0")


@pytest.mark.parametrize("content", [b"", b"a\xff"], ids=["empty", "no UTF-8"])
def test_a_file_name_cannot_command_the_terminal(tmp_path, content):
    (tmp_path / f"{ESCAPES}.txt").write_bytes(content)
    code, said = call("train", ["data=text", f"data.path={tmp_path}/*.txt", f"hydra.run.dir={tmp_path / 'run'}"])
    assert code == 2
    assert is_harmless(said)
    assert "\\x1b]0;owned\\x07" in said, "the name is shown all the same"


def test_an_error_is_harmless_wherever_it_is_shown():
    error = DataError(f"{ESCAPES}\0: expected\tthis\nand\r\nthat \ud800")
    assert is_harmless(str(error).replace("\r\n", "\n"))
    assert str(error).endswith("\\x00: expected\tthis\nand\r\nthat \\ud800")


def test_text_is_left_alone():
    text = "Ünïcode 中文 👩‍👩‍👧 עברית e\u0301 \ufeff\u200d\xa0\t\n\r\n<|endoftext|> \\x1b"
    assert visible(text) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_samples_are_exact_in_a_pipe_and_harmless_on_a_terminal(caplog, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    pipe, terminal = io.StringIO(), Terminal()
    with caplog.at_level(logging.INFO, "nanolm"):
        Console(stdout=pipe, stderr=io.StringIO()).result(ESCAPES)
        Console(stdout=terminal, stderr=io.StringIO()).result(ESCAPES)
    assert pipe.getvalue() == ESCAPES + "\n"
    assert is_harmless(terminal.getvalue())
    assert is_harmless(caplog.text), "nor does train.log hold them"


@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_notes_are_harmless_everywhere(kind, monkeypatch):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console = Console(stderr=stream, stdout=io.StringIO())
    console.note(f"a reason {ESCAPES}")
    console.close()
    assert "\\x1b]0;owned\\x07" in stream.getvalue()
    assert not any(escape in stream.getvalue() for escape in ("\x1b]", "\x1b[2J"))
