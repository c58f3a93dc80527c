"""Camelyon16 in miniature: both layouts, from a bucket on localhost to a table of tiles."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import draw_tissue, write_slide
from servers import Bucket, serving

from sslpath.annotations import read_annotations
from sslpath.cli import main
from sslpath.datasets import camelyon16
from sslpath.datasets.bucket import Remote
from sslpath.datasets.camelyon16 import (
    NOT_EXHAUSTIVE,
    choose,
    find_camelyon16,
    read_reference,
    unpack_outlines,
)
from sslpath.errors import ConfigError, DataError
from sslpath.table import load_tiles

# Names, um a pixel, and whether they hold tumour.
SLIDES = {
    "normal_001": (0.243, False), "normal_002": (0.226, False), "tumor_001": (0.243, True),
    "tumor_010": (0.226, True), "test_001": (0.243, True), "test_002": (0.226, False),
    "test_114": (0.226, True),
}  # fmt: skip
SIDE = 1200
CUT = ("--mpp", "0.5", "--tile-px", "32", "--workers", "1")


def outlines() -> str:
    """ASAP XML: half of the slide is tumour (in three ways of naming it), less a hole."""

    def one(name: str, group: str, left: float, top: float, right: float, bottom: float) -> str:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        points = "".join(
            f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners)
        )
        return (
            f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{points}</Coordinates></Annotation>"
        )

    half = SIDE / 2
    return (
        '<?xml version="1.0"?><ASAP_Annotations><Annotations>'
        + one("Annotation 0", "_0", 0, 0, half, 500.5)
        + one("Annotation 1", "_1", 0, 500.5, half, 800)
        + one("Annotation 2", "Tumor", 0, 800, half, SIDE)
        + one("Annotation 3", "_2", 300, 500, 400, 600)
        + one("Annotation 4", "Exclusion", 300, 600, 400, 700)
        + "</Annotations><AnnotationGroups/></ASAP_Annotations>"
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("camelyon")
    return {
        name: write_slide(folder / f"{name}.tif", draw_tissue(SIDE, SIDE, i), mpp).read_bytes()
        for i, (name, (mpp, _)) in enumerate(SLIDES.items())
    }


def outlined(name: str) -> bool:
    return SLIDES[name][1]


def newer(images: dict[str, bytes]) -> dict[str, bytes]:
    """The bucket of today."""
    files = {f"images/{name}.tif": image for name, image in images.items()}
    files |= {f"annotations/{n}.xml": outlines().encode() for n in images if outlined(n)}
    files |= {f"masks/{n}_mask.tif": b"a mask" for n in images if outlined(n)}
    files |= {"images/": b"", "license.txt": b"CC0", "background_tissue/x.tif": b"x"}
    lines = ["image,class,type,center"]
    for name, (mpp, tumour) in SLIDES.items():
        if name.startswith("test"):
            kind = "tumor,macro" if tumour else "negative,None"
            lines.append(f"{name}.tif,{kind},{int(mpp < 0.23)}")
    files["evaluation/reference.csv"] = "\r\n".join(lines).encode()
    sums = [
        f"{hashlib.md5(body, usedforsecurity=False).hexdigest()}  {name}"
        for name, body in files.items()
    ]
    files["checksums.md5"] = "\n".join(sums).encode()
    return {f"CAMELYON16/{name}": body for name, body in files.items()}


def archive(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        for name, body in members.items():
            out.writestr(name, body)
    return made.getvalue()


def older(images: dict[str, bytes]) -> dict[str, bytes]:
    """The layout of older copies, with capitals, and SHA-256 as checksums."""
    of = {"normal": "training/normal", "tumor": "training/tumor", "test": "testing/images"}
    files = {
        f"{of[name.split('_')[0]]}/{name.capitalize()}.tif": image for name, image in images.items()
    }
    for part, kind in (("training", "tumor"), ("testing", "test")):
        files[f"{part}/lesion_annotations.zip"] = archive(
            {
                f"{name.capitalize()}.xml": outlines().encode()
                for name in images
                if outlined(name) and name.startswith(kind)
            }
        )
    lines = [
        f"{name},{'Tumor' if tumour else 'Normal'},{'Macro' if tumour else 'None'}"
        for name, (_, tumour) in SLIDES.items()
        if name.startswith("test")
    ]
    files["testing/reference.csv"] = "\n".join(lines).encode()
    sums = [f"{hashlib.sha256(body).hexdigest()} *{name}" for name, body in files.items()]
    files["checksums.md5"] = "\n".join(sums).encode()
    return {f"CAMELYON16/{name}": body for name, body in files.items()}


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
    assert rows["centre"].tolist()[:3] == ["Radboud", "Utrecht", "Utrecht"]
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


def test_a_damaged_or_exploding_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = archive({"tumor_001.xml": b"x" * 100_000})
    (tmp_path / "a.zip").write_bytes(whole)
    monkeypatch.setattr(camelyon16, "MAX_OUTLINE_BYTES", 50_000)
    with pytest.raises(DataError, match="not unpacked"):
        unpack_outlines(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "a.zip").write_bytes(whole[:-30])
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
