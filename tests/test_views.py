"""The shipped features of augmented views."""

import json

import h5py
import numpy as np

from sslpath.book import phantom_tiles
from sslpath.datasets.phantom_features import SHIPPED, SHIPPED_VIEWS, shipped_features
from sslpath.sources import open_source


def test_views_belong_to_the_training_tiles_and_resemble_them_more_than_others():
    tiles = phantom_tiles()
    part = tiles[tiles["split"] == "train"].reset_index(drop=True)
    part.attrs = tiles.attrs
    source = open_source(part)
    views, there, about = shipped_features(part, source, SHIPPED_VIEWS)
    plain, also, _ = shipped_features(part, source, SHIPPED)
    assert there.mean() > 0.99
    assert (there == also).all()
    assert about["augmentation"]["stain"] > 0
    a = views / np.linalg.norm(views, axis=1, keepdims=True)
    b = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    own = (a * b).sum(1)
    other = (a * np.roll(b, 1, axis=0)).sum(1)  # the next tile of the table, mostly a near one
    assert (own > other).mean() > 0.95


def test_views_come_from_the_same_weights_as_the_features():
    provenance = []
    for path in (SHIPPED, SHIPPED_VIEWS):
        with h5py.File(path) as file:
            provenance.append(json.loads(file.attrs["provenance"]))
    assert provenance[0]["sha256"] == provenance[1]["sha256"]
