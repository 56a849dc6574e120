"""Files that are whole or absent: atomic publication, checksums, and a lock that names its owner.

Everything is first written beside its destination under a name that starts with a dot and ends in
``.tmp``, flushed to the disk, and renamed. The rename is atomic within a file system, and the folder is
synced after it, so that a crash leaves the old state or the new one. What a killed process left behind
is recognised by that name and swept by the next owner of the lock. A folder that replaces an older one sets it
aside, under a name that ends in ``.old``, for the moment between two renames; the same sweep puts it back if that
moment was the last one.
"""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanolm.errors import ConfigError, NanolmError

TEMPORARY_SUFFIX = ".tmp"
ASIDE_SUFFIX = ".old"
MAX_NESTING = 64
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system answers that has no locks, or that does not sync folders: some network and shared folders."""

logger = logging.getLogger(__name__)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there; quotas are not known."""
    return shutil.disk_usage(folder).free


def failure(error: OSError, place: Path | None = None) -> str:
    """Why the system refused something: the file (or the place, where the error names none) and the real cause."""
    named = error.filename if isinstance(error.filename, str | Path) else place
    cause = error.strerror or str(error)
    if error.errno in NO_ROOM and (folder := Path(place or named or "")).exists():
        cause += f", with {free_bytes(folder):,} bytes free there"
    if error.errno == errno.ENOENT and not working_directory_exists():
        cause = "the working directory was deleted; change to a folder that exists"
    return f"{named}: {cause}" if named else cause


def working_directory_exists() -> bool:
    """Whether relative paths mean anything; a terminal may stand in a folder that was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def require_writable(folder: Path, key: str) -> None:
    """Make a folder for results, and find out before the work whether a file can be written there.

    Raises:
        ConfigError: it cannot; the message names the ``key`` that gives another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise ConfigError(
            f"{folder}: the results cannot be written there: {error.strerror}; give another folder as {key}=PATH"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: bytes) -> Any:
    """What a JSON file holds that may be damaged, or made by a stranger.

    Raises:
        ValueError: not UTF-8, not JSON, or nested so deeply that a message about it, or a hash of it, could not be
            made.
    """
    try:
        content = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels") from None
    level: list[Any] = [content]
    for _ in range(MAX_NESTING):
        parents = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in parents for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return content
    raise ValueError(f"nested deeper than {MAX_NESTING} levels")


def sync(descriptor: int) -> None:
    """Flush an open file or folder to the disk, as far as its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_once(
            f"this file system does not sync files or folders on demand ({error.strerror}); the run goes on, but a "
            "power cut may lose what was published last"
        )


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, so that a rename in it survives a power cut."""
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
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            sync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends well and vanishes when it does not.

    Every file in it is synced before the rename. An older folder at ``path`` is replaced.
    """
    temporary = _temporary_beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            sync_path(file)
        sync_path(temporary)
        if path.exists():
            aside = _temporary_beside(path, ASIDE_SUFFIX)
            os.rename(path, aside)
            try:
                os.rename(temporary, path)
            except BaseException:
                os.rename(aside, path)
                raise
            shutil.rmtree(aside)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_path(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a folder in one step, as far as its name goes: no half of it is ever found there."""
    temporary = _temporary_beside(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder; the caller holds the lock that all its writers take.

    A folder that had been set aside goes back to its place if the one that was to replace it is not there.
    """
    for aside in folder.glob(f".*{ASIDE_SUFFIX}"):
        path = folder / aside.name[1:].rsplit(".", 2)[0]
        if path.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, path)
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def file_table(folder: Path) -> dict[str, dict[str, str | int]]:
    """``{name: {"sha256": …, "size": …}}`` for the files directly in a folder, for its manifest."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: {"sha256": sha256_of(file), "size": file.stat().st_size} for file in files}


def check_file_table(folder: Path, table: object, error: type[NanolmError]) -> None:
    """Compare a folder with the file table of its manifest.

    Raises:
        error: a name that leaves the folder, a file that is missing, of another size, or of another hash.
    """
    manifest = folder / "manifest.json"
    if not isinstance(table, dict) or not table:
        raise error(f"{manifest}: expected a table of files, found {table!r:.80}")
    for name, entry in table.items():
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise error(f"{manifest}: {name!r:.80} is not the plain name of a file in its folder")
        if not isinstance(entry, dict) or not {"sha256", "size"} <= entry.keys():
            raise error(f"{manifest}: expected sha256 and size for {name!r:.80}, found {entry!r:.80}")
        path = folder / name
        if reason := why_no_file(path):
            raise error(f"{path}: {reason}")
        if path.stat().st_size != entry["size"]:
            raise error(
                f"{path}: expected {entry['size']!r:.30} bytes, found {path.stat().st_size}: the file is damaged"
            )
    for name, entry in table.items():
        path, found = folder / name, sha256_of(folder / name)
        if found != entry["sha256"]:
            owners = (other for other, listed in table.items() if listed["sha256"] == found)
            owner = next(owners, None)
            reason = "the file is damaged" if owner is None else f"it holds the content of {owner!r:.80}"
            raise error(f"{path}: its sha256 is not the one in manifest.json: {reason}")


def why_no_file(path: Path) -> str | None:
    """Why a file that a manifest names cannot be taken: it is missing, or no file of its folder itself; None if it can.

    A link may lead anywhere, a pipe may never end.
    """
    if os.path.islink(path):
        return "expected a file, found a link; copy the folder with what its links point to (`cp -rL`)"
    return None if os.path.isfile(path) else "this file is named in manifest.json but it is missing"


@contextlib.contextmanager
def lock(path: Path, error: type[NanolmError], purpose: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; the kernel lets go of it when the process dies.

    A lock file that nobody holds is stale and is simply taken over. Where the file system has no locks, a warning says
    so once and the block runs without.

    Raises:
        error: another process holds it; the message names that process and the ``purpose`` of the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8", opener=_open_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise error(
                f"{path.parent}: another process is {purpose} here ({_describe_owner(file.read())}). "
                "Wait for it to end, or stop it, or choose another folder."
            ) from None
        except OSError as failed:
            if failed.errno not in UNSUPPORTED:
                raise OSError(failed.errno, failed.strerror, str(path)) from None
            _warn_once(
                f"this file system has no locks ({failed.strerror}); the run goes on, but a second one in the same "
                "folder would not be noticed: start none"
            )
        file.truncate(0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(owner))
        file.flush()
        yield


def _open_no_link(path: str, flags: int) -> int:
    # The lock is emptied and written: through a link that would be another file.
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _describe_owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "its name is not readable"


def glob_paths(pattern: Path) -> Iterator[Path]:
    """What a glob matches. ``**`` follows links but enters each folder once; in ``glob`` loops of links never end."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.iglob(str(pattern)))
        return
    place = pattern.parts.index("**")
    rest = pattern.parts[place + 1 :] or ("*",)
    for start in glob_paths(Path(*pattern.parts[:place])):
        for folder in _folders(start):
            yield from glob_paths(Path(glob.escape(str(folder)), *rest))


def _folders(start: Path) -> Iterator[Path]:
    """A folder and those below it that are not hidden, each once: by a way without links where there is one."""
    waiting, linked, seen = [str(start)], list[str](), set[str]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        if not os.path.isdir(folder) or (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        yield Path(folder)
        with contextlib.suppress(OSError):  # a folder that may not be listed has no matches, as in ``glob``
            for entry in os.scandir(folder):
                if not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir()):
                    (linked if entry.is_symlink() else waiting).append(entry.path)
