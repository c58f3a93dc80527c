"""Downloads of many files from a bucket on localhost, with faults."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Bucket, serving

from sslpath.datasets.bucket import (
    Remote,
    download_all,
    list_bucket,
    place_of,
    read_checksums,
)
from sslpath.errors import DataError

RNG = np.random.default_rng(0)
FILES = {f"C/images/{i}.tif": RNG.bytes(200_000 + i) for i in range(7)} | {"other/x.tif": b"x"}
SUMS = {Path(k).name: hashlib.md5(v, usedforsecurity=False).hexdigest() for k, v in FILES.items()}


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving(dict(FILES)) as it:
        yield it


def get(bucket: Bucket, folder: Path, **settings: Any) -> list[Any]:
    files = list_bucket(bucket.url, "C/", attempts=3, wait_s=0.01)
    settings = {"checksums": SUMS, "attempts": 3, "wait_s": 0.01, "progress": False} | settings
    return download_all(files, bucket.url, "C/", folder, **settings)


def whole(folder: Path) -> bool:
    """All files are there, with their bytes, and nothing else."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    return found == {k.removeprefix("C/"): v for k, v in FILES.items() if k.startswith("C/")}


def test_every_page_of_the_listing_is_read_and_other_prefixes_are_not(bucket: Bucket) -> None:
    bucket.faults[""] = ["503", "", "503"]
    found = list_bucket(bucket.url, "C/", wait_s=0.01)
    assert found == [Remote(k, len(v)) for k, v in FILES.items() if k.startswith("C/")]


@pytest.mark.parametrize("workers", [1, 4])
def test_faults_of_every_kind_end_in_the_same_files(
    bucket: Bucket, tmp_path: Path, workers: int
) -> None:
    bucket.faults = {
        "C/images/0.tif": ["cut", "cut"], "C/images/1.tif": ["503"], "C/images/2.tif": ["wrong"],
        "C/images/3.tif": ["slow"], "C/images/4.tif": ["503", "cut"],
    }  # fmt: skip
    assert get(bucket, tmp_path, workers=workers) == []
    assert whole(tmp_path)
    # What was cut off went on where it stopped: no byte came twice.
    assert bucket.served["C/images/0.tif"] == len(FILES["C/images/0.tif"])


def test_what_is_there_is_not_fetched_again_unless_it_is_verified(
    bucket: Bucket, tmp_path: Path
) -> None:
    get(bucket, tmp_path)
    asked = bucket.asked.copy()
    assert get(bucket, tmp_path) == []
    assert {k: n for k, n in (bucket.asked - asked).items() if k} == {}
    place = tmp_path / "images" / "5.tif"
    place.write_bytes(b"x" * len(FILES["C/images/5.tif"]))
    assert get(bucket, tmp_path) == []  # the size is right
    (lost,) = get(bucket, tmp_path, verify=True)
    assert lost.key == "C/images/5.tif"
    assert "MD5" in lost.error
    assert "Delete the file" in lost.error
    assert place.read_bytes()[:1] == b"x"  # whoever put it there may want it
    place.write_bytes(b"short")
    (lost,) = get(bucket, tmp_path)
    assert "MD5" in lost.error


def test_a_file_that_does_not_come_is_named_and_the_others_come(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.faults = {"C/images/3.tif": ["503"] * 3, "C/images/6.tif": ["wrong"] * 2}
    lost = get(bucket, tmp_path)
    assert [one.key for one in lost] == ["C/images/3.tif", "C/images/6.tif"]
    assert "503" in lost[0].error
    assert "MD5" in lost[1].error
    assert len(list(tmp_path.rglob("*.tif"))) == 5
    assert get(bucket, tmp_path) == []  # the faults are over
    assert whole(tmp_path)
    bucket.faults = {"C/images/3.tif": ["503"] * 9}
    (tmp_path / "images" / "3.tif").unlink()
    with pytest.raises(DataError, match="503"):
        get(bucket, tmp_path, strict=True)


def test_a_disk_that_is_too_small_is_seen_before_the_first_byte(
    bucket: Bucket, tmp_path: Path
) -> None:
    huge = Remote("C/images/0.tif", 10**18)
    with pytest.raises(DataError, match=r"1000000000\.0 GB are missing and .* Free some space"):
        download_all([huge], bucket.url, "C/", tmp_path, progress=False)
    assert not bucket.served


@pytest.mark.parametrize(
    "key",
    [
        *("C/../x.tif", "C/a/../../../x.tif", "/etc/passwd", "C//etc/passwd", "C/..", "C/"),
        *("C/a\\b.tif", "C/c:x.tif", "C/a\x00b.tif", "C/-rf", "C/.ssh/id", "C/ä.tif", "C/a\nb"),
    ],
)
def test_a_name_never_leads_out_of_the_folder(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not belong"):
        place_of(key, "C/", tmp_path)


def test_a_link_in_the_folder_never_leads_out_of_it(bucket: Bucket, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "images").symlink_to(outside)
    with pytest.raises(DataError, match="does not belong"):
        get(bucket, tmp_path / "in")
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    "listing",
    [
        *(b"", b"<html>", b"no listing at all"),
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ListBucketResult>&b;'
        b"</ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>",
    ],
)
def test_a_server_that_lists_nothing_sensible_is_refused(bucket: Bucket, listing: bytes) -> None:
    bucket.listing = listing or b" "
    with pytest.raises(DataError, match="did not answer with the listing"):
        list_bucket(bucket.url, "C/", wait_s=0.01)


def test_a_listing_without_an_end_ends(bucket: Bucket) -> None:
    bucket.listing = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>1"
        b"</NextContinuationToken></ListBucketResult>"
    )
    assert list_bucket(bucket.url, "C/", wait_s=0.01) == []


def test_a_listing_that_goes_on_and_on_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslpath.datasets.bucket.MAX_PAGES", 2)  # there are three
    with pytest.raises(DataError, match="no end"):
        list_bucket(bucket.url, "C/", wait_s=0.01)


def test_checksums_of_both_kinds_are_read_and_nonsense_is_passed_over() -> None:
    md5, sha = "0" * 32, "A" * 64
    text = f"{md5}  images/a.tif\n{sha} *./B.xml\nhello\n\n{md5}  c.tif\n{'1' * 32}  x/c.tif\n"
    assert read_checksums(text) == {"a.tif": md5, "b.xml": sha.lower()}
