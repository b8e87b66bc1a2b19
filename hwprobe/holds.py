"""Things only one process may have at a time: a lock file that says who holds it, and folders that end with us.

The kernel lets go of a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hwprobe.errors import InputError

ALIVE = ".alive"
SCRATCH = "sgtune-scratch-"
MOST_SAID = 4096
# Linux's prctl(2): the signal a process gets when the one that started it dies.
PR_SET_PDEATHSIG = 1


class Held(Exception):
    """Another process holds it; `said` is what that process wrote into the lock file."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.said = holder


class Hold:
    """An exclusive lock on a file, held until `release` or the end of this process."""

    def __init__(self, path: Path, saying: str = "") -> None:
        """Take it and write `saying` into the file. Raises Held, or OSError where the file cannot be opened.

        The file is opened without following a link and readable by this user alone: so no other user can make us write
        elsewhere.
        """
        self.path = path
        while True:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                    raise OSError(0, "it is not a regular file", str(path))
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._handle, MOST_SAID, 0).decode(errors="replace").strip()
                os.close(self._handle)
                raise Held(holder) from None
            except OSError:
                os.close(self._handle)
                raise
            if self.in_place:
                break
            os.close(self._handle)  # its holder removed it between our opening and our locking
        with contextlib.suppress(OSError):  # a full disk costs the name of the holder, not the lock
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, saying.encode()[:MOST_SAID], 0)

    @property
    def in_place(self) -> bool:
        """Whether the file at the path is still the one that is held."""
        try:
            at_path, ours = self.path.lstat(), os.fstat(self._handle)
        except OSError:
            return False
        return (at_path.st_dev, at_path.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Let go; more than once does no harm."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1


def own_folder(name: str) -> Path:
    """Return a folder of this user alone, below XDG_RUNTIME_DIR or the folder for temporary files.

    Raises InputError where what is there belongs to somebody else, is a link, or is open to others.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    folder = base / (name if base == Path(runtime) else f"{name}-{os.getuid()}")
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        entry = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot make '{folder}': {error.strerror or error}; set XDG_RUNTIME_DIR") from error
    if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.getuid() or entry.st_mode & 0o077:
        raise InputError(
            f"'{folder}' is not a folder of yours alone (owner {entry.st_uid}, mode {stat.S_IMODE(entry.st_mode):o}): "
            "remove it, or set XDG_RUNTIME_DIR to a folder that is"
        )
    return folder


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Make a temporary folder that is removed at the end, and remove those of processes that were killed."""
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{purpose}-"))
    hold = Hold(folder / ALIVE, str(os.getpid()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        hold.release()


def remove_abandoned() -> list[Path]:
    """Remove the scratch folders of this user that no process holds any more; return them."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError, Held):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or not (folder / ALIVE).exists():
                continue
            hold = Hold(folder / ALIVE)
            shutil.rmtree(folder, ignore_errors=True)
            hold.release()
            removed.append(folder)
    return removed


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies, however: a GPU must not stay busy.

    Linux only; elsewhere nothing happens. It is the starting thread's death that counts.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
