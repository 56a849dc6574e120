import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pydantic
import pytest

from nanolm.errors import ConfigError, DataError
from nanolm.files import (
    MAX_RECORD_BYTES,
    FileEntry,
    atomic_directory,
    check_file_table,
    failure,
    file_table,
    lock,
    read_record,
    sweep_leftovers,
    write_atomically,
)
from tests.faults.injection import in_child, kill_at


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, "zwei\r\né")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_bytes() == "zwei\r\né".encode()
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_is_published_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with contextlib.suppress(IsADirectoryError), atomic_directory(path) as folder:
        (folder / "half").mkdir()
        (folder / "half").write_text("a folder takes no text")
    assert os.listdir(tmp_path) == []
    for content in ("first", "second"):
        with atomic_directory(path) as folder:
            (folder / "file").write_text(content)
            assert not path.exists() or (path / "file").read_text() == "first"
    assert (path / "file").read_text() == "second"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_killed_writer_leaves_only_what_is_swept(tmp_path):
    """Killed before each call that changes something: afterwards there is the old folder or the new one, whole."""

    def replace():
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / "file").write_text("new")

    found, call = [], 0
    while True:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("old")
        status = in_child(replace, kill_at(call))
        sweep_leftovers(tmp_path)
        assert os.listdir(tmp_path) == ["folder"]
        found.append((tmp_path / "folder" / "file").read_text())
        shutil.rmtree(tmp_path / "folder")
        if status == 0:
            break
        assert status == signal.SIGKILL
        call += 1
    assert found[0] == "old"
    assert found[-1] == "new"


def test_a_lock_names_its_owner_and_dies_with_it(tmp_path):
    path = tmp_path / "folder" / ".lock"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock(path, ConfigError, "training"):
            os.write(write, b"held")
            signal.pause()
    try:
        assert os.read(read, 4) == b"held"
        words = rf"training here \(process {pid} on"
        with pytest.raises(ConfigError, match=words), lock(path, ConfigError, "training"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with lock(path, ConfigError, "training"):  # what the dead one left is stale
        pass
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("change", "hashes", "words"),
    [
        (lambda path: path.write_bytes(b"b" * 100), True, "content of 'b'"),
        (lambda path: path.write_bytes(b"c" * 100), True, "sha256"),
        (lambda path: path.write_bytes(b"a" * 99), False, "expected 100 bytes, found 99"),
        (lambda path: path.unlink(), False, "missing"),
        (lambda path: path.unlink() or path.mkdir(), False, "found a folder"),
        (lambda path: path.unlink() or path.symlink_to("b"), False, "found a link"),
    ],
)
def test_a_file_table_notices_every_change(tmp_path, change, hashes, words):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    table = file_table(tmp_path)
    check_file_table(tmp_path, table, DataError)
    change(tmp_path / "a")
    with pytest.raises(DataError, match=rf"{tmp_path / 'a'}.*{words}"):
        check_file_table(tmp_path, table, DataError, hashes=hashes)


ON_A_FOLDER_ONLY = """
import errno, os, stat
sync = os.fsync
def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(ERROR, os.strerror(ERROR))
    sync(descriptor)
os.fsync = fsync
"""
NO_LOCKS = """
import errno, fcntl, os
def flock(file, how):
    raise OSError(ERROR, os.strerror(ERROR))
fcntl.flock = flock
"""
USE = """
import logging, sys
from pathlib import Path
from nanolm.errors import ConfigError
from nanolm.files import atomic_directory, lock, write_atomically
logging.basicConfig(format="%(levelname)s %(message)s")
folder = Path(sys.argv[1])
for name in ("one", "two"):
    with lock(folder / name / ".lock", ConfigError, "testing"), atomic_directory(folder / name / "folder") as made:
        write_atomically(made / "file", "text")
"""


def use_without(tmp_path, system, error):
    source = system.replace("ERROR", f"errno.{error}") + USE
    return subprocess.run([sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True)


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EINVAL", "ENOTSUP", "EOPNOTSUPP"])
@pytest.mark.parametrize(("system", "word"), [(ON_A_FOLDER_ONLY, "sync"), (NO_LOCKS, "locks")], ids=["sync", "flock"])
def test_a_file_system_without_a_call_is_a_warning_once(tmp_path, error, system, word):
    """What vboxsf, sshfs and Lustre answer; the answer is injected, below everything of ours."""
    done = use_without(tmp_path, system, error)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("WARNING")
    assert word in warning
    assert os.strerror(getattr(errno, error)) in warning
    assert [(tmp_path / name / "folder/file").read_text() for name in ("one", "two")] == ["text"] * 2


@pytest.mark.parametrize("system", [ON_A_FOLDER_ONLY, NO_LOCKS], ids=["sync", "flock"])
def test_a_file_system_that_fails_is_an_error(tmp_path, system):
    assert "OSError: [Errno 5]" in use_without(tmp_path, system, "EIO").stderr


def test_a_failure_names_the_file_the_cause_and_the_room_where_it_counts(tmp_path, monkeypatch):
    def text(number, filename=None, place=None):
        return failure(OSError(number, os.strerror(number), filename), place)

    assert text(errno.EACCES, "a/b") == "a/b: Permission denied"
    assert text(errno.EMFILE, None, tmp_path) == f"{tmp_path}: Too many open files"
    assert text(errno.EMFILE) == "Too many open files"
    assert re.fullmatch(rf"{tmp_path}: No space left on device, with [\d,]+ bytes free there", text(28, None, tmp_path))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert "No such file" in text(errno.ENOENT, "a/b")
    gone.rmdir()
    assert "working directory" in text(errno.ENOENT, "a/b")


class Settings(pydantic.BaseModel, extra="forbid", frozen=True):
    name: str
    rate: float = pydantic.Field(gt=0)
    sizes: tuple[int, ...] = ()
    files: dict[str, FileEntry] = {}


def test_a_record_is_read_strictly(tmp_path):
    path = tmp_path / "settings.json"
    table = {"settings.json": {"sha256": "0", "size": 1}}
    path.write_text(json.dumps({"name": "a", "rate": 2, "sizes": [1, 2], "files": table}))
    assert read_record(path, Settings, DataError) == Settings(name="a", rate=2.0, sizes=(1, 2), files=table)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"name": 1, "rate": 0, "sizes": ["1"], "other": 2}', ["name", "rate", "sizes.0", "other"]),
        (b'{"name": "a"}', ["rate"]),
        (b'{"name": "a", "rate": 1, "files": {"x": {"sha256": "0"}}}', ["files.x.size"]),
        (b"[" * 300 + b"]" * 300, ["recursion"]),
        (b"[" * 100_000, ["recursion"]),
        (b'{"name": "\xff"}', ["JSON"]),
        (b'{"name": "\\ud800", "rate": 1}', []),
        (b"{", ["JSON"]),
        (b"", ["JSON"]),
        (b"[]", ["the file"]),
        (b" " * (MAX_RECORD_BYTES + 1), ["bytes"]),
    ],
)
def test_a_record_that_is_not_one_is_refused_with_every_problem(tmp_path, content, words):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_record(path, Settings, DataError)
    assert all(word in str(refused.value) for word in [str(path), *words])
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["none", "link", "pipe", "folder"])
def test_a_record_is_an_ordinary_file(tmp_path, kind):
    path = tmp_path / "settings.json"
    (tmp_path / "right.json").write_text('{"name": "a", "rate": 1}')
    make = {"none": id, "link": lambda p: p.symlink_to("right.json"), "pipe": os.mkfifo, "folder": os.mkdir}
    make[kind](path)
    with pytest.raises(DataError, match="expected a file"):
        read_record(path, Settings, DataError)
