"""Files that are whole or absent: atomic publication, checksums, and a lock that names its owner.

Everything is first written beside its destination under a name that starts with a dot and ends in
``.tmp``, flushed to the disk, and renamed. The rename is atomic within a file system, and the folder is
synced after it, so that a crash leaves the old state or the new one. What a killed process left behind
is recognised by that name and swept by the next owner of the lock. A folder that replaces an older one sets it
aside, under a name that ends in ``.old``, for the moment between two renames; the same sweep puts it back if that
moment was the last one.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanolm.errors import NanolmError

TEMPORARY_SUFFIX = ".tmp"
ASIDE_SUFFIX = ".old"
MAX_NESTING = 64


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


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


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
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(temporary)
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
    sync_directory(path.parent)


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

    A lock file that nobody holds is stale and is simply taken over.

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
