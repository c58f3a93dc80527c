"""Download a file: progress, resume, checksum.

A download grows in ``NAME.part`` and becomes ``NAME`` only when it is complete and its checksum
agrees. A broken connection is taken up again where it stopped (HTTP ``Range``). What this module
does not do: many files in parallel (see :mod:`sslpath.datasets.bucket`), mirrors, authentication.
"""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from sslpath.errors import ChecksumError, ConfigError, DataError
from sslpath.progress import hide_bar

CHUNK = 1 << 20
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
HASHES = {32: "MD5", 64: "SHA-256"}  # by hexadecimal digits
LISTING_BYTES = 64 << 20
T = TypeVar("T")


def download(
    url: str,
    target: str | Path,
    *,
    checksum: str | None = None,
    attempts: int = 5,
    wait_s: float = 2.0,
    progress: bool = True,
    advance: Callable[[int], object] | None = None,
) -> Path:
    """Download ``url`` to ``target`` and return ``target``.

    A complete ``target`` is kept: with a checksum it is verified, not fetched again.

    Args:
        url: Address of the file, ``https://`` or ``http://``.
        target: Where to put it; its folder is made.
        checksum: Expected SHA-256 (64 hexadecimal digits) or MD5 (32); None skips the check.
        attempts: Tries in all; each takes up the download where the last one broke.
        wait_s: Seconds before the second try; doubles with every further one.
        progress: Whether to draw a progress bar.
        advance: Called with the number of bytes that have come, instead of a bar of its own; with
            a negative number if the server makes us start over.

    Raises:
        ChecksumError: If the checksum differs.
        DataError: If the server refuses, the connection breaks too often, or the disk is too small
            for what the server announces.
    """
    target = Path(target)
    if target.exists():
        _verify(target, target, checksum, url)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _persistently(
        lambda: _append(url, part, target.name, progress, advance),
        url, attempts, wait_s, f" {part} keeps what has come; run the same command to go on.",
    )  # fmt: skip
    try:
        _verify(part, target, checksum, url)
    except ChecksumError:
        if advance is not None:
            advance(-part.stat().st_size if part.exists() else 0)
        part.unlink(missing_ok=True)
        raise
    part.replace(target)
    return target


def fetch(url: str, *, attempts: int = 5, wait_s: float = 2.0, limit: int = LISTING_BYTES) -> bytes:
    """What ``url`` answers, in memory; for listings, tables and the like.

    Raises:
        DataError: As :func:`download`, and if the answer is longer than ``limit`` bytes.
    """

    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=60) as response:
            return bytes(response.read(limit + 1))

    answer = _persistently(get, url, attempts, wait_s, "")
    if len(answer) > limit:
        raise DataError(f"{url} answers with more than {limit / 1e6:.0f} MB: no such file.")
    return answer


def _persistently(
    action: Callable[[], T], url: str, attempts: int, wait_s: float, remedy: str
) -> T:
    """Do it again while the connection breaks or the server has trouble."""
    for attempt in range(attempts):
        try:
            return action()
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == attempts - 1:
                raise DataError(f"{url} answered {error.code} {error.reason}.") from error
        except BROKEN as error:
            if attempt == attempts - 1:
                raise DataError(
                    f"The connection to {url} broke {attempts} times ({error}).{remedy}"
                ) from error
        time.sleep(wait_s * 2**attempt)
    raise ConfigError(f"attempts must be at least 1, not {attempts}.")


def _append(
    url: str, part: Path, name: str, progress: bool, advance: Callable[[int], object] | None
) -> None:
    """Append to ``part`` what is missing of ``url``."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        # 416: nothing lies beyond what we have, so the file is complete.
        if error.code == 416 and have:
            return
        raise
    with response:
        if response.status != 206:  # the server ignores ranges: start over
            if advance is not None:
                advance(-have)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise DataError(
                f"{name} needs {(total - have) / 1e9:.1f} GB more and {part.parent} has "
                f"{free / 1e9:.1f} GB free. Free some space or choose another folder."
            )
        bar = tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=name,
            disable=hide_bar(progress) or advance is not None,
        )  # fmt: skip
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if advance is not None:
                    advance(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")


def _verify(path: Path, target: Path, checksum: str | None, url: str) -> None:
    """Compare the checksum."""
    if checksum is None:
        return
    kind = HASHES.get(len(checksum))
    if kind is None:
        raise DataError(f"{checksum!r} is neither an MD5 nor a SHA-256 checksum.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind.lower().replace("-", "")).hexdigest()
    if found == checksum.lower():
        return
    remedy = "Delete the file to download it again."
    if path != target:
        remedy = "The download was deleted; run the same command to try again."
    raise ChecksumError(
        f"{target.name} from {url} has {kind} {found}, not {checksum.lower()}. {remedy}"
    )
