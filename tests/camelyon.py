"""Camelyon16 in miniature: drawn slides under the official names, in both layouts."""

import hashlib
import io
import zipfile
from pathlib import Path

from conftest import draw_tissue, write_slide

# Names, um a pixel, and whether they hold tumour.
SLIDES = {
    "normal_001": (0.243, False), "normal_002": (0.226, False), "tumor_001": (0.243, True),
    "tumor_010": (0.226, True), "test_001": (0.243, True), "test_002": (0.226, False),
    "test_114": (0.226, True),
}  # fmt: skip
SIDE = 1200


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


def draw_images(folder: Path) -> dict[str, bytes]:
    """The slides, as files of a bucket."""
    return {
        name: write_slide(folder / f"{name}.tif", draw_tissue(SIDE, SIDE, i), mpp).read_bytes()
        for i, (name, (mpp, _)) in enumerate(SLIDES.items())
    }


def random_weights(path: Path) -> Path:
    """ResNet-18 as it starts: what stands in for ImageNet's weights."""
    import torch

    from sslpath.backbones import make_trunk

    torch.manual_seed(0)
    torch.save(make_trunk("resnet18").state_dict(), path)
    return path


# An experiment that takes seconds.
SMALL = (
    *("--mpp", "0.5", "--tile-px", "32", "--max-tiles", "120", "--arch", "resnet18"),
    *("--input-px", "32", "--near-tiles", "2", "--far-tiles", "6", "--device", "cpu"),
    *("--steps", "3", "--slides-per-batch", "2", "--tiles-per-slide", "12", "--workers", "1"),
)
