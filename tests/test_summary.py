"""The README's tables and chart: drawn from the committed figures, which they match."""

import copy
import json
import xml.dom.minidom
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def summary():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return import_module("summary")


@pytest.fixture
def sample(summary):
    """The committed figures, with those of every benchmark that there is."""
    results = copy.deepcopy(summary.committed()[0])
    figures = results["figures"]
    for batch in (1, 16, 512):
        ratios = {"dense": 4.25, "dense, in a loop": 12.3}
        figures[f"large_layer[{batch}]"] = {"times_as_fast": ratios, "note": "element"}
    for batch in (1, 16, 128, 512):
        ratios = {"dense": 6.01, "dense bfloat16": 3.0, "packed bfloat16": 1.26}
        figures[f"bfloat16[0.1-{batch}]"] = {"times_as_fast": ratios, "note": "element"}
        ratios = {"one thread": 1.91, "dense's own scaling": 0.987}
        figures[f"two_threads[{batch}]"] = {"times_as_fast": ratios, "note": "element"}
    figures["mlp"] = {"times_as_fast": {"dense": 3.3}, "note": "element"}
    sweep = {b: {"0.0": 50.0, "0.5": float(b) + 1, "1.0": 1.0} for b in ("1", "16", "128", "512")}
    figures["slowest_cell"] = {
        "times_as_fast": {"dense": 0.97, "dense again": 0.99},
        "note": "500 x 784, 70% kept, batch 24: element",
        "sweep": sweep,
    }
    figures["new_benchmark[a-2]"] = {"times_as_fast": {"torch": 12.4}, "note": ""}
    return results


def test_readme_shows_the_committed_figures(summary) -> None:
    text = (ROOT / "README.md").read_text()
    every = summary.committed()
    assert summary.write_readme(text, every) == text
    assert every[0]["machine"]["measured"] == max(one["machine"]["measured"] for one in every)
    for results in every:
        assert summary._path(results, "md").read_text() == summary.page(results)
        assert f"benchmarks/results/{summary._path(results, 'md').name}" in text


def test_charts_show_the_committed_figures(summary) -> None:
    crossover = summary.crossover
    for results in summary.committed():
        chart = summary._path(results, "svg")
        assert crossover.drawn(chart) == crossover.curves(results)
        words = chart.read_text()
        assert crossover.device(results["machine"]) in words
        assert all(f"batch {batch}" in words for batch in crossover.BATCHES)


def test_every_benchmark_has_its_place(summary, sample) -> None:
    text = summary.tables(sample)
    for line in (
        "| any, 4096 x 4096 | 10% | 4.2 (12) | 4.2 (12) |  | 4.2 (12) |",
        "| any, bfloat16 | 10% | 6.0 | 6.0 | 6.0 | 6.0 |",
        "| the same, against torch's packed bfloat16 | 10% | 1.3 | 1.3 | 1.3 | 1.3 |",
        "| 784-500-10, 10% kept, batch 64, whole model | **3.3** dense |",
        "| the slowest layer: 500 x 784, 70% kept, batch 24: element | **0.97** dense |",
        "| new benchmark, a, 2 | **12** torch |  |",
    ):
        assert line in text.splitlines()
    assert "on two threads | **1.9** one thread, **0.99** dense's own scaling |" in text
    assert not any(f"** {hidden}{end}" in text for hidden in summary.HIDDEN for end in (",", " |"))


def test_every_figure_is_shown_once(summary, sample) -> None:
    text = summary.tables(sample)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "**" in line]
    _, used = summary._matrix(sample["figures"])
    assert len(rows) == len(sample["figures"]) - len(used)
    assert len(rows) == len(set(rows))


def test_chart_is_drawn_from_the_sweep(summary, sample, tmp_path) -> None:
    crossover, path = summary.crossover, tmp_path / "chart.svg"
    assert crossover.curves(sample)["16"] == [(0.5, 17.0), (1.0, 1.0)]
    crossover.draw(sample, path)
    first = path.read_bytes()
    crossover.draw(sample, path)
    assert path.read_bytes() == first
    assert crossover.drawn(path) == crossover.curves(sample)
    xml.dom.minidom.parse(str(path))


def test_condense_keeps_what_each_benchmark_says(summary) -> None:
    extra = {"times_as_fast": {"dense": 2.0}, "note": ""}
    run = {
        "machine_info": {"cpu": {"brand_raw": "Some CPU"}},
        "benchmarks": [{"name": "test_mlp", "extra_info": extra, "stats": {}}],
        "datetime": "2026-12-01T02:07:46.026425+00:00",
    }
    results = summary.condense(run)
    assert results["figures"] == {"mlp": extra}
    assert results["machine"]["cpu"] == "Some CPU"
    assert results["machine"]["measured"] == "2026-12-01"
    assert summary._path(results).name.startswith("cpu-some-cpu-")


def test_contests_say_who_is_ahead_and_who_is_behind(summary) -> None:
    contests = summary.contests

    def row(method, value, epochs=1):
        figures = dict.fromkeys(("kl", "accuracy", "agreement"), [value] * 3)
        return {
            "method": method,
            "widths": "shared",
            "reconstruct": True,
            "epochs": epochs,
        } | figures

    def standing(figure, lead):
        return {"column": "1 epoch", "figure": figure, "best_rival": "fpgm", "lead": lead,
                "noise": 0.02}  # fmt: skip

    results = {
        "seeds": [5, 6, 7],
        "rows": [row("simmim", 0.5), row("fpgm", 0.6), row("simmim", 0.7, epochs=3)],
        "standings": [standing("kl", 0.1), standing("accuracy", -0.1), standing("agreement", 0.1)],
    }
    text = contests.tables({"mlp": results})
    assert text.startswith("Means over seeds 5, 6 and 7,")
    assert "| 784-500-10, 10% of units | **50.0** / 40.0 fpgm |" in text
    assert "| 784-500-10, 10% of units | **0.500** / 0.600 fpgm |" in text
    assert "| 784-500-10, 10% of units | *50.0* / 60.0 fpgm |" in text
    results["standings"] = [standing("kl", 0.01), standing("accuracy", 0.01)]
    assert "| 0.500 / 0.510 fpgm |" in contests.tables({"mlp": results})
    later = {
        "seeds": [5, 6, 7],
        "rows": [row("simmim", 0.4, epochs=30), row("hessian", 0.6, epochs=30)],
        "standings": [{**standing("kl", 0.2), "column": "30 epochs", "best_rival": "hessian"}],
    }
    text = contests.tables({"mlp": contests._together(results, later)})
    assert "10% of units, after 30 epochs, they are hessian, at SimMIM's widths alone." in text
    assert "| 0.500 / 0.510 fpgm | **0.400** / 0.600 hessian |" in text
    for name in contests.committed():
        assert f"compression-{name}-" in " ".join(p.name for p in contests.RESULTS.iterdir())


def test_what_is_left_of_pretrained_networks(summary, tmp_path, monkeypatch) -> None:
    def row(method, widths, kl):
        return {"method": method, "widths": widths, "kl": kl, "left": [0.5]}

    rows = [row("simmim", "own", [0.1, 0.3]), row("fpgm", "shared", [0.4]), row("fpgm", "own", [1])]
    cases = {name: {"budget": {"flops": 0.5}, "rows": rows} for name in ("One", "Two")}
    path = tmp_path / "pretrained.json"
    path.write_text(json.dumps({"cases": cases}))
    monkeypatch.setattr(summary.contests, "PRETRAINED", path)
    lines = summary.contests.pretrained().splitlines()
    assert lines[0] == "| criterion | One, 50% of flops: KL | Two, 50% of flops: KL |"
    assert lines[2:] == [
        "| simmim | 0.200 | 0.200 |",
        "| fpgm | 0.400 | 0.400 |",
        "| fpgm, its own widths | 1.000 | 1.000 |",
    ]
