"""The README's tables are those of recorded results, number by number."""

import re
import tomllib
from pathlib import Path

from sslpath.results import markdown_table, read_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS = ["tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median"]


def table(name: str) -> str:
    found = re.search(rf"<!-- {name} table -->\n(.*?)\n<!-- end -->", README, re.S)
    assert found, f"the README has no table {name}"
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


def recorded(method: str, metric: str) -> list[dict[str, object]]:
    rows = read_results(ROOT / "data/results/experiments.json")
    key = (method, metric, "IDC, five folds")
    return [r for r in rows if (r["method"], r["metric"], r["data"]) == key]


def test_every_number_of_the_experiments_is_the_recorded_one() -> None:
    import numpy as np

    for name in ("experiments", "gains"):
        lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table(name).splitlines()]
        assert len(lines) > 4
        for method, *cells in lines[2:]:
            for metric, cell in zip(lines[0][1:], cells, strict=True):
                rows = recorded(method, metric)
                mean = {k: np.mean([r[k] for r in rows]) for k in ("value", "low", "high")}
                sd = np.std([r["value"] for r in rows], ddof=1)
                whole = f"{mean['value']:.3f} ± {sd:.3f}"
                gain = f"{mean['value']:+.3f} [{mean['low']:+.3f}, {mean['high']:+.3f}]"
                assert cell == (whole if name == "experiments" else gain), (method, metric)


def test_near_pairs_beat_imagenet_and_generic_self_supervision_on_real_patients() -> None:
    for rival in ("imagenet", "SimCLR", "instance discrimination"):
        for metric in ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global"):
            rows = recorded(f"spatial - {rival}", metric)
            assert len(rows) >= 2
            assert min(r["low"] for r in rows) > 0, (rival, metric)


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
