"""The Hub corpora through the real ``datasets`` library: from a local folder, and from a server that speaks the Hub's
protocol on this machine. What is not tested here is the Hub itself."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from nanolm.data import hub, open_corpus, open_prepared
from nanolm.data.hub import articles
from nanolm.errors import DataError

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40


def write_dataset(folder, **rows):
    """A dataset repository whose configuration ``stories`` has a file for each split."""
    (folder / "stories").mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: stories\n  data_files:\n"
    for split, texts in rows.items():
        lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)]
        (folder / "stories" / f"{split}.jsonl").write_text("".join(lines))
        card += f"  - split: {split}\n    path: stories/{split}.jsonl\n"
    (folder / "README.md").write_text(card + "---\n")
    return folder


def stories(split, count):
    return [f"{split} story {i}\r\n" for i in range(count)]


@pytest.fixture
def local(config, tmp_path, monkeypatch):
    """``local(name, "data.key=…", train=[…], …)``: documents by split of a dataset in a local folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def read(name, *overrides, **rows):
        folder = write_dataset(tmp_path / "dataset", **rows)
        given = [f"data={name}", f"data.hub_path={folder}", "data.hub_name=stories", *overrides]
        found = {}
        for document in open_corpus(config(*given).data).documents():
            found.setdefault(document.split, []).append("".join(document.chunks))
        return found

    return read


def test_splits_of_the_hub_are_ours_and_calibration_comes_out_of_train(local):
    rows = {"train": stories("train", 500), "validation": stories("validation", 5), "test": stories("test", 3)}
    found = local("tinystories", **rows)
    assert found["val"] == rows["validation"]
    assert found["test"] == rows["test"]
    assert sorted(found["train"] + found["calibration"]) == sorted(rows["train"])
    assert 25 < len(found["calibration"]) < 75, "a tenth, each document by itself"
    assert found["calibration"] != rows["train"][: len(found["calibration"])]


def test_without_calibration_train_is_whole(local):
    found = local("tinystories", "data.calibration_fraction=0", train=stories("train", 50), validation=["v"])
    assert {split: len(texts) for split, texts in found.items()} == {"train": 50, "val": 1}


def test_without_a_validation_split_the_first_documents_are_held_out(local):
    rows = stories("train", 60)
    found = local("fineweb_edu", "data.held_out_documents=12", "data.max_documents=null", train=rows)
    assert found["train"] == rows[12:]
    assert {split: len(texts) for split, texts in found.items()} == {"train": 48, "val": 4, "test": 4, "calibration": 4}
    assert sorted(found["val"] + found["test"] + found["calibration"]) == sorted(rows[:12])


def test_max_documents_counts_in_each_split(local):
    found = local("tinystories", "data.max_documents=7", train=stories("t", 50), validation=stories("v", 50))
    assert len(found["train"]) + len(found.get("calibration", [])) == 7
    assert len(found["val"]) == 7


WIKI = (
    " \n = First = \n \n Text of the first . \n = x is no heading in the midst of text = \n \n = = Section = = \n \n"
    " More text . \n \n = Second title = \n \n Other text = with a sign = \n"
)


def test_wikitext_lines_become_articles_that_are_the_original_file(local):
    lines = WIKI.splitlines(keepends=True)
    rows = [line if line.strip() else "" for line in lines]  # as the Hub's rows are
    found = local("wikitext2", "data.calibration_fraction=0", train=rows, validation=rows, test=rows)
    assert set(found) == {"train", "val", "test"}
    for texts in found.values():
        assert "".join(texts) == WIKI
        assert [text.split("=")[1] for text in texts] == [" First ", " Second title "]


def test_articles_say_where_they_begin():
    lines = [(f"row {i}", line) for i, line in enumerate(["", " = A = \n", "", " a \n", "", " = B = \n", "", " b \n"])]
    assert [place for place, _ in articles(lines)] == ["row 0", "row 5"]
    assert [text for _, text in articles([("row 1", "no heading at all")])] == ["no heading at all"]
    assert list(articles([])) == []


@pytest.mark.parametrize(
    ("override", "splits", "words"),
    [
        ("data.text_column=txt", ["train"], r"split train, row 1.*'txt', found 'id', 'text'.*data\.text_column=text"),
        ("data.text_column=id", ["train"], "split train, row 1.*'id', found 0"),
        ("data.hub_name=novels", ["train"], r"novels.*\['stories'\]"),
        ("data.max_documents=null", ["validation"], "train, only validation"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said(local, override, splits, words):
    with pytest.raises(DataError, match=words):
        local("tinystories", override, **{split: ["text"] for split in splits})


# Over the network


class StandIn(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's protocol as reading one dataset takes."""

    files: dict[str, bytes]
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path)
        api, raw = "/api/datasets/owner/stories", "/datasets/owner/stories/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json({"id": "owner/stories", "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            self.answer_json([self.entry(name) for name in self.files if name.startswith(folder)])
        elif path.startswith(f"{api}/revision/"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(raw):
            self.answer_file(path.removeprefix(raw).split("/", 1)[1])
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self):
        names = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self.answer_json([self.entry(name) for name in names if name in self.files])

    def entry(self, name):
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": self.hash(name)}

    def hash(self, name):
        return hashlib.sha1(self.files[name]).hexdigest()

    def answer_file(self, name):
        if name not in self.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.hash(name)}"', "Accept-Ranges": "bytes"}
        content, status = self.files[name], 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            content, status = content[int(first) : end], 206
        return self.answer(status, content, headers)

    def answer_json(self, content):
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


PREPARE = """
import json, sys, time
from nanolm.data import prepare
from nanolm.errors import DataError
from tests.data.conftest import configure
for case in json.loads(sys.argv[1]):
    config = configure(*case)
    started = time.perf_counter()
    try:
        result = str(prepare(config.data, config.tokenizer))
    except DataError as error:
        result = f"DataError: {error}"
    print(json.dumps([result, time.perf_counter() - started]), flush=True)
"""


def run(cases, tmp_path, endpoint):
    """Prepare each case in one process whose Hub is at ``endpoint``; its results and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps(cases)],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def case(root, name, *overrides):
    return [str(root), f"data={name}", "data.hub_path=owner/stories", "data.hub_name=stories", *overrides]


def test_a_dataset_is_read_from_a_hub_and_then_from_what_was_kept(tmp_path):
    repository = write_dataset(
        tmp_path / "repository", train=stories("train", 60), validation=stories("val", 4), test=stories("test", 4)
    )
    files = {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    requests = []
    handler = type("Handler", (StandIn,), {"files": files, "requests": requests})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"

    root, other = tmp_path / "prepared", tmp_path / "other"
    results = run(
        [
            case(root, "tinystories"),
            case(root, "fineweb_edu", "data.held_out_documents=12"),
            case(root, "tinystories", "data.hub_path=owner/nothing"),
            case(root, "tinystories", "data.hub_revision=nowhere"),
        ],
        tmp_path,
        endpoint,
    )
    kept, streamed = (open_prepared(path) for path, _ in results[:2])
    for corpus in (kept, streamed):
        assert corpus.manifest.source["commit"] == COMMIT
        counts = {name: split.num_documents for name, split in corpus.splits.items()}
        assert counts["train"] + counts["calibration"] == 60
        assert counts["val"] == counts["test"] == 4
    assert kept.splits["train"].num_tokens == streamed.splits["train"].num_tokens
    for (message, _), words in zip(
        results[2:], (["data.hub_path", "owner/nothing"], ["data.hub_revision", "nowhere"]), strict=True
    ):
        assert message.startswith("DataError")
        assert all(word in message for word in words)
    assert not any("/main" in path for path in requests), "the commit is pinned, whatever main becomes meanwhile"
    server.shutdown()
    server.server_close()

    # The same Hub, gone: what is prepared needs none, what is in the cache of datasets is read, the rest is refused.
    before = len(requests)
    results = run(
        [
            case(root, "tinystories"),
            case(other, "tinystories"),
            case(other, "fineweb_edu"),
            case(other, "tinystories", f"data.hub_revision={'b' * 40}"),
        ],
        tmp_path,
        endpoint,
    )
    assert Path(results[0][0]) == kept.folder
    assert open_prepared(results[1][0]).fingerprint == kept.fingerprint
    for message, seconds in results[2:]:
        assert message.startswith("DataError: data=")
        assert "ConnectError" in message
        assert seconds < 5
    assert len(requests) == before


def test_a_hub_that_does_not_answer_is_given_up_on_within_ten_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ((message, seconds),) = run([case(tmp_path, "tinystories")], tmp_path, endpoint)
    assert message.startswith("DataError")
    assert seconds < 9


def test_a_name_lookup_that_hangs_is_given_up_on(monkeypatch):
    answered = threading.Event()

    def hang(*_, **__):
        answered.wait(60)
        raise socket.gaierror("no answer at last")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match="TimeoutError"):
        hub.find_commit("owner/stories", None)
    assert time.perf_counter() - started < 3
    answered.set()


def test_local_corpora_ask_nobody(tokenize, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "file.txt").write_text("some text " * 10)
    tokenize("data=text", f"data.path={tmp_path / 'file.txt'}")
    tokenize("data=sotu", "data.max_documents=10")
