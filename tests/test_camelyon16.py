"""Camelyon16 in miniature: both layouts, from a bucket on localhost to a table of tiles."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from camelyon import (
    SIDE,
    SLIDES,
    SMALL,
    archive,
    draw_images,
    newer,
    older,
    outlines,
    random_weights,
)
from servers import Bucket, serving

from sslpath.annotations import read_annotations
from sslpath.cli import main
from sslpath.datasets.bucket import Remote
from sslpath.datasets.camelyon16 import (
    NOT_EXHAUSTIVE,
    choose,
    fetch_camelyon16,
    find_camelyon16,
    read_reference,
    unpack_outlines,
)
from sslpath.errors import ConfigError, DataError
from sslpath.table import load_tiles

CUT = ("--mpp", "0.5", "--tile-px", "32", "--workers", "1")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return draw_images(tmp_path_factory.mktemp("camelyon"))


LAYOUTS = {"newer": newer, "older": older}


def fetch(bucket: Bucket, folder: Path, *options: str) -> int:
    return main(["data", "camelyon16", "--out", str(folder), "--url", bucket.url, *options])


@pytest.fixture(scope="session")
def tables(
    images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pd.DataFrame]:
    """The table of either layout, by the commands, through cut connections."""
    found = {}
    for name, layout in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name)
        with serving(layout(images)) as bucket:
            first = next(key for key in bucket.files if key.lower().endswith("normal_001.tif"))
            bucket.faults = {first: ["cut", "wrong"], "": ["503"]}
            assert fetch(bucket, folder / "c16") == 0
        out = folder / "tiles.parquet"
        assert main(["tile", str(folder / "c16"), "--camelyon16", *CUT, "--out", str(out)]) == 0
        found[name] = load_tiles(out)
    return found


def test_both_layouts_give_the_same_table(tables: dict[str, pd.DataFrame]) -> None:
    assert set(tables["newer"]["slide_id"]) == set(SLIDES)
    pd.testing.assert_frame_equal(tables["newer"], tables["older"])


def test_labels_follow_the_outlines_and_what_is_known_of_the_slide(
    tables: dict[str, pd.DataFrame],
) -> None:
    tiles = tables["newer"]
    kinds = tiles.groupby("slide_id")["label"].agg(lambda x: sorted(set(x.dropna())))
    assert kinds["normal_001"] == kinds["test_002"] == [0]
    assert kinds["tumor_001"] == kinds["test_001"] == [0, 1]
    assert kinds["tumor_010"] == kinds["test_114"] == [1]  # the rest is unknown there
    one = tiles[tiles["slide_id"] == "tumor_001"]
    left = one["x"] + one["size"] <= SIDE / 2
    hole = (one["x"] >= 300) & (one["x"] + one["size"] <= 400)
    hole &= (one["y"] >= 500) & (one["y"] + one["size"] <= 700)
    assert hole.sum() >= 1
    assert one.loc[left & ~hole, "label"].mean() > 0.9
    assert not (one.loc[hole, "label"] == 1).any()
    assert (one.loc[one["x"] >= SIDE / 2, "label"] == 0).all()


def test_the_split_is_the_official_one_and_tiles_have_one_scale(
    tables: dict[str, pd.DataFrame],
) -> None:
    tiles = tables["newer"]
    is_test = tiles["slide_id"].str.startswith("test")
    assert (tiles["split"] == np.where(is_test, "test", "train")).all()
    assert (tiles["patient_id"] == tiles["slide_id"]).all()
    size = tiles.groupby("slide_id")["size"].first()
    assert (size["normal_001"], size["normal_002"]) == (66, 71)  # 16 um, on both scanners


def test_the_manifest_says_what_each_slide_is(images: dict[str, bytes], tmp_path: Path) -> None:
    with serving(newer(images)) as bucket:
        assert fetch(bucket, tmp_path, "--slides", "test_*", "tumor_010", "--masks") == 0
        assert "CAMELYON16/images/normal_001.tif" not in bucket.served
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [
        "test_001_mask.tif", "test_114_mask.tif", "tumor_010_mask.tif",
    ]  # fmt: skip
    rows = pd.read_csv(tmp_path / "slides.csv").set_index("slide_id")
    assert rows["split"].tolist() == ["test", "test", "test", "train"]
    assert rows["class"].tolist() == ["tumour", "normal", "tumour", "tumour"]
    assert rows["outlined"].tolist() == ["all", "all", "in part", "in part"]
    # Of tests reference.csv says the centre, of others the pixel size does.
    assert rows["centre"].tolist() == ["Radboud", "Utrecht", "Utrecht", "Utrecht"]
    assert rows["path"].map(lambda path: Path(path).exists()).all()
    # What is not outlined in full, the centre and the classes are as the data say.
    assert len(NOT_EXHAUSTIVE) == 21


def test_a_plan_names_what_would_come_and_fetches_nothing(
    images: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(newer(images)) as bucket:
        assert fetch(bucket, tmp_path / "c16", "--limit", "3", "--plan") == 0
        assert set(bucket.served) <= {""}
    said = capsys.readouterr().out
    assert all(f"images/{name}.tif" in said for name in ("normal_001", "tumor_001", "test_001"))
    assert "tumor_010" not in said
    assert not (tmp_path / "c16").exists()


def test_a_slide_that_does_not_come_is_listed_and_the_others_are_there(
    images: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serving(newer(images)) as bucket:
        bucket.faults = {"CAMELYON16/images/tumor_001.tif": ["503"] * 5}
        assert fetch(bucket, tmp_path) == 3
        failed = pd.read_csv(tmp_path / "download.failed.csv")
        assert failed["key"].tolist() == ["CAMELYON16/images/tumor_001.tif"]
        assert len(find_camelyon16(tmp_path)) == 6
        assert fetch(bucket, tmp_path) == 0
        assert not (tmp_path / "download.failed.csv").exists()
        assert fetch(bucket, tmp_path, "--slides", "tumor_999") == 1


def test_slides_are_chosen_by_name_pattern_and_number() -> None:
    names = [f"{kind}_{i:03d}" for kind in ("normal", "test", "tumor") for i in (1, 2, 49, 86)]
    files = [Remote(f"C/images/{name}.tif", 1) for name in names]

    def chosen(*slides: str, limit: int | None = None) -> list[str]:
        return [Path(one.key).stem for one in choose(files, slides, limit)]

    assert len(chosen()) == 10
    assert not {"normal_086", "test_049"} & set(chosen())
    assert chosen("Tumor_00*", "test_002") == ["test_002", "tumor_001", "tumor_002"]
    assert sorted(chosen(limit=4)) == ["normal_001", "normal_002", "test_001", "tumor_001"]
    with pytest.raises(ConfigError, match="tumor_999"):
        chosen("tumor_999")
    with pytest.raises(DataError, match="no slide"):
        choose([Remote("C/images/", 0), Remote("C/x.tif", 5)])


def test_a_list_of_slides_that_is_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("my,own,list\n")
    with pytest.raises(DataError, match=r"slides\.csv is there, and is not the list"):
        fetch_camelyon16(tmp_path, [], url="http://localhost:9")
    assert (tmp_path / "slides.csv").read_text() == "my,own,list\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,class,type,center\ntest_001.tif,tumor,macro,1\n", (True, "Utrecht")),
        ("Image,Class,Type,Center\nTest_001,Normal,None,0\n", (False, "Radboud")),
        ("\ufefftest_001,Tumor,Macro\n\n", (True, None)),
        ("test_001,Normal,None,None", (False, None)),
    ],
)
def test_reference_is_read_in_both_forms(
    text: str, expected: tuple[bool, str | None], tmp_path: Path
) -> None:
    (tmp_path / "reference.csv").write_text(text, encoding="utf-8")
    assert read_reference([tmp_path / "reference.csv"]) == {"test_001": expected}


@pytest.mark.parametrize(
    "body", [b"test_001,perhaps\n", b"<html>\n", b"image,class\nx,tumor\n", b"\xff\xfe\x00"]
)
def test_a_reference_that_says_something_else_is_refused(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "reference.csv").write_bytes(body)
    with pytest.raises(DataError, match=r"reference\.csv"):
        read_reference([tmp_path / "reference.csv"])


def test_an_archive_of_outlines_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    members = {
        "../../tumor_001.xml": outlines().encode(), "/tumor_002.xml": b"<x/>",
        "../evil.xml": b"<x/>", "tumor_003.xml/../../x.xml": b"<x/>", "readme.txt": b"x",
    }  # fmt: skip
    (tmp_path / "a.zip").write_bytes(archive(members))
    made = unpack_outlines(tmp_path / "a.zip", tmp_path / "in" / "annotations")
    assert sorted(p.name for p in made) == ["tumor_001.xml", "tumor_002.xml"]
    assert sorted(p.name for p in tmp_path.rglob("*.xml")) == ["tumor_001.xml", "tumor_002.xml"]
    assert read_annotations(made[0]).tumour.area > 0


def test_an_exploding_archive_is_refused(tmp_path: Path) -> None:
    bomb = zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED)
    with bomb, bomb.open("tumor_001.xml", "w") as member:
        for _ in range(201):
            member.write(bytes(1_000_000))
    assert (tmp_path / "a.zip").stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"would have 201 MB; .* was not unpacked"):
        unpack_outlines(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = archive({"tumor_001.xml": b"x" * 100_000})
    damaged = bytearray(whole)
    damaged[50:60] = b"\xff" * 10  # of the compressed outlines
    for body in (whole[:-30], bytes(damaged)):
        (tmp_path / "a.zip").write_bytes(body)
        with pytest.raises(DataError, match="damaged"):
            unpack_outlines(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_copy_of_camelyon16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sslpath data camelyon16"):
        find_camelyon16(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tumor_001.tif").touch()
    with pytest.raises(DataError, match="twice"):
        find_camelyon16(tmp_path)
    tile = ["tile", str(tmp_path / "a"), "--camelyon16", "--out", str(tmp_path / "t.parquet")]
    assert main([*tile, "--no-tumour", "x"]) == 1
    assert main([*tile[:2], str(tmp_path / "b"), *tile[2:]]) == 1


def test_what_is_not_known_stays_unlabelled(
    images: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tumor_001", "test_002", "normal_001"):
        (tmp_path / f"{name}.tif").write_bytes(images[name])
    out = tmp_path / "tiles.parquet"
    assert main(["tile", str(tmp_path), "--camelyon16", *CUT, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "no reference.csv" in said
    assert "no outlines" in said
    tiles = load_tiles(out)
    known = tiles["label"].notna().groupby(tiles["slide_id"]).mean()
    assert known.to_dict() == {"normal_001": 1, "test_002": 0, "tumor_001": 0}


# The whole experiment, in miniature.


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights") / "resnet18.pth")


def reproduce(bucket: Bucket, folder: Path, weights: Path, *more: str) -> int:
    where = ("--data", str(folder / "c16"), "--out", str(folder / "out"), "--url", bucket.url)
    return main(
        ["reproduce", "camelyon16", *where, *SMALL, "--imagenet-weights", str(weights), *more]
    )


@pytest.mark.parametrize("config", ["head", "paper"])
def test_the_experiment_runs_from_download_to_table_through_faults(
    config: str,
    images: dict[str, bytes],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = newer(images)
    # One slide breaks off in the bucket itself, as a damaged copy would.
    broken = "CAMELYON16/images/normal_002.tif"
    files[broken] = files[broken][:4000]
    sums = files["CAMELYON16/checksums.md5"].decode().splitlines()
    files["CAMELYON16/checksums.md5"] = "\n".join(
        line for line in sums if "normal_002" not in line
    ).encode()
    with serving(files) as bucket:
        bucket.faults = {
            "CAMELYON16/images/tumor_001.tif": ["cut", "503"], "": ["503"],
            "CAMELYON16/images/test_001.tif": ["wrong"],
        }  # fmt: skip
        assert reproduce(bucket, tmp_path, weights, "--config", config) == 3
        said = capsys.readouterr()
        assert "tiles (counted on up to 3 slides)" in said.out
        assert "normal_002" in (tmp_path / "out" / "tiles.failed.csv").read_text()
        table = (tmp_path / "out" / "paper.md").read_text(encoding="utf-8")
        assert "| tumour P@10: ours | " in table
        assert "about 1.5" in table
        assert ("resnet18, frozen" in table) == (config == "head")
        # Again: what is done stays.
        kept = {
            path: path.stat().st_mtime_ns
            for path in (tmp_path / "out").rglob("*")
            if path.suffix in (".parquet", ".h5", ".safetensors")
            # What a head makes of features that are there takes no time, and is made anew.
            and (config == "paper" or path.parent.name != "spatial")
        }
        assert len(kept) >= 2 + (2 * 6 if config == "paper" else 6)
        assert reproduce(bucket, tmp_path, weights, "--config", config, "--no-download") == 3
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        capsys.readouterr()
        other = ("--config", config, "--no-download", "--seed", "1")
        assert reproduce(bucket, tmp_path, weights, *other) == 1
        assert "holds a run with seed 0" in capsys.readouterr().err


def test_a_plan_counts_tiles_and_hours_and_starts_nothing(
    images: dict[str, bytes], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(newer(images)) as bucket:
        assert reproduce(bucket, tmp_path, weights, "--plan", "--limit", "3") == 0
    said = capsys.readouterr().out
    assert "3 slides, about 360 tiles" in said
    assert "GB of features and descriptors" in said
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_says_how_to_go_on(
    images: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(newer(images)) as bucket:
        assert reproduce(bucket, tmp_path, tmp_path / "none.pth", "--limit", "4") == 1
    assert "goes on from there" in capsys.readouterr().err
