"""The README's tables are those of recorded results, number by number."""

import re
import tomllib
from pathlib import Path

from sslpath.results import markdown_table, read_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS = ["tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median"]


def table(name: str, text: str = README) -> str:
    found = re.search(rf"<!-- {name} table -->\n(.*?)\n<!-- end -->", text, re.S)
    assert found, f"there is no table {name}"
    return found[1].strip()


def test_the_demos_table_is_the_recorded_one() -> None:
    rows = read_results(ROOT / "data/results/demo.json")
    assert table("demo") == markdown_table(rows, METRICS)


def test_every_mean_and_spread_of_the_idc_table_is_the_recorded_one() -> None:
    import numpy as np

    rows = read_results(ROOT / "data/results/idc.json")
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table("idc").splitlines()]
    metrics = lines[0][1:]
    assert len(lines) > 5
    for method, *cells in lines[2:]:
        for metric, cell in zip(metrics, cells, strict=True):
            values = [r["value"] for r in rows if (r["method"], r["metric"]) == (method, metric)]
            if not values:
                assert cell == ""
                continue
            assert cell == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


IDC, HELD_OUT = "IDC, five folds", "phantoms, stain and scanner held out"
NEW = f"{HELD_OUT}, of seed 3, 60 slides"


def recorded(method: str, metric: str, data: str = IDC) -> list[dict[str, object]]:
    rows = read_results(ROOT / "data/results/experiments.json")
    key = (method, metric, data)
    return [r for r in rows if (r["method"], r["metric"], r["data"]) == key]


def test_every_number_of_the_experiments_is_the_recorded_one() -> None:
    import numpy as np

    for name, data in {
        "experiments": IDC,
        "gains": IDC,
        "held out": HELD_OUT,
        "new phantoms": NEW,
    }.items():
        lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table(name).splitlines()]
        assert len(lines) > 4
        for method, *cells in lines[2:]:
            for metric, cell in zip(lines[0][1:], cells, strict=True):
                rows = recorded(method, metric, data)
                mean = {k: np.mean([r[k] for r in rows]) for k in ("value", "low", "high")}
                sd = np.std([r["value"] for r in rows], ddof=1)
                whole = f"{mean['value']:.3f} ± {sd:.3f}"
                gain = f"{mean['value']:+.3f} [{mean['low']:+.3f}, {mean['high']:+.3f}]"
                assert cell == (whole if name == "experiments" else gain), (method, metric)


GENERIC = ("SimCLR", "instance discrimination")
RIVALS = {
    "spatial": ("imagenet", *GENERIC),
    "spatial, views": ("imagenet", *(f"{rival}, elsewhere" for rival in GENERIC)),
}


def test_near_pairs_beat_imagenet_and_generic_self_supervision_on_real_patients() -> None:
    for ours, theirs in RIVALS.items():
        for rival in theirs:
            for metric in ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global"):
                rows = recorded(f"{ours} - {rival}", metric)
                assert len(rows) >= 2
                assert min(r["value"] for r in rows) > 0, (ours, rival, metric)
                # In one seed, this interval alone holds zero.
                weak = (ours, rival, metric) == ("spatial, views", "imagenet", "tumour_top1")
                assert sum(r["low"] <= 0 for r in rows) == weak, (ours, rival, metric)


def test_views_beat_imagenet_on_new_phantoms_and_generic_self_supervision_in_two_measures() -> None:
    generic = [f"{rival}, elsewhere" for rival in GENERIC]
    measures = ("knn_auc", "addr_global")
    won = [("imagenet", metric) for metric in ("tumour_top1", "tumour_p_at_10", *measures)]
    won += [(rival, metric) for rival in generic for metric in measures]
    for rival, metric in won:
        rows = recorded(f"spatial, views - {rival}", metric, NEW)
        assert len(rows) == 3
        assert min(r["low"] for r in rows) > 0, (rival, metric)
    for rival in generic:  # in this measure nobody is ahead
        for row in recorded(f"spatial, views - {rival}", "tumour_p_at_10", NEW):
            assert row["low"] < 0 < row["high"]


def values(method: str, metric: str) -> list[float]:
    return [float(str(row["value"])) for row in recorded(method, metric)]


def test_dropout_trades_tumour_among_the_nearest_for_the_ratio_of_distances() -> None:
    more, spatial = "dropout 0.5, margin 1.5", "spatial"
    assert len(values("no dropout", "addr_global")) == len(values(spatial, "addr_global")) == 3
    for low, middle, high, metric in (
        (more, spatial, "no dropout", "tumour_p_at_10"),
        ("no dropout", spatial, more, "addr_global"),
    ):
        assert max(values(low, metric)) < min(values(middle, metric))
        assert max(values(middle, metric)) < min(values(high, metric))


def test_a_probe_that_learned_from_labels_is_ahead_of_every_spatial_method_in_auc() -> None:
    probes = [values(f"supervised probe, {what}", "auc") for what in ("last", "depths")]
    spatial = [values(what, "knn_auc") for what in ("spatial, last layer", *RIVALS)]
    assert all(map(len, [*probes, *spatial]))
    assert min(map(min, probes)) > max(map(max, spatial))


def test_the_index_of_a_million_tiles_answers_sooner_and_in_less_memory_than_exact_search() -> None:
    rows = read_results(ROOT / "data/results/benchmarks.json")
    rows = [r for r in rows if r["data"] == "sslpath search, 1,000,000 x 128"]
    rate = {r["method"]: r["rate"] for r in rows if r["metric"].startswith("rate")}
    memory = {r["method"]: r["value"] for r in rows if r["metric"] == "memory, GB"}
    assert rate["index"] > rate["exact"]
    assert memory["index"] < memory["exact"]


def test_every_number_of_the_changed_pictures_is_the_recorded_one() -> None:
    rows = read_results(ROOT / "data/results/robustness.json")
    found = {(r["method"], r["metric"]): r["value"] for r in rows if r["data"] == IDC}
    lines = [
        [c.strip() for c in line.split("|")[1:-1]] for line in table("robustness").splitlines()
    ]
    assert len(lines) >= 4
    for method, *cells in lines[2:]:
        for metric, cell in zip(lines[0][1:], cells, strict=True):
            key = metric if metric == "own_patient" else f"p_at_10_{metric}"
            assert cell == f"{found[method, key]:.3f}"


SHIPPED = ROOT / "data/models/idc"


def test_the_model_card_says_what_was_measured_of_the_file_that_is_there() -> None:
    rows = read_results(ROOT / "data/results/shipped.json")
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert table("shipped", card) == markdown_table(rows, METRICS)
    (size,) = (r["value"] for r in rows if r["metric"] == "bytes")
    assert (SHIPPED / "checkpoint.safetensors").stat().st_size == size < 5_000_000
    for metric in ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global"):
        (gain,) = (r for r in rows if (r["method"], r["metric"]) == ("shipped - imagenet", metric))
        assert gain["low"] > 0, metric


def test_the_shipped_descriptor_needs_nothing_else() -> None:
    import numpy as np

    from sslpath.embed import load_run

    network, about = load_run(SHIPPED)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 50, 50, 3), dtype=np.uint8)
    found = network.encode(tiles)
    assert found.shape == (3, 128)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert about["descriptor_dim"] == 128


def test_ours_beats_imagenet_for_every_seed_on_held_out_idc_patients() -> None:
    rows = read_results(ROOT / "data/results/idc.json")
    for metric in ("tumour_p_at_10", "knn_auc"):
        gains = [
            r["value"] for r in rows if (r["method"], r["metric"]) == ("spatial - imagenet", metric)
        ]
        assert len(gains) == 5
        assert min(gains) > 0


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_command_in_the_readme_is_understood() -> None:
    from sslpath.cli import build_parser

    text = README.replace("\\\n", " ")
    commands = re.findall(r"^sslpath (.+)$", text, re.M)
    assert len(commands) >= 10
    for command in commands:
        words = command.replace("$W", "--arch mobilenet_v2").split()
        build_parser().parse_args(words)


def test_the_fixed_packages_are_required() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for name in ("jupyter-book", "torch", "torchvision", "openslide-python", "matplotlib",
                 "umap-learn", "scikit-learn", "nbmake"):  # fmt: skip
        assert re.search(rf"^{name}==", text, re.M), name
    direct = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in direct:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"^{name}==", text, re.M), f"requirements.txt does not pin {name}"
