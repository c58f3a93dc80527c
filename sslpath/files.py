"""Writing files so that nothing half-written is ever trusted.

A file is written under a temporary name beside its target and moved into place when complete:
whoever finds the target finds all of it. The first write into a folder looks for what killed
processes of this machine have left there; each such file is removed when its target is written.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sslpath.errors import BusyError, ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST = 200  # bytes of a name to which a temporary name still fits into 255

# Read once, as reading it sets it, and other threads may be writing files.
_UMASK = os.umask(0)
os.umask(_UMASK)


def _place() -> str:
    """Where a process number means one process: this machine, or this container on it."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a link that leads nowhere
    except OSError:
        space = 0
    name = f"{socket.gethostname()} {space}".encode(errors="replace")
    return hashlib.sha256(name).hexdigest()[:12]


_PLACE = _place()
_TEMPORARY = re.compile(
    rf"\.(?P<stem>.+)\.{_PLACE}-(?P<process>\d+)-[0-9a-f]{{8}}\.tmp(?P<suffix>\.[^.]*)?", re.DOTALL
)
# Of each folder written to: temporary files found at the first write, by their target's name.
_left: dict[Path, dict[tuple[str, str], list[tuple[Path, int]]]] = {}


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target`` if the block ends without an error.

    The temporary name keeps the target's ending, since some writers choose a format by it. If the
    target is a symbolic link, the file that it points to is replaced and the link stays. An
    ``OSError`` that names the temporary file, or none, such as a full disk, gets the target's name.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    real = Path(os.path.realpath(target))
    if real.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a folder, not a file", str(target))
    if real.exists() and not real.is_file():
        raise OSError(errno.EINVAL, "Is a device or pipe, not a file", str(target))
    mode = stat.S_IMODE(real.stat().st_mode) if real.exists() else 0o666 & ~_UMASK
    stem, suffix = _short(real)
    token = secrets.token_hex(4)  # threads, and machines that share a name, never collide
    temporary = real.with_name(f".{stem}.{_PLACE}-{os.getpid()}-{token}.tmp{suffix}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        _sweep(real.parent, (stem, suffix))
        yield temporary
        temporary.chmod(mode)  # some writers make files that only their owner may read
        temporary.replace(real)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        # Name the file that the user knows.
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _short(target: Path) -> tuple[str, str]:
    """Stem and ending of a target for its temporary name, which must not become too long."""
    if len(os.fsencode(target.name)) <= LONGEST:
        return target.stem, target.suffix
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return digest, target.suffix if len(target.suffix) <= 20 else ""


def _sweep(folder: Path, name: tuple[str, str]) -> None:
    """Remove the temporary files of a target whose processes on this machine have ended."""
    if folder not in _left:
        _left[folder] = _find_temporary(folder)
    for path, process in _left[folder].pop(name, []):
        if not _lives(process):
            with suppress(OSError):
                path.unlink()


def _find_temporary(folder: Path) -> dict[tuple[str, str], list[tuple[Path, int]]]:
    """Temporary files that this machine made in a folder, and their processes, by target."""
    found: dict[tuple[str, str], list[tuple[Path, int]]] = {}
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                name = (match["stem"], match["suffix"] or "")
                found.setdefault(name, []).append((folder / entry.name, int(match["process"])))
    return found


def check_writable_file(path: str | Path) -> None:
    """Refuse a file that cannot be written, before the work for it begins. Creates nothing.

    Raises:
        ConfigError: If it is a folder or a device, or lies where this user may not write.
    """
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise ConfigError(f"{path} is a folder: name a file in it.")
    if real.exists() and not real.is_file():
        raise ConfigError(f"{path} is a device or a pipe, not a file. Choose another place.")
    folder = next(parent for parent in real.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise ConfigError(f"Cannot write {path}: {folder} is not a folder. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"Cannot write {path}: no permission to write in {folder}. Choose another place."
        )


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
