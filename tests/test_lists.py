"""Lists of people's own: pixel sizes and patients, as spreadsheets of all kinds write them."""

import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import MPP, draw_tissue, write_slide

from sslpath.cli import main
from sslpath.commands.lists import read_list, with_mpp, with_patients
from sslpath.errors import ConfigError, PixelSizeError
from sslpath.slide_files import find_slides, slides_named
from sslpath.slides import Slide
from sslpath.table import load_tiles, make_table

ROWS = [{"wsi": "case", "mpp": "0.25"}, {"wsi": "fälle", "mpp": "0.5"}]
COMMAS = "wsi,mpp\ncase,0.25\nfälle,0.5\n"


@pytest.mark.parametrize(
    "data",
    [
        COMMAS.encode(),
        COMMAS.encode("utf-8-sig"),
        COMMAS.encode("utf-16"),
        COMMAS.encode("cp1252"),
        COMMAS.replace("\n", "\r\n").encode(),
        COMMAS.replace(",", ";").encode(),
        COMMAS.replace(",", "\t").encode(),
        ("sep=;\n" + COMMAS.replace(",", ";")).encode(),
        b"WSI, Mpp \n case , 0.25\n\n" + "fälle,0.5,,\n".encode(),
        'note,"mpp","wsi"\n"a, b",0.25,case\n,0.5,"fälle"\n'.encode(),
    ],
)
def test_lists_are_read_in_whatever_way_spreadsheets_write_them(
    tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "list.csv").write_bytes(data)
    rows = read_list(tmp_path / "list.csv", ["wsi", "mpp"])
    assert [{key: row[key] for key in ("wsi", "mpp")} for row in rows] == ROWS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"slide,um\ncase,0.25\n", "lacks the columns wsi, mpp; it has slide, um"),
        (b"wsi,mpp\ncase,0,25\n", "row 2 has more cells than the 2 headings"),
        (b"\x00\x81\xff", "CSV"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused_by_name(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        read_list(tmp_path / "list.csv", ["wsi", "mpp"])
    assert "list.csv" in str(caught.value)


# Names of slides


@pytest.mark.parametrize(
    "name",
    ["case", "CASE", "case.svs", "Case.SVS", " case ", "/mnt/a/case.svs", "C:\\slides\\case.svs"],
)
def test_a_slide_is_known_by_id_or_file_of_any_system(name: str) -> None:
    assert slides_named([name], {"case": "case.svs", "b": "b.tif"}, "list") == {name: "case"}


@pytest.mark.parametrize("name", ["cas.svs", "case.2", "case.ndpi", "case.svs.svs", "", "c"])
def test_a_name_of_no_slide_is_refused_with_one_like_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"list\.csv names .* no slide has this name.*: case"):
        slides_named([name], {"case": "case.svs", "case.2b": "case.2b.svs"}, "list.csv")
    assert slides_named([name], {"case": "case.svs"}, "list.csv", others=True) == {}


def test_a_name_that_may_mean_two_slides_is_refused_unless_it_is_exact() -> None:
    two = {"case": "case.svs", "CASE": "CASE.svs"}
    assert slides_named(["case", "CASE"], two, "list") == {"case": "case", "CASE": "CASE"}
    with pytest.raises(ConfigError, match="may mean CASE or case"):
        slides_named(["Case"], two, "list")


# Pixel sizes


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides, of which ``silent`` does not say its pixel size."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "case.tif", draw_tissue(600, 500))
    write_slide(folder / "silent.tif", draw_tissue(600, 500, 1), mpp=None)
    return folder


def sizes(folder: Path, tmp_path: Path, text: str) -> dict[str, float | None]:
    (tmp_path / "mpp.csv").write_text(text, encoding="utf-8")
    read = with_mpp(find_slides(folder), str(tmp_path / "mpp.csv"))
    return {slide.slide_id: slide.mpp_override for slide in read}


@pytest.mark.parametrize("name", ["case", "case.tif", "CASE.TIF", "C:\\slides\\case.tif"])
def test_a_list_overrides_the_slides_that_it_names_and_no_other(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert sizes(slides, tmp_path, f"wsi,mpp\n{name},0.25\n") == {"case": 0.25, "silent": None}
    said = f"case: 0.25 um per pixel, not the {MPP:g} that the slide states"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('case.tif,"0,25"', "mpp of case.tif is '0,25', not a number"),
        ("case,0.25um", "not a number"),
        ("case,", "not a number"),
        ("case,0_25", "not a number"),
        ("case,nan", "not a number"),
        ("case,-0.25", "not a number"),
        ("cas.tif,0.25", "names 'cas.tif', but no slide has this name"),
        ("case.2,0.25", "names 'case.2', but no slide has this name"),
        ("case,0.25\ncase.tif,0.5", "gives case two pixel sizes: 0.25 and 0.5"),
    ],
)
def test_a_list_of_pixel_sizes_is_taken_at_its_word_or_refused(
    slides: Path, tmp_path: Path, rows: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sizes(slides, tmp_path, f"wsi,mpp\n{rows}\n")


@pytest.mark.parametrize("size", ["250", "0.001", "1e9"])
def test_a_pixel_size_that_no_microscope_has_is_refused(
    slides: Path, tmp_path: Path, size: str
) -> None:
    with pytest.raises(PixelSizeError, match="not plausible"):
        sizes(slides, tmp_path, f"wsi,mpp\ncase,{size}\n")
    with pytest.raises(PixelSizeError, match="not plausible"):
        with_mpp(find_slides(slides), size)


def test_a_number_holds_for_silent_slides_and_says_if_there_are_none(
    slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {slide.slide_id: slide.mpp_override for slide in with_mpp(find_slides(slides), "0.4")}
    assert found == {"case": None, "silent": 0.4}
    assert not capsys.readouterr().err
    with_mpp([Slide(slides / "case.tif")], "0.4")
    assert "changes nothing: every slide states its pixel size" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0,25", "0.25um", "0.25 um", "1.2.3"])
def test_an_override_that_is_neither_number_nor_file_is_refused(slides: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a number .um per pixel, such as 0\.25"):
        with_mpp(find_slides(slides), text)


# Patients


def table() -> pd.DataFrame:
    path = {name: {"path": f"/slides/{name}.svs", "mpp": MPP} for name in ("a", "b")}
    return make_table(
        {
            "slide_id": ["a", "a", "b"],
            "x": [0, 9, 0],
            "y": 0,
            "size": 9,
            "slide_mpp": MPP,
        },
        mpp=MPP,
        tile_px=9,
        source={"kind": "slides", "slides": path},
    )


@pytest.mark.parametrize(
    "text",
    [
        "slide_id,patient_id,split\na,P1,train\nb,P2,test\n",
        "Slide_ID;Patient_ID;Split\nA.svs;P1;Train\nB.SVS;P2;TEST\n",
        "slide id,patient id,split\na,P1,train\na.svs,P1,train\nb,P2,test\nelsewhere,P3,train\n",
    ],
)
def test_patients_are_read_by_id_or_file_and_headings_in_any_form(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "patients.csv").write_text(text)
    tiles = with_patients(table(), tmp_path / "patients.csv")
    assert list(tiles["patient_id"]) == ["P1", "P1", "P2"]
    assert list(tiles["split"]) == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,patient_id\na,P1\n", "does not name the patient of b"),
        ("slide_id,patient_id\na,P1\nb,\n", "does not name the patient of b"),
        ("slide_id,patient_id\na,P1\na.svs,P2\nb,P2\n", "lists a twice"),
        ("slide_id,patient_id,split\na,P1,train\nb,P1,test\n", "look at P1"),
        ("slide_id,patient_id,split\na,P1,train\nb,P2,val\n", r"look at P2 \(val\)"),
        ("slide_id,patient_id,split\na,P1,train\nb,P2,\n", r"look at P2 \(no split\)"),
    ],
)
def test_patients_that_contradict_the_table_or_themselves_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        with_patients(table(), tmp_path / "patients.csv")


def test_a_split_that_the_list_chose_is_not_warned_of(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("slide_id,patient_id,split\ncase,P1,test\n")
    words = [
        "tile",
        slides / "case.tif",
        "--mpp",
        MPP,
        "--tile-px",
        64,
        "--out",
        tmp_path / "t.parquet",
    ]
    assert main([str(word) for word in (*words, "--patients", tmp_path / "p.csv")]) == 0
    assert set(load_tiles(tmp_path / "t.parquet")["split"]) == {"test"}
    assert "choose their split" not in capsys.readouterr().err


# Folders


def test_hidden_files_are_no_slides_and_links_that_lead_nowhere_are_missing_ones(
    tmp_path: Path,
) -> None:
    write_slide(tmp_path / "case.tif", draw_tissue(300, 300))
    for name in ("._case.tif", ".hidden.svs", ".DS_Store", "Thumbs.db", "._a.dcm"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    (tmp_path / "folder.svs").mkdir()
    assert [slide.slide_id for slide in find_slides(tmp_path)] == ["case", "gone"]


def test_a_hidden_file_beside_a_dicom_series_does_not_rename_its_slide(
    shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "patient-7"
    folder.mkdir()
    for path in sorted((shared / "real/slides/cmu-1-small-region-dicom").iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert [slide.slide_id for slide in find_slides(folder)] == ["patient-7"]


ODD_NAMES = (
    "症例1",
    "a b,c;d",
    "new\nline",
    "quote'\"x",
    "%41",
    "{0}",
    "$x$ ^y$",
    "-dash",
    "x" * 251,
)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_no_name_of_a_slide_takes_other_slides_along(tmp_path: Path) -> None:
    folder, table = tmp_path / "slides", tmp_path / "t.parquet"
    folder.mkdir()
    whole = write_slide(folder / "plain.tif", draw_tissue(600, 500)).read_bytes()
    for name in ODD_NAMES:
        (folder / f"{name}.tif").write_bytes(whole)
    Path(os.fsdecode(os.fsencode(folder) + b"/no\xfftext.tif")).write_bytes(whole)
    os.mkfifo(folder / "pipe.tif")  # which waits forever for whoever opens it
    words = [
        "tile",
        folder,
        "--mpp",
        MPP,
        "--tile-px",
        64,
        "--out",
        table,
        "--preview",
        tmp_path / "p",
    ]
    assert main([str(word) for word in words]) == 3
    assert set(load_tiles(table)["slide_id"]) == {"plain", *ODD_NAMES}
    failed = pd.read_csv(table.with_suffix(".failed.csv"))
    assert list(failed["slide_id"]) == ["no\\udcfftext"]
    assert "is not UTF-8, so no table can hold it" in failed["error"][0]
    shown = {path.stem for path in (tmp_path / "p").iterdir()}
    assert shown == {"plain", *ODD_NAMES}


def test_two_columns_of_one_heading_are_refused(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two columns mpp"):
        sizes(slides, tmp_path, "wsi,mpp,MPP\ncase.tif,0.25,1.0\n")


def test_blank_rows_of_a_spreadsheet_are_passed_over(slides: Path, tmp_path: Path) -> None:
    assert sizes(slides, tmp_path, "wsi,mpp\n,\ncase.tif,0.25\n,,\n")["case"] == 0.25


def test_a_list_without_rows_is_told(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes(slides, tmp_path, "wsi,mpp\n")
    assert "has headings and no row" in capsys.readouterr().err


def patients(tmp_path: Path, first: str, second: str, split: str) -> list[str]:
    """The patients of the slides ``a``, for training, and ``b``, by a list."""
    text = f"slide_id,patient_id,split\na,{first},train\nb,{second},{split}\n"
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    return list(with_patients(table(), tmp_path / "p.csv")["patient_id"][1:])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("M\u00fcller", "Mu\u0308ller"),
        ("P 1", "P\u00a01"),
        ("P1", "p1"),
        ("7", "7.0"),
        ("a", "a\u200b"),
    ],
)
def test_a_patient_in_two_spellings_is_one_and_is_never_in_both_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    assert patients(tmp_path, first, second, "train") == [first, first]
    assert "are read as one" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the same for all slides of a patient"):
        patients(tmp_path, first, second, "test")


@pytest.mark.parametrize("none", ["NA", "nan", "#N/A", "", "None"])
def test_no_value_is_no_patient(tmp_path: Path, none: str) -> None:
    with pytest.raises(ConfigError, match="does not name the patient"):
        patients(tmp_path, none, "P2", "test")


def test_of_an_unreadable_slide_and_its_conversion_the_readable_one_is_taken(
    slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "case.svs").write_bytes(b"not a slide")
    (tmp_path / "case.tif").write_bytes((slides / "case.tif").read_bytes())
    with pytest.warns(UserWarning, match=r"case\.svs cannot be opened and is passed over"):
        (one,) = find_slides(tmp_path)
    assert one.path.name == "case.tif"
