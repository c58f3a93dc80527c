"""Download one large file: progress, resume, checksum.

A download grows in ``NAME.part`` and becomes ``NAME`` only when it is complete and its checksum
agrees. A broken connection is taken up again where it stopped (HTTP ``Range``). What this module
does not do: many files in parallel, mirrors, authentication.
"""

import http.client
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from sslpath.errors import DataError
from sslpath.files import sha256

CHUNK = 1 << 20
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def download(
    url: str,
    target: str | Path,
    *,
    checksum: str | None = None,
    attempts: int = 5,
    wait_s: float = 2.0,
    progress: bool = True,
) -> Path:
    """Download ``url`` to ``target`` and return ``target``.

    A complete ``target`` is kept: with a checksum it is verified, not fetched again.

    Args:
        url: Address of the file, ``https://`` or ``http://``.
        target: Where to put it; its folder is made.
        checksum: Expected SHA-256, 64 hexadecimal digits; None skips the check.
        attempts: Tries in all; each takes up the download where the last one broke.
        wait_s: Seconds before the second try; doubles with every further one.
        progress: Whether to draw a progress bar.

    Raises:
        DataError: If the server refuses, the connection breaks too often, the disk is too small
            for what the server announces, or the checksum differs.
    """
    target = Path(target)
    if target.exists():
        _verify(target, target, checksum, url)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(attempts):
        try:
            _fetch(url, part, target.name, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == attempts - 1:
                raise DataError(f"{url} answered {error.code} {error.reason}.") from error
        except BROKEN as error:
            if attempt == attempts - 1:
                raise DataError(
                    f"The connection to {url} broke {attempts} times ({error}). "
                    f"{part} keeps what has come; run the same command to go on."
                ) from error
        time.sleep(wait_s * 2**attempt)
    _verify(part, target, checksum, url)
    part.replace(target)
    return target


def _fetch(url: str, part: Path, name: str, progress: bool) -> None:
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
            total=total, initial=have, unit="B", unit_scale=True, desc=name, disable=not progress
        )
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")


def _verify(path: Path, target: Path, checksum: str | None, url: str) -> None:
    """Compare the checksum; a wrong partial download is deleted, a wrong finished file is not."""
    if checksum is None:
        return
    found = sha256(path)
    if found == checksum.lower():
        return
    if path != target:
        path.unlink()
        remedy = "The download was deleted; run the same command to try again."
    else:
        remedy = "Delete the file to download it again."
    raise DataError(
        f"{target.name} from {url} has SHA-256 {found}, not {checksum.lower()}. {remedy}"
    )
