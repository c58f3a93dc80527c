"""Make the descriptor that comes with sslpath, and measure that very file.

    python benchmarks/ship.py ARCHIVE --imagenet-weights FILE [--work out/experiments]

A head learns from the features of all depths and from augmented views, on the training patients of
IDC's fixed split (folds 2, 3 and 4). Head and encoder become one network in 8 and 16 bits.
The file is read back, describes the pixels of the test patients (folds 0 and 1), and is compared
with ImageNet features by the protocol of `sslpath evaluate`.
"""

import argparse
from pathlib import Path

import numpy as np
from methods import Setting, trained
from tile_sets import Inputs, idc

from sslpath.embed import load_run
from sslpath.model import save_model, whole
from sslpath.pairs import near_far_um
from sslpath.results import row, write_results
from sslpath.retrieval import evaluate
from sslpath.runs import CHECKPOINT
from sslpath.sources import open_source

# Without twins more tumour is found on IDC's folds 2, 3 and 4, which are one archive's.
VIEWS = Setting("spatial", changes={"views": "elsewhere", "twins": 0.0})


def main() -> None:
    """Train, write, read back, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/experiments"))
    parser.add_argument("--run", type=Path, default=Path("data/models/idc"))
    parser.add_argument("--out", type=Path, default=Path("data/results/shipped.json"))
    options = parser.parse_args()
    inputs = Inputs(idc(options.archive), options.imagenet_weights, options.work / "idc")
    test = (inputs.tiles["split"] == "test").to_numpy()
    head = trained(inputs, VIEWS, test, 0)
    save_model(whole(head, inputs.encoder), options.run / CHECKPOINT, small=True)

    network, _ = load_run(options.run)
    tiles = inputs.tiles[test].reset_index(drop=True)
    tiles.attrs = inputs.tiles.attrs
    source = open_source(tiles)
    ours = np.concatenate(
        [network.encode(source.read(tiles.iloc[i : i + 64])) for i in range(0, len(tiles), 64)]
    )
    cosine = (ours * head.encode(inputs["depths"][test])).sum(axis=1)
    near_um, far_um = near_far_um(tiles, inputs.set.near_tiles, inputs.set.far_tiles)
    data = "IDC, test patients"
    rows = evaluate(
        tiles, {"shipped": ours, "imagenet": inputs["last"][test]},
        near_um=near_um, far_um=far_um, data=data,
    )  # fmt: skip
    size = (options.run / CHECKPOINT).stat().st_size
    rows.append(row("shipped", "bytes", size, n=1, data=data))
    rows.append(row("shipped", "cosine_to_32_bits", float(cosine.mean()), n=len(cosine), data=data))
    write_results(options.out, rows)
    for one in rows:
        print(one["method"], one["metric"], f"{one['value']:.4g}", one["low"], one["high"])


if __name__ == "__main__":
    main()
