"""Mutated files against the readers: nothing but errors of sslpath's own family may come out.

    pip install atheris
    python benchmarks/fuzz.py [--seconds 600] [--only READER ...] [--out FILE]

Atheris (libFuzzer) starts from whole files of each kind and mutates them, steered by the lines of
code that they reach. Any other exception, a crash, a file that takes 20 s or 4 GB ends a reader's
run; the input that did it is kept in --work. `tests/test_fuzz.py` does a little of the same.
"""

import argparse
import gzip
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pyvips
import shapely
from pebble import ProcessPool
from PIL import Image
from reliability import merge

from sslpath.annotations import read_annotations, write_geojson
from sslpath.commands.lists import read_list
from sslpath.datasets.camelyon16 import read_reference, unpack_outlines
from sslpath.descriptor_files import SlideDescriptors, load_in, write_descriptors
from sslpath.errors import SlideError, SslpathError
from sslpath.model import ModelConfig, SiameseNetwork, load_model, save_model
from sslpath.results import read_results, row, write_results
from sslpath.tiff_blocks import BlockCache, TiffBlocks
from sslpath.tiff_tags import directories_of, oddity

ASAP = """<?xml version="1.0"?><ASAP_Annotations><Annotations>
<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="_0" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="1.5" Y="2"/><Coordinate Order="1" X="90" Y="2"/>
<Coordinate Order="2" X="90" Y="70"/></Coordinates></Annotation>
<Annotation Name="Annotation 1" Type="Dot" PartOfGroup="None"><Coordinates/></Annotation>
<Annotation Name="Annotation 2" Type="Spline" PartOfGroup="inner"><Coordinates>
<Coordinate Order="0" X="0" Y="0"/><Coordinate Order="2" X="9" Y="0"/>
<Coordinate Order="1" X="9" Y="9"/><Coordinate Order="3" X="0" Y="9"/></Coordinates></Annotation>
</Annotations><AnnotationGroups><Group Name="inner" PartOfGroup="normal"/>
<Group Name="normal" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>"""
QUPATH = """[{"type":"Feature","id":"PathCellObject","geometry":
{"type":"Point","coordinates":[1,2]}},
{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[9,9],[9,0],[0,9]]]},
"properties":{"objectType":"annotation","classification":{"names":["Tumor","Positive"]}}},
{"type":"Feature","geometry":{"type":"GeometryCollection","geometries":[{"type":"MultiPolygon",
"coordinates":[[[[0,0],[9,0],[9,9]]]]}]},"properties":{"classification":"{'name': 'Tumor'}"}}]"""
PIXEL_SIZES = 'sep=;\r\nWSI;mpp;note\r\ncase.svs;0.25;"a; b"\r\nb;0.5\r\n'
REFERENCE = "image,class,type,center\r\ntest_001.tif,tumor,macro,0\r\ntest_002,Normal,None\r\n"


class Target(NamedTuple):
    """A reader of files.

    Attributes:
        ending: Of its files.
        whole: Writes a file that it reads.
        read: The reader.
    """

    ending: str
    whole: Callable[[Path], object]
    read: Callable[[Path], object]


def _geojson(path: Path) -> None:
    ring = shapely.box(0, 0, 50, 40).difference(shapely.box(10, 10, 20, 20))
    parts = shapely.MultiPolygon([shapely.box(60, 0, 70, 9), shapely.box(80, 0, 90, 9)])
    write_geojson({"Tumor": ring, "exclude": parts}, path)


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(QUPATH.encode()))


def _tags(path: Path) -> None:
    found = directories_of(path)
    if not found:
        raise SlideError("no TIFF")
    oddity(found)
    oddity(found, [SIZES[0]])


def _outlines(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lesion/Tumor_001.xml", ASAP)


def _unpack(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack_outlines(path, folder)
        stray = [p for p in Path(folder).rglob("*") if p.name != "tumor_001.xml"]
        assert not stray or all(re.fullmatch(r"[a-z]+_\d+\.xml", p.name) for p in stray)


def _descriptors(path: Path) -> None:
    made = write_descriptors(path.parent, path.stem, np.ones((9, 4)), np.zeros((9, 2), int))
    made.replace(path)


@cache
def _pool() -> ProcessPool:
    return ProcessPool(1)


def _load(path: Path) -> SlideDescriptors:
    # HDF5 itself crashes, or goes round in a circle, on some: read apart, as what is not trusted.
    return load_in(_pool(), path, timeout_s=15)  # fuzz() gives up after 20


def _checkpoint(path: Path) -> None:
    small = {"feature_dim": 4, "hidden": 3, "descriptor_dim": 2}
    save_model(SiameseNetwork(ModelConfig("mine", **small)), path)


def _results(path: Path) -> None:
    write_results(path, [row("rgb", "knn_auc", 0.5, 0.4, 0.6, n=9, data="phantoms")])


SIZES = ((160, 128), (80, 64))  # of the levels


def _slide(path: Path) -> None:
    bright = np.random.default_rng(0).integers(120, 250, (16, 20, 3), np.uint8)
    pixels = bright.repeat(8, axis=0).repeat(8, axis=1)
    pyvips.Image.new_from_array(pixels).tiffsave(
        str(path), tile=True, pyramid=True, compression="jpeg", Q=80, tile_width=64, tile_height=64
    )


def _blocks(path: Path) -> None:
    """Blocks alone: taken as they are, without OpenSlide to agree."""

    def openslide(level: int, corner: tuple[int, int], size: tuple[int, int]) -> Image.Image:
        raise AssertionError("not to be asked")

    cache = BlockCache()
    cache.agreed = {(path, 0): True, (path, 1): True}
    blocks = TiffBlocks(path, path, directories_of(path), SIZES, (1.0, 2.0), cache, openslide)
    read = [blocks.read(level, (0, 0), size) for level, size in enumerate(SIZES)]
    for found, (width, height) in zip(read, SIZES, strict=True):
        assert found is None or found.shape == (height, width, 3)
    if read[0] is None or read[1] is None:
        raise SlideError("left to OpenSlide")


TARGETS = {
    "JPEG blocks of a slide": Target(".tif", _slide, _blocks),
    "tags of a TIFF": Target(".tif", _slide, _tags),
    "annotations in XML": Target(".xml", _text(ASAP), read_annotations),
    "annotations in GeoJSON": Target(".geojson", _geojson, read_annotations),
    "annotations of QuPath": Target(".json", _text(QUPATH), read_annotations),
    "annotations in gzip": Target(".geojson.gz", _gzip, read_annotations),
    "archive of annotations": Target(".zip", _outlines, _unpack),
    "manifest": Target(".csv", _text(REFERENCE), lambda path: read_reference([path])),
    "pixel sizes in CSV": Target(".csv", _text(PIXEL_SIZES), lambda p: read_list(p, ["wsi"])),
    "descriptors": Target(".h5", _descriptors, _load),
    "checkpoint": Target(".safetensors", _checkpoint, load_model),
    "results": Target(".json", _results, read_results),
}


def survives(target: Target, data: bytes, path: Path) -> bool:
    """Whether a file could be read; an error outside of our family goes through."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except SslpathError:
        return False
    return True


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Mutate until the time is over; libFuzzer ends the process."""
    import atheris

    target, scratch = TARGETS[name], Path(tempfile.mkdtemp())
    path = scratch / f"input{target.ending}"
    for module in [m for n, m in sys.modules.items() if n.startswith("sslpath.")]:
        for own in list(vars(module).values()):
            if isinstance(own, FunctionType) and own.__module__ == module.__name__:
                atheris.instrument_func(own)
    limits = ["-timeout=20", "-rss_limit_mb=4096", "-max_len=65536", "-print_final_stats=1"]
    where = [f"-max_total_time={seconds}", f"-artifact_prefix={corpus.parent}/", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *where], lambda data: survives(target, data, path))
    atheris.Fuzz()


def run(name: str, work: Path, seconds: int) -> dict[str, Any]:
    """Fuzz one reader in a process of its own; returns the result's row."""
    corpus = work / name.replace(" ", "-") / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    TARGETS[name].whole(corpus / f"whole{TARGETS[name].ending}")
    line = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
    done = subprocess.run([*line, "--work", str(work)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: exit {done.returncode}; see {corpus.parent}\n{done.stderr[-3000:]}")
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    count = int(found[1]) if found else 0
    print(f"{name}: {count:,} files in {seconds} s, no error but our own", flush=True)
    return row(f"fuzz: {name}", "files tried", count, n=seconds, data="mutated files")


def main() -> None:
    """Fuzz the readers, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=600, help="for each reader (default 600)")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--one", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--out", type=Path, default=Path("data/results/reliability.json"))
    options = parser.parse_args()
    if options.one:
        corpus = options.work / options.one.replace(" ", "-") / "corpus"
        fuzz(options.one, corpus, options.seconds)
        return
    rows = [run(name, options.work, options.seconds) for name in options.only]
    merge(options.out, rows)


if __name__ == "__main__":
    main()
