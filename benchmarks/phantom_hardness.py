"""Is the phantom as hard as tissue? The same measures on phantom slides and on IDC, side by side.

    python benchmarks/phantom_hardness.py --imagenet-weights FILE [--phantom FOLDER] [--idc ZIP]

Tumour P@10: of the 10 nearest tiles of other slides (patients) by cosine, how many are tumour,
averaged over tumour tiles. ADDR: mean distance of far pairs (>= 30 tile widths) of a slide over
that of near pairs (<= 8), pooled over slides. Phantom tiles are 112 px at 0.5 um, IDC tiles 50 px
at about 4 um; both are resized to 224 px for MobileNetV2 with ImageNet weights.
"""

import argparse
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import openslide
import shapely
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial.distance import cdist

EDGES = (0, 2, 4, 8, 12, 20, 30)
TILE = 112


def phantom_tiles(folder: Path, per_slide: int):
    """Tiles of every slide: (rgb list, group, xy in tile widths, label -1/0/1) and all labels."""
    rgb, group, place, label, every = [], [], [], [], []
    for index, path in enumerate(sorted(folder.glob("*.tif"))):
        slide = openslide.OpenSlide(path)
        width, height = slide.dimensions
        thumb = np.asarray(slide.get_thumbnail((width // 16, height // 16)).convert("RGB"))
        scale = thumb.shape[1] / width
        features = json.loads(path.with_suffix(".geojson").read_text())["features"]
        tumour = shapely.union_all(
            [
                shapely.geometry.shape(f["geometry"]).buffer(0)
                for f in features
                if f["properties"]["classification"]["name"].startswith("tumour")
            ]
        )
        shapely.prepare(tumour)
        found = []
        for y in range(0, height - TILE + 1, TILE):
            for x in range(0, width - TILE + 1, TILE):
                a, b, c, d = (int(v * scale) for v in (x, y, x + TILE, y + TILE))
                part = thumb[b:d, a:c].reshape(-1, 3).astype(int)
                stained = np.ptp(part, axis=1) > 18
                if stained.mean() < 0.3:
                    continue
                box = shapely.box(x, y, x + TILE, y + TILE)
                share = tumour.intersection(box).area / TILE**2 if tumour.intersects(box) else 0.0
                found.append((x, y, 1 if share >= 0.5 else 0 if share == 0 else -1))
        every.append(np.array(found))
        chosen = np.random.default_rng(index).permutation(len(found))[:per_slide]
        for x, y, kind in every[-1][chosen]:
            tile = slide.read_region((int(x), int(y)), 0, (TILE, TILE)).convert("RGB")
            rgb.append(np.asarray(tile))
            group.append(index)
            place.append((x / TILE, y / TILE))
            label.append(kind)
    return rgb, np.array(group), np.array(place), np.array(label), every


def idc_tiles(path: Path):
    """All tiles of the IDC zip in the same form."""
    rgb, group, place, label = [], [], [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            match = re.search(r"(\d+)_idx5_x(\d+)_y(\d+)_class([01])\.png$", name)
            if match is None:
                continue
            tile = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            if tile.shape != (50, 50, 3):
                continue
            patient, x, y, kind = (int(v) for v in match.groups())
            rgb.append(tile)
            group.append(patient)
            place.append((x / 50, y / 50))
            label.append(kind)
    group, place, label = np.array(group), np.array(place), np.array(label)
    every = [
        np.column_stack([place[group == g] * TILE, label[group == g]]) for g in np.unique(group)
    ]
    return rgb, group, place, label, every


def imagenet(rgb, weights: Path) -> np.ndarray:
    """MobileNetV2 features, (n, 1280), L2-normalised."""
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(load_file(weights), strict=False)
    model.eval()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    sd = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    out = []
    for start in range(0, len(rgb), 64):
        batch = (
            torch.from_numpy(np.stack(rgb[start : start + 64])).permute(0, 3, 1, 2).float() / 255
        )
        batch = torch.nn.functional.interpolate(batch, (224, 224), mode="bilinear", antialias=True)
        with torch.inference_mode():
            out.append(model.features((batch - mean) / sd).mean((2, 3)))
    return torch.nn.functional.normalize(torch.cat(out), dim=1).numpy()


def precision(features, group, label, k=10) -> float:
    """Tumour P@k with the query's group left out; unknown labels take no part."""
    known = label >= 0
    features, group, label = features[known], group[known], label[known]
    near = features @ features.T
    near[group[:, None] == group[None]] = -np.inf
    top = np.argpartition(-near, k, axis=1)[:, :k]
    return float(label[top].mean(1)[label == 1].mean())


def addr(features, group, place) -> float:
    """Mean far over mean near distance, pooled over slides."""
    far, near = [], []
    for g in np.unique(group):
        at = group == g
        gap, apart = cdist(place[at], place[at]), cdist(features[at], features[at])
        near.append(apart[(gap > 0) & (gap <= 8)])
        far.append(apart[gap >= 30])
    return float(np.concatenate(far).mean() / np.concatenate(near).mean())


def agreement(every) -> list[float]:
    """P(shared label) of two tiles of a slide, by their distance in tile widths."""
    same, total = np.zeros(len(EDGES) - 1), np.zeros(len(EDGES) - 1)
    rng = np.random.default_rng(0)
    for tiles in every:
        tiles = tiles[tiles[:, 2] >= 0] if len(tiles) else tiles
        if len(tiles) < 2:
            continue
        tiles = tiles[rng.permutation(len(tiles))[:700]]
        i, j = np.triu_indices(len(tiles), 1)
        gap = np.hypot(*(tiles[i, :2] - tiles[j, :2]).T) / TILE
        bins = np.digitize(gap, EDGES, right=True) - 1
        fits = bins < len(EDGES) - 1
        shared = tiles[i, 2] == tiles[j, 2]
        total += np.bincount(bins[fits], minlength=len(EDGES) - 1)
        same += np.bincount(bins[fits], shared[fits], minlength=len(EDGES) - 1)
    return list(same / np.maximum(total, 1))


def measure(rgb, group, place, label, every, weights: Path | None) -> dict[str, str]:
    """All measures of one data set, as text."""
    mean = np.array([tile.mean((0, 1)) for tile in rgb])
    spread = np.array([tile.std((0, 1)) for tile in rgb])
    density = np.array([(-np.log10((tile + 1.0) / 256)).mean((0, 1)) for tile in rgb])
    six = np.hstack([mean, spread])
    six = (six - six.mean(0)) / six.std(0)
    six /= np.linalg.norm(six, axis=1, keepdims=True)

    def between(values) -> str:
        slides = np.array([values[group == g].mean(0) for g in np.unique(group)])
        return " ".join(f"{v:.3g}" for v in slides.std(0))

    labels = np.concatenate([e[:, 2] for e in every])
    result = {
        "tiles": f"{len(rgb)} of {len(np.unique(group))} slides",
        "prevalence": f"{(label[label >= 0] == 1).mean():.3f}",
        "unlabelled": f"{(labels < 0).mean():.3f}",
        "slides with tumour": f"{sum((e[:, 2] == 1).any() for e in every)}",
        "mean RGB": " ".join(f"{v:.0f}" for v in mean.mean(0)),
        "sd of tiles' mean RGB": " ".join(f"{v:.1f}" for v in mean.std(0)),
        "sd of slides' mean RGB": between(mean),
        "sd of slides' mean OD": between(density),
        "RGB P@10": f"{precision(six, group, label):.3f}",
        "RGB ADDR": f"{addr(six, group, place):.3f}",
    }
    for low, high, value in zip(EDGES[:-1], EDGES[1:], agreement(every), strict=True):
        result[f"P(shared label), {low}-{high}"] = f"{value:.3f}"
    if weights:
        features = imagenet(rgb, weights)
        result["ImageNet P@10"] = f"{precision(features, group, label):.3f}"
        result["ImageNet ADDR"] = f"{addr(features, group, place):.3f}"
        same = features @ features.T
        np.fill_diagonal(same, -np.inf)
        result["ImageNet: nearest tile is of the same slide"] = (
            f"{(group[same.argmax(1)] == group).mean():.3f}"
        )
    return result


def main() -> None:
    """Print a table with one column a data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--imagenet-weights", type=Path)
    parser.add_argument("--phantom", type=Path, help="folder of phantom slides")
    parser.add_argument("--idc", type=Path, help="zip of IDC tiles")
    parser.add_argument("--per-slide", type=int, default=400)
    args = parser.parse_args()
    columns = {}
    if args.phantom:
        columns["phantom"] = measure(
            *phantom_tiles(args.phantom, args.per_slide), args.imagenet_weights
        )
    if args.idc:
        columns["IDC"] = measure(*idc_tiles(args.idc), args.imagenet_weights)
    print("| measure | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for key in next(iter(columns.values())):
        print(f"| {key} | " + " | ".join(column.get(key, "") for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
