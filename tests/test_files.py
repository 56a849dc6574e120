import contextlib
import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from nanolm.errors import ConfigError, DataError
from nanolm.files import (
    atomic_directory,
    check_file_table,
    failure,
    file_table,
    lock,
    sha256_of,
    sweep_leftovers,
    write_atomically,
)


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, "zwei\r\né")
    assert path.read_bytes() == "zwei\r\né".encode()
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_bytes() == b"old"
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
    script = """
        import os, signal, sys
        from pathlib import Path
        from nanolm.files import atomic_directory
        with atomic_directory(Path(sys.argv[1])) as folder:
            (folder / "file").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "folder")])
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "folder").exists()
    assert len(os.listdir(tmp_path)) == 1
    sweep_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_lock_names_its_owner_and_dies_with_it(tmp_path):
    script = """
        import sys, time
        from pathlib import Path
        from nanolm.errors import ConfigError
        from nanolm.files import lock
        with lock(Path(sys.argv[1]), ConfigError, "training"):
            print("held", flush=True)
            time.sleep(60)
    """
    path = tmp_path / "folder" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"another process is training here \(process {owner.pid} on"),
            lock(path, ConfigError, "training"),
        ):
            pass
        owner.kill()
    with lock(path, ConfigError, "training"):  # what the dead one left is stale
        pass


def test_a_file_table_notices_every_change(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    table = file_table(tmp_path)
    check_file_table(tmp_path, table, DataError)

    (tmp_path / "a").write_bytes(b"a" * 99 + b"x")
    with pytest.raises(DataError, match=r"a: its sha256 is not the one in manifest\.json"):
        check_file_table(tmp_path, table, DataError)
    (tmp_path / "a").write_bytes(b"a" * 99)
    with pytest.raises(DataError, match="a: expected 100 bytes, found 99"):
        check_file_table(tmp_path, table, DataError)
    (tmp_path / "a").unlink()
    with pytest.raises(DataError, match="a: this file is named in manifest"):
        check_file_table(tmp_path, table, DataError)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file", "..", ""])
def test_a_file_table_cannot_point_outside_its_folder(tmp_path, name):
    with pytest.raises(DataError, match="not the plain name of a file"):
        check_file_table(tmp_path, {name: {"sha256": "0", "size": 1}}, DataError)


@pytest.mark.parametrize("table", [None, [], {}, {"a": None}, {"a": {"size": 1}}])
def test_a_damaged_file_table_is_an_error(tmp_path, table):
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(DataError, match="expected"):
        check_file_table(tmp_path, table, DataError)


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


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EINVAL", "ENOTSUP", "EOPNOTSUPP"])
@pytest.mark.parametrize(("system", "word"), [(ON_A_FOLDER_ONLY, "sync"), (NO_LOCKS, "locks")], ids=["sync", "flock"])
def test_a_file_system_without_a_call_is_a_warning_once(tmp_path, error, system, word):
    """What vboxsf, sshfs and Lustre answer; the answer is injected, below everything of ours."""
    source = system.replace("ERROR", f"errno.{error}") + USE
    done = subprocess.run([sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (told,) = done.stderr.splitlines()
    assert told.startswith("WARNING")
    assert word in told
    assert os.strerror(getattr(errno, error)) in told
    assert [(tmp_path / name / "folder/file").read_text() for name in ("one", "two")] == ["text"] * 2


@pytest.mark.parametrize("system", [ON_A_FOLDER_ONLY, NO_LOCKS], ids=["sync", "flock"])
def test_a_file_system_that_fails_is_an_error(tmp_path, system):
    source = system.replace("ERROR", "errno.EIO") + USE
    done = subprocess.run([sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True)
    assert "OSError: [Errno 5]" in done.stderr


def test_a_failure_names_the_file_the_cause_and_the_room_where_it_counts(tmp_path, monkeypatch):
    def told(number, filename=None, place=None):
        return failure(OSError(number, os.strerror(number), filename), place)

    assert told(errno.EACCES, "a/b") == "a/b: Permission denied"
    assert told(errno.EMFILE, None, tmp_path) == f"{tmp_path}: Too many open files"
    assert told(errno.EMFILE) == "Too many open files"
    assert re.fullmatch(rf"{tmp_path}: No space left on device, with [\d,]+ bytes free there", told(28, None, tmp_path))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert told(errno.ENOENT, "a/b") == "a/b: No such file or directory"
    gone.rmdir()
    assert told(errno.ENOENT, "a/b").startswith("a/b: the working directory was deleted")
