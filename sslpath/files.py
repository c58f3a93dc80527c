"""Writing files so that nothing half-written is ever trusted.

A file is written under a temporary name beside its target and moved into place when complete:
whoever finds the target finds all of it. What a killed process left of a target is removed by the
next one that writes the same target on the same machine.
"""

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sslpath.errors import BusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Processes are told apart by number on one machine only, and folders may be shared by several.
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"

# Read once, as reading it sets it, and other threads may be writing files.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target`` if the block ends without an error.

    The temporary name keeps the target's ending, since some writers choose a format by it. An
    ``OSError`` of the block that names no file, such as a full disk, gets the target's name.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{_HOST}-{os.getpid()}.tmp{target.suffix}")
    _sweep(target)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner may read
        temporary.replace(target)
    except OSError as error:
        if error.filename is not None:
            raise
        # A disk that is full, say: name the file that the user knows.
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _sweep(target: Path) -> None:
    """Remove what processes of this machine that are no more have left of a target."""
    left = re.compile(rf"\.{re.escape(target.stem)}\.{_HOST}-(\d+)\.tmp{re.escape(target.suffix)}")
    for path in target.parent.iterdir():
        match = left.fullmatch(path.name)
        if match and not _lives(int(match[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question, but an interrupt
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def only_one(folder: str | Path) -> Iterator[None]:
    """Keep other processes of this machine from working in ``folder`` while the block runs.

    The lock is the operating system's, on the folder itself: it leaves no file, and ends with the
    process that holds it, however that ends. Where there is none (Windows, some network disks)
    nothing is locked.

    Raises:
        BusyError: If another process has it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise BusyError(
                    f"Another process is working in {folder}. Wait for it, or choose another "
                    "folder."
                ) from error
        yield
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN is refused: JSON has none."""
    text = json.dumps(value, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256(path: str | Path) -> str:
    """The SHA-256 checksum of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
