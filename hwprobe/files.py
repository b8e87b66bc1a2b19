"""Reading and writing files so that a crash never leaves half a file and a user never sees a traceback.

What is read is bounded: an untrusted file may be a device, a pipe without a writer, or gigabytes long.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from hwprobe.errors import InputError, SgtuneError

T = TypeVar("T")
Content = str | Iterable[bytes]

MIB = 1 << 20
# What a person or a tool of ours writes to configure something stays far below.
MOST_BYTES = 4 * MIB
# A launch file, a compose file, a manifest: a few KiB.
LAUNCH_FILE_BYTES = MIB // 4
# Records, recorded lengths and prompts.
MOST_RECORD_BYTES = 2048 * MIB
PART = ".part"
LONGEST_NAME = 100
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}
# The disk's fault, not the user's.
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS)
OWN_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def read_bytes(path: Path, file_kind: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file, or of a pipe of this process (/dev/stdin, a shell's `<(...)`).

    Raises InputError naming the `file_kind` expected: unreadable, no file, larger than `most_bytes`.
    """
    try:
        with _opened(path, file_kind) as stream:
            data: bytes = stream.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file_kind} '{path}': {_why(error)}") from error
    if len(data) > most_bytes:
        raise InputError(f"{file_kind} '{path}' is larger than {_size(most_bytes)}, the most that is read of one")
    return data


def _opened(path: Path, file_kind: str) -> Any:
    """Open for reading without ever waiting for a writer. Raises InputError for what is no file."""
    own = own_stream(path)
    if own is not None:
        return os.fdopen(os.dup(own), "rb")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind == stat.S_IFREG:
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise InputError(f"{file_kind} '{path}' is {KINDS.get(kind, 'no file')}; name a file")


def own_stream(path: Path) -> int | None:
    """Return the descriptor that a path like /dev/stdout or /dev/fd/63 means, None for any other path."""
    text = str(path)
    if text in OWN_STREAMS:
        return OWN_STREAMS[text]
    for folder in ("/dev/fd/", "/proc/self/fd/"):
        number = text.removeprefix(folder)
        if number != text and number.isdecimal() and len(number) < 7:
            return int(number)
    return None


def write_atomic(
    path: Path, text: Content, *, executable: bool = False, durable: bool = True, private: bool = False
) -> None:
    """Write `text` (or parts in UTF-8, never held whole) so that the file is the old one or the whole new one.

    Mode and owner of a file that is there are kept, and so is a link to it; a new one is as the umask says, for its
    owner alone where `private`. /dev/stdout and its like are written through. `durable` waits until it is on disk;
    without it a power cut may leave the old file, or none. Raises InputError for a place that cannot be written,
    SgtuneError where the disk is at fault.
    """
    own = own_stream(path)
    try:
        if own is not None or str(path) == os.devnull:
            _write_through(path, own, text)
            return
        target, before = _target(path)
        manner = _Manner(executable=executable, durable=durable, private=private)
        _replace(target, before, _parts(text), manner)
    except (OSError, ValueError) as error:
        raise_unwritable(path, error)


def write_own(
    path: Path, text: Content, *, executable: bool = False, durable: bool = True, private: bool = False
) -> None:
    """Write where sgtune chose to, not its user: as `write_atomic`, but whatever fails is a SgtuneError (exit 1)."""
    try:
        write_atomic(path, text, executable=executable, durable=durable, private=private)
    except InputError as error:
        raise SgtuneError(str(error)) from error


def _parts(text: Content) -> Iterable[bytes]:
    return (text.encode(),) if isinstance(text, str) else text


def _write_through(path: Path, own: int | None, text: Content) -> None:
    sys.stdout.flush()
    handle = os.open(path, os.O_WRONLY) if own is None else os.dup(own)
    with os.fdopen(handle, "wb") as stream:
        stream.writelines(_parts(text))


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the file to replace (a link's own target) and what it is now. Raises InputError for what is no file."""
    try:
        before = path.stat()
    except FileNotFoundError:
        target = path.resolve() if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target, None
    kind = stat.S_IFMT(before.st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"cannot write '{path}': it is {KINDS.get(kind, 'no file')}; name a file")
    return (path.resolve() if path.is_symlink() else path), before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manner:
    """How a file is written: with execute permission, synced to disk, readable by its owner alone."""

    executable: bool
    durable: bool
    private: bool


def _replace(target: Path, before: os.stat_result | None, parts: Iterable[bytes], manner: _Manner) -> None:
    temporary = target.with_name(f".{target.name[:LONGEST_NAME]}.{secrets.token_hex(4)}{PART}")
    mode = (0o777 if manner.executable else 0o666) & (0o700 if manner.private else 0o777)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            if before is not None:
                _keep_owner_and_mode(stream.fileno(), before, manner)
            stream.writelines(parts)
            stream.flush()
            if manner.durable:
                os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:  # interrupted or not: the half file goes, the error stays
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _keep_owner_and_mode(handle: int, before: os.stat_result, manner: _Manner) -> None:
    with contextlib.suppress(OSError):  # another's file in our folder: it becomes ours, as with any editor
        os.fchown(handle, before.st_uid, before.st_gid)
    mode = stat.S_IMODE(before.st_mode) & (0o700 if manner.private else 0o777)
    os.fchmod(handle, mode | (0o111 & (mode >> 2) if manner.executable else 0))


def append_line(path: Path, text: str, *, durable: bool = True, private: bool = False) -> None:
    """Append text to a regular file, made if missing. Raises as `write_atomic` does; half a write is taken back."""
    own = own_stream(path)
    try:
        if own is not None or str(path) == os.devnull:
            _write_through(path, own, text)
            return
        _target(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(path, flags, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb", buffering=0) as stream:
            length = os.fstat(handle).st_size
            try:
                _write_all(handle, text.encode())
                if durable:
                    os.fsync(handle)
            except BaseException:  # interrupted or not: the half line goes, the error stays
                with contextlib.suppress(OSError):
                    stream.truncate(length)
                raise
    except (OSError, ValueError) as error:
        raise_unwritable(path, error)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def raise_unwritable(path: Path, error: OSError | ValueError) -> NoReturn:
    """Raise the error that says why a file cannot be written: the disk's fault (exit 1) or the name's (exit 2)."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise SgtuneError(f"cannot write '{path}': {_why(error)}; make room there and try again")
    raise InputError(f"cannot write '{path}': {_why(error)}; name a folder you may write to") from error


def _why(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count >> 10} KiB"


def decode_json(data: bytes | str, kind: type[T], where: str) -> T:
    """Decode and validate JSON into `kind`. Raises InputError that names the file and the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {plain_problem(str(error))}") from error
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON (nested too deeply)") from error


def encode_json(value: Any, *, indent: int = 2) -> str:
    """Encode a value as JSON text, indented for people (indent=0: one line)."""
    return json_bytes(value, indent=indent).decode()


def json_bytes(value: Any, *, indent: int = 2) -> bytes:
    """Encode a value as `encode_json` does, in UTF-8."""
    raw = msgspec.json.encode(value)
    return msgspec.json.format(raw, indent=indent) if indent else raw


def content_hash(value: Any) -> str:
    """Return a short hash of a value's JSON form."""
    return hashlib.sha256(encode_json(value, indent=0).encode()).hexdigest()[:16]


def plain_problem(message: str) -> str:
    """Turn msgspec's "Object missing required field `x` - at `$.gpus[0]`" into plain words."""
    problem, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    problem = problem.replace("Object missing required field", "missing field").replace("`", "'")
    return f"{problem} (at {place})" if place else problem
