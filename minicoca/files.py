"""Files of ours: written whole or not at all, and sealed, so that damage is seen on reading.

A sealed file says in its own form ("minicoca": FORM) that it is one, and holds the SHA-256 of all
else that it says. One without either is of an earlier version, or was made by hand: it is read, and
cannot be checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

FORM = 2  # of sealed files; raise it when they are written differently
MARK, SEAL = "minicoca", "sha256"
BINARY = getattr(os, "O_BINARY", 0)  # Windows
PIECE = 2**26  # bytes of one write
OURS = re.compile(r"(.+)\.[0-9a-f]{8}")  # ... beside a file that a person may keep others beside
UNFINISHED = re.compile(r"(.+)\.[0-9a-z_]{8}")  # what a save that was killed leaves beside a file


class Damaged(ValueError):
    """A file does not hold what was written into it."""


@contextlib.contextmanager
def saving(name: object) -> Iterator[None]:
    """Whatever the system says against writing, with the name of what it was to be."""
    try:
        yield
    except BrokenPipeError:  # whoever read it has seen enough
        raise
    except OSError as error:
        raise OSError(f"{name} was not written: {error.strerror or error}") from error


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write bytes so that a reader sees the old file or the new one, never a part of either, and so
    that after a loss of power one of them is there.

    A new file has the rights that the umask leaves, one that is replaced keeps its own. Raises
    OSError, naming the file, where that fails: the old one is whole then, and nothing else is left
    behind.
    """
    with replacing(path) as handle:
        write_all(handle, data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[int]:
    """For a `with`: an open file to `write_all` to, which at its end is the one of that name, as
    `write_atomically` has it."""
    path = Path(path)
    with saving(path):
        if path.is_symlink():  # it stays one, to what is new
            path = Path(os.path.realpath(path))
        before = path.stat() if path.exists() else None
        if before and not stat.S_ISREG(before.st_mode):
            raise OSError("it is no ordinary file")
        temporary = path.with_name(f"{path.name[:40]}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        try:
            try:
                yield handle
                os.fsync(handle)
            finally:
                os.close(handle)
            if before:
                keep_rights(temporary, before)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_output(path: str | os.PathLike, data: bytes) -> None:
    """`write_atomically` of what a person asks for, in a folder that there may not be yet."""
    with saving(path):
        make_folder(Path(path).parent)
    write_atomically(path, data)


def keep_rights(path: Path, before: os.stat_result) -> None:
    """The rights and the group of the file that is replaced, as far as we may give them."""
    with contextlib.suppress(OSError, AttributeError):
        if path.stat().st_gid != before.st_gid:
            os.chown(path, -1, before.st_gid)
    with contextlib.suppress(OSError):
        os.chmod(path, stat.S_IMODE(before.st_mode))


def sync_folder(folder: Path) -> None:
    """What a folder holds, by name, outlasts a loss of power. A no-op where folders cannot be
    opened (Windows) or synced (some network drives)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path, there: bool = True) -> None:
    """Make a folder, and those above it, to outlast a loss of power. there: it may exist already.
    Raises OSError, FileExistsError among them."""
    missing = [parent for parent in folder.absolute().parents if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=there)
    for made in (folder.absolute(), *missing):
        sync_folder(made.parent)


@contextlib.contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """For a `with`: a folder to write files into, which has its name once all of them are there.

    Raises OSError where there is one of this name that is not empty, or it cannot be written:
    nothing is left behind then, and nothing of an error inside.
    """
    with saving(folder):
        make_folder(folder.absolute().parent)
        inside = folder.absolute().with_name(f".{folder.name[:40]}.{secrets.token_hex(4)}")
        inside.mkdir()
    try:
        yield inside
        for path in inside.iterdir():
            sync(path)
        with saving(folder):
            sync_folder(inside)
            os.replace(inside, folder)
            sync_folder(folder.absolute().parent)
    except BaseException:
        shutil.rmtree(inside, ignore_errors=True)
        raise


def append(path: str | os.PathLike, data: bytes, size: int | None = None) -> None:
    """Add bytes at the end of a file. Where not all of them fit it stays as it was: OSError. size:
    its bytes, if that is known: what is behind them, an earlier call failed to take away."""
    with saving(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
        try:
            before = os.fstat(handle).st_size
            if size is not None and size < before:
                os.ftruncate(handle, before := size)
            try:
                write_all(handle, data)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Every byte to an open file. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest[:PIECE]) :]


def sync(path: Path) -> None:
    """What a file holds outlasts a loss of power."""
    with saving(path):
        handle = os.open(path, os.O_RDWR | BINARY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unfinished(
    folder: Path, names: Iterable[str], form: re.Pattern[str] = UNFINISHED
) -> list[Path]:
    """What killed saves of these files left in a folder."""
    wanted = {name[:40] for name in names}
    found = [(path, form.fullmatch(path.name)) for path in folder.iterdir()]
    return [path for path, match in found if match and match[1] in wanted]


def digest(*parts: bytes | memoryview) -> str:
    """SHA-256 of the parts and of their lengths, so that none runs into the next."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def sealed(fields: Mapping) -> dict:
    """JSON's fields as a sealed file holds them."""
    fields = {MARK: FORM, **fields}
    return fields | {SEAL: digest(canonical(fields))}


def unsealed(fields: object, path: object) -> tuple[dict, bool]:
    """(fields as they were given to `sealed`, whether they were sealed). Raises Damaged."""
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not a JSON object")
    said = {name: value for name, value in fields.items() if name != SEAL}
    was = check_seal(fields, lambda: digest(canonical(said)), path)
    return {name: value for name, value in said.items() if name != MARK}, was


def check_seal(found: Mapping, seal: Callable[[], str], path: object) -> bool:
    """Whether there is a seal in `found`; raises Damaged where there is, and it is not `seal()`."""
    if MARK not in found and SEAL not in found:
        return False
    form = str(found.get(MARK, ""))
    if form.isdecimal() and len(form) < 9 and int(form) > FORM:
        raise ValueError(f"{path} was written by a newer minicoca; this one reads form {FORM}")
    if found.get(SEAL) != seal():
        raise Damaged(
            f"{path} does not hold what was written into it (its sha256 differs): it is damaged, "
            "or was edited; take it from a copy"
        )
    return True


def canonical(fields: Mapping) -> bytes:
    """JSON of the same bytes for the same fields, in whatever order and spacing."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def read_json(path: Path) -> tuple[dict, bool]:
    """The fields of a JSON file, and whether they were sealed. Raises ValueError, naming it."""
    text = read_bytes(path)
    try:
        fields = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        words = str(error) or type(error).__name__
        raise ValueError(f"{path}: no JSON, or cut off ({words[:100]})") from error
    return unsealed(fields, path)


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises ValueError, naming it, where it is none or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path} is no file, but a folder, pipe or device")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def write_json(path: Path, fields: Mapping) -> None:
    """Write fields as a sealed file."""
    write_atomically(path, json.dumps(sealed(fields), indent=1).encode())
