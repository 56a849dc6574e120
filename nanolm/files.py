"""Files that are whole or absent, files that may be untrusted, checksums, and a lock that names its owner.

Everything is first written next to its destination under a name that starts with a dot and ends in ``.tmp``, flushed
to the disk, and renamed, so that a crash leaves the old state or the new one. A folder that replaces an older one sets
it aside between two renames, under a name that ends in ``.old``. The next owner of the lock finds what a killed process
left by these names, removes it, and puts a folder that was set aside back.
"""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from nanolm.errors import ConfigError, NanolmError

TEMPORARY_SUFFIX = ".tmp"
ASIDE_SUFFIX = ".old"
MAX_RECORD_BYTES = 64 << 20
MAX_PROBLEMS = 5
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Some network and shared folders answer this to a lock, or to a sync of a folder.
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)

Record = TypeVar("Record", bound=pydantic.BaseModel)
Count = Annotated[int, pydantic.Field(ge=0, lt=1 << 63)]

logger = logging.getLogger(__name__)


class FileEntry(TypedDict):
    """A file in a manifest."""

    sha256: str
    size: int


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def free_bytes(folder: Path) -> int:
    """Return the bytes that an ordinary user may still write in a folder, ignoring quotas."""
    return shutil.disk_usage(folder).free


def failure(error: OSError, place: Path | None = None) -> str:
    """Describe why the system refused something: the file (or ``place``, where the error names none) and the cause."""
    named = error.filename if isinstance(error.filename, str | Path) else place
    cause = error.strerror or str(error)
    if error.errno in NO_ROOM and (folder := Path(place or named or "")).exists():
        cause += f", with {free_bytes(folder):,} bytes free there"
    if error.errno == errno.ENOENT and not working_directory_exists():
        cause = "the working directory was deleted; change to a folder that exists"
    return f"{named}: {cause}" if named else cause


def working_directory_exists() -> bool:
    """Check that relative paths mean something: a terminal may stand in a folder that was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def require_writable(folder: Path, key: str) -> None:
    """Make a folder for results, and raise a ConfigError that names ``key`` if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write results: {error.strerror}; choose another {key}=PATH") from None


def why_no_file(path: Path) -> str | None:
    """Say why an untrusted path is not an ordinary file, or return None: a link leads anywhere, a pipe never ends."""
    if os.path.islink(path):
        return "expected a file, found a link; copy the folder with what its links point to (`cp -rL`)"
    if os.path.isfile(path):
        return None
    return f"expected a file, found {'a folder, a pipe or a device' if os.path.exists(path) else 'none: it is missing'}"


def read_record(path: Path, model: type[Record], error: type[NanolmError]) -> Record:
    """Read a JSON file that may be damaged or untrusted; convert only arrays to tuples and integers to floats.

    Raises:
        error: the file is missing, not an ordinary one, too large, not JSON, too deeply nested, or not what ``model``
            describes; the message names every key with what was expected and what was found.
    """
    try:
        if reason := why_no_file(path):
            raise error(f"{path}: {reason}")
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise error(f"{path}: expected at most {MAX_RECORD_BYTES:,} bytes, found {path.stat().st_size:,}")
        return model.model_validate_json(path.read_bytes(), strict=True)
    except pydantic.ValidationError as invalid:
        problems = [_describe_problem(problem) for problem in invalid.errors()]
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise error(f"{path}: {'; '.join(problems[:MAX_PROBLEMS])}{more}") from None
    except OSError as failed:
        raise error(f"{path}: cannot be read: {failed.strerror}") from None


def _describe_problem(problem: ErrorDetails) -> str:
    """Write one problem that pydantic reports as ``key: expected …, found …``."""
    key = ".".join(map(str, problem["loc"])) or "the file"
    match problem["type"]:
        case "missing":
            return f"{key:.80}: expected, but missing"
        case "extra_forbidden":
            return f"{key:.80}: unknown key"
        case "json_invalid":
            return f"expected JSON: {problem['msg'].removeprefix('Invalid JSON: ')}"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("expected ")
    return f"{key:.80}: expected {expected}, found {problem['input']!r:.80}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_table(folder: Path) -> dict[str, FileEntry]:
    """Return ``{name: {"sha256": …, "size": …}}`` for the files directly in a folder, for its manifest."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: {"sha256": sha256_of(file), "size": file.stat().st_size} for file in files}


def check_file_table(
    folder: Path, table: dict[str, FileEntry], error: type[NanolmError], *, hashes: bool = True
) -> None:
    """Compare a folder with the file table of its manifest; without ``hashes`` only names and sizes, which is fast.

    Raises:
        error: a name that leaves the folder, a file that is missing, of another size, or of another hash.
    """
    for name, entry in table.items():
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise error(f"{folder / 'manifest.json'}: {name!r:.80} is not the plain name of a file in its folder")
        path = folder / name
        if reason := why_no_file(path):
            raise error(f"{path}, named in manifest.json: {reason}")
        if (size := path.stat().st_size) != entry["size"]:
            raise error(f"{path}: expected {entry['size']} bytes, found {size}: the file is damaged")
    for name, entry in table.items() if hashes else ():
        if (found := sha256_of(folder / name)) != entry["sha256"]:
            owners = [f"it holds the content of {other!r:.80}" for other in table if table[other]["sha256"] == found]
            reason = owners[0] if owners else "the file is damaged"
            raise error(f"{folder / name}: its sha256 is not the one in manifest.json: {reason}")


def sync(descriptor: int) -> None:
    """Flush an open file or folder to the disk, as far as its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_once(f"this file system cannot sync ({error.strerror}): a power cut may lose what was written last")


def _sync_path(path: Path) -> None:
    """Flush a file, or a folder so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_beside(path: Path, suffix: str = TEMPORARY_SUFFIX) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace a file's content as one step; text is written as UTF-8 with its line ends as they are."""
    temporary = _temporary_beside(path)
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        _sync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_path(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` when the block ends well and vanishes when it does not."""
    temporary, aside = _temporary_beside(path), _temporary_beside(path, ASIDE_SUFFIX)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in (*sorted(temporary.rglob("*")), temporary):
            _sync_path(file)
        if path.exists():
            os.rename(path, aside)
        os.rename(temporary, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if aside.exists():
        shutil.rmtree(aside)
    _sync_path(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a folder so that no half of it is ever found under its name."""
    temporary = _temporary_beside(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder, or put it back; the caller holds the lock that all writers take."""
    for leftover in (*folder.glob(f".*{ASIDE_SUFFIX}"), *folder.glob(f".*{TEMPORARY_SUFFIX}")):
        path = folder / leftover.name[1:].rsplit(".", 2)[0]
        if leftover.suffix == ASIDE_SUFFIX and not path.exists():
            os.rename(leftover, path)
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


@contextlib.contextmanager
def lock(path: Path, error: type[NanolmError], purpose: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; the kernel releases it when the process dies.

    Raises:
        error: another process holds it, and ``wait`` is not set; the message names that process and the ``purpose``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not through a link: the file is emptied.
    with open(path, "a+", errors="replace", opener=lambda p, flags: os.open(p, flags | os.O_NOFOLLOW, 0o666)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            held = f"{path.parent}: another process is {purpose} here ({file.read(200)})."
            if not wait:
                raise error(f"{held} Wait for it to end, or stop it, or choose another folder.") from None
            logger.warning("%s Waiting for it to end.", held)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as failed:
            if failed.errno not in UNSUPPORTED:
                raise OSError(failed.errno, failed.strerror, str(path)) from None
            _warn_once(f"this file system has no locks ({failed.strerror}): do not start two runs in one folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def glob_paths(pattern: Path) -> Iterator[Path]:
    """Find what a glob matches; ``**`` follows links but enters each folder once, so that loops of links end."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.iglob(str(pattern)))
        return
    place = pattern.parts.index("**")
    rest = pattern.parts[place + 1 :] or ("*",)
    for start in glob_paths(Path(*pattern.parts[:place])):
        for folder in _folders(start):
            yield from glob_paths(Path(glob.escape(str(folder)), *rest))


def _folders(start: Path) -> Iterator[Path]:
    """Find a folder and those below it that are not hidden, each once: by a way without links where there is one."""
    waiting, seen = deque([str(start)]), set[str]()
    while waiting:
        folder = waiting.popleft()
        if not os.path.isdir(folder) or (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        yield Path(folder)
        with contextlib.suppress(OSError):  # a folder that may not be listed has no matches, as in ``glob``
            for entry in os.scandir(folder):
                if not entry.name.startswith("."):
                    (waiting.append if entry.is_symlink() else waiting.appendleft)(entry.path)
