"""The IDC loader on archives in the public layout, made here or lent."""

import io
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslpath.datasets.idc import download_idc, idc_tiles, verify_idc
from sslpath.errors import DataError
from sslpath.sources import open_source
from sslpath.table import fold


def png(value: int, width: int = 50, height: int = 50) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "IDC_regular_ps50_idx5.zip"
    with zipfile.ZipFile(path, "w") as out:
        for patient in ("10253", "9383", "8863"):
            for i in range(6):
                label = i % 2
                name = f"{patient}/{label}/{patient}_idx5_x{50 * i + 1}_y51_class{label}.png"
                out.writestr(name, png(10 * i))
        out.writestr("9383/0/9383_idx5_x1001_y51_class0.png", png(0, 50, 13))
    return path


def test_the_table_holds_every_whole_tile_with_its_place_and_label(archive: Path) -> None:
    tiles = idc_tiles(archive, progress=False)
    assert len(tiles) == 18
    assert tiles.attrs["source"]["partial_tiles_left_out"] == 1
    one = tiles[tiles["patient_id"] == "9383"].sort_values("x")
    assert list(one["x"]) == [1, 51, 101, 151, 201, 251]
    assert list(one["label"]) == [0, 1, 0, 1, 0, 1]


def test_patients_never_stand_on_both_sides_of_the_split(archive: Path) -> None:
    tiles = idc_tiles(archive, progress=False)
    assert (tiles.groupby("patient_id")["split"].nunique() == 1).all()
    for patient, split in zip(tiles["patient_id"], tiles["split"], strict=True):
        assert split == ("test" if fold(patient) in (0, 1) else "train")


def test_pixels_come_straight_from_the_zip(archive: Path) -> None:
    tiles = idc_tiles(archive, progress=False)
    pixels = open_source(tiles).read(tiles)
    assert pixels.shape == (18, 50, 50, 3)
    assert list(pixels[:, 0, 0, 0]) == [10 * (x // 50) for x in tiles["x"]]


def test_one_wrapping_folder_is_understood(archive: Path, tmp_path: Path) -> None:
    wrapped = tmp_path / "wrapped.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(wrapped, "w") as out:
        for name in source.namelist():
            out.writestr(f"IDC/{name}", source.read(name))
    tiles = idc_tiles(wrapped, progress=False)
    assert len(tiles) == 18
    assert open_source(tiles).read(tiles.head(2)).shape == (2, 50, 50, 3)


def test_what_a_mac_leaves_in_an_archive_is_passed_over(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as out:
        for name in out.namelist():
            folder, _, file = name.rpartition("/")
            out.writestr(f"__MACOSX/{folder}/._{file}", b"Mac OS X")
        out.writestr(".DS_Store", b"x")
    assert len(idc_tiles(archive, progress=False)) == 18


def test_a_tile_with_both_labels_is_left_out_with_a_warning(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("8863/1/8863_idx5_x1_y51_class1.png", png(0))
    with pytest.warns(UserWarning, match=r"both labels were left out: 1, such as 8863 at 1, 51"):
        tiles = idc_tiles(archive, progress=False)
    assert len(tiles) == 17


def test_another_zip_is_refused_with_the_layout_it_should_have(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"other\.zip holds no tiles named like"):
        idc_tiles(path, progress=False)


def test_a_cut_zip_is_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole zip"):
        idc_tiles(archive, progress=False)


def test_a_damaged_tile_is_named(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        second = opened.infolist()[1]
    data[second.header_offset + 30 + len(second.filename) + 20] ^= 0xFF
    archive.write_bytes(bytes(data))
    with pytest.raises(DataError, match=second.filename):
        verify_idc(archive, progress=False)


def test_a_download_is_sealed_with_its_checksum_and_a_changed_file_refused(
    archive: Path, tmp_path: Path
) -> None:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
        target = download_idc(tmp_path / "to", url=url, progress=False)
        assert target.read_bytes() == archive.read_bytes()
        assert download_idc(tmp_path / "to", url=url, progress=False) == target
        target.write_bytes(target.read_bytes() + b"x")
        with pytest.raises(DataError, match="SHA-256"):
            download_idc(tmp_path / "to", url=url, progress=False)
        server.shutdown()


def test_the_real_sample_is_read(shared: Path) -> None:
    tiles = idc_tiles(shared / "real/idc/IDC_regular_ps50_idx5_sample.zip", progress=False)
    assert len(tiles) == 7349  # of 7,407; 58 are cut off by an edge
    assert tiles["patient_id"].nunique() == 200
    some = tiles.sample(20, random_state=0)
    pixels = open_source(tiles).read(some)
    assert pixels.std() > 10  # tissue, not a constant
