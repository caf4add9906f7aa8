"""The experiments of ``simmim bench``, small: what they compare, and that they go on."""

import json

import pytest
import torch

from benchmarks.compression import bars, contest, cost, networks, pretrained, tournament, weights
from simmim_ext import CompressConfig, distill, images
from simmim_ext.cli import main
from simmim_ext.data import Shuffled


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SYSTEM_FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(images, "CACHE_FOLDER", tmp_path / "nothing")
    recipe = networks.Recipe(
        lambda pixels, classes: networks.mlp(pixels, classes, hidden=40),
        False,
        {"units": 0.2},
        8,
        0.05,
    )
    monkeypatch.setitem(networks.RECIPES, "mlp", recipe)


@pytest.mark.usefixtures("digits")
@pytest.mark.filterwarnings("ignore:score. ")
def test_compression_compares_goes_on_and_prints_json_alone(tmp_path, capsys, monkeypatch):
    command = ["bench", "compression", "--json", "--seeds", "1", "--epochs", "1"]
    command += ["--methods", "simmim,random,scratch on labels", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    out, error = capsys.readouterr()
    results = json.loads(out)
    assert "seed 0, 1 of 5: simmim" in error
    assert (tmp_path / "out" / "compression-mlp.png").read_bytes().startswith(b"\x89PNG")
    rows = {(r["method"], r["reconstruct"], r["epochs"]): r for r in results["rows"]}
    assert len(rows) == 4 + 4 + 1
    assert {row["params"] for row in rows.values()} == {64 * 8 + 8 + 8 * 10 + 10}
    assert rows["simmim", True, 0]["kl"][0] < rows["random", True, 0]["kl"][0]
    assert rows["simmim", True, 0]["kl"][0] < rows["simmim", False, 0]["kl"][0]
    assert {row["lr"] for row in rows.values() if row["epochs"]} <= set(contest.LEARNING_RATES)
    # A second call reads what the first one kept, and another seed is all that is run.
    kept = sorted((tmp_path / "out" / "cells").iterdir())
    ran = []
    run = contest.Contest.run
    monkeypatch.setattr(
        contest.Contest, "run", lambda self, cell: ran.append(cell) or run(self, cell)
    )
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == results
    assert ran == []
    kept[0].unlink()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == results
    assert len(ran) == 1


@pytest.mark.usefixtures("digits")
def test_ways_to_zero_weights_are_compared_at_as_many_of_them(tmp_path, capsys):
    command = ["bench", "compression", "--json", "--seeds", "1", "--epochs", "1"]
    command += ["--zeros", "0.9", "--output", str(tmp_path)]
    assert main(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((tmp_path / "compression-mlp-90%-zeros.json").read_text())
    assert (tmp_path / "compression-mlp-90%-zeros.png").exists()
    rows = {(r["method"], r["widths"], r["reconstruct"], r["epochs"]): r for r in results["rows"]}
    assert len(rows) == 5 * 2 * 2
    kept = int((64 * 40 + 40 * 10) * 0.1) + 40 + 10
    assert {row["params"] for row in rows.values()} == {kept}
    for method in ("magnitude", "lamp", "wanda"):
        ours, theirs, raw = (
            rows[name, "shared", refit, 0]["kl"][0]
            for name, refit in (("simmim", True), (method, True), (method, False))
        )
        assert ours < theirs < raw


def test_rankings_of_weights_are_those_of_the_papers():
    weight = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    scores = weights.lamp(weight)
    expected = torch.tensor([[9 / 9, 1 / 14], [0 / 14, 4 / 13]], dtype=torch.float64)
    torch.testing.assert_close(scores, expected)
    counts = weights.evenly(torch.zeros(7, 10), 0.75)
    assert counts.sum() == 17
    assert set(counts.tolist()) == {2, 3}
    mask = weights.of_each_row(torch.tensor([[1.0, 3, 2], [5, 4, 4]]), torch.tensor([1, 2]))
    assert mask.tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.usefixtures("digits")
def test_the_kept_logits_teach_what_the_teacher_does(tmp_path):
    one = contest.Contest("mlp", 0, tmp_path)
    cell = contest.Cell("mlp", 0, "simmim", "shared", True, 2, 1e-3)
    torch.manual_seed(0)
    student = networks.build(networks.RECIPES["mlp"], one._data)
    found = one._trained(student, cell)
    images = Shuffled([one._data.train[0]], contest.BATCH)
    config = CompressConfig(epochs=2, lr=1e-3, seed=0)
    expected, _ = distill(student, one.teacher, images, config=config, progress=False)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_at_shared_widths_no_criterion_has_its_own():
    found = list(
        contest.contestants("lenet", ("simmim", "fpgm", "scratch on labels"), own_widths=False)
    )
    refits = [(name, "shared", refit) for name in ("simmim", "fpgm") for refit in (True, False)]
    assert found == [*refits, ("scratch on labels", "shared", False)]


def test_standings_name_the_best_rival_and_the_noise():
    def row(method, values, refit=True, epochs=0):
        figures = {"accuracy": values, "kl": [1 - v for v in values], "agreement": values}
        return {
            "method": method,
            "widths": "shared",
            "reconstruct": refit,
            "epochs": epochs,
        } | figures

    found = tournament.standings(
        [
            row("simmim", [0.9, 0.92]),
            row("fpgm", [0.8, 0.8]),
            row("random", [0.95, 0.95]),
            row("simmim", [0.5, 0.5], refit=False),
            row("fpgm", [0.4, 0.4], refit=False),
        ]
    )
    accuracy = {entry["column"]: entry for entry in found if entry["figure"] == "accuracy"}
    assert accuracy["reconstructed"]["place"] == 2
    assert accuracy["reconstructed"]["best_rival"] == "random"
    assert accuracy["reconstructed"]["lead"] == pytest.approx(-0.04)
    assert accuracy["reconstructed"]["noise"] == pytest.approx(2 * 0.01)
    assert accuracy["raw"]["place"] == 1
    assert accuracy["raw"]["best_rival"] == "fpgm, no refit"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--methods", "simmim,l3"), "--methods must hold simmim and others of simmim,"),
        (("--methods", "random"), "--methods must hold simmim and others of simmim,"),
        (("--epochs", "1,x"), "argument --epochs: must be an integer of at least 1, got x"),
        (("--epoch", "1"), "unrecognized arguments: --epoch 1"),
        (("--zeros", "0.9", "--methods", "simmim,fpgm"), "simmim and others of simmim, magnitude,"),
        (("--model", "vgg"), "argument --model: invalid choice: 'vgg'"),
    ],
)
def test_a_mistake_is_one_line(options, text, capsys):
    try:
        code = main(["bench", "compression", *options])
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert text in error
    assert error.count("\n") == 1


def test_without_the_source_tree_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(
        __import__("simmim_ext.bench").bench.EXPERIMENTS, "compression", ("", "benchmarks_gone.x")
    )
    assert main(["bench", "compression"]) == 2
    assert "clone the repository and pip install -e . there" in capsys.readouterr().err


@pytest.mark.usefixtures("digits")
@pytest.mark.filterwarnings("ignore:score. ")
def test_bars_are_judged_on_the_means(tmp_path, capsys, monkeypatch):
    case = bars.Case("mlp", {"units": 0.5}, 1, 0.9, 0.0, 1.1)
    monkeypatch.setitem(bars.CASES, "small", case)
    command = ["bench", "bars", "--cases", "small", "--seeds", "2", "--output", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["cases"]["small"]
    assert entry["layers"] == [[20], [20]]
    assert len(set(entry["kl"]["values"])) == 2
    reached = [entry[name]["reached"] for name in ("accuracy", "kl", "agreement")]
    assert reached == [True, False, False]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.count("(missed)") == 2
    assert main(["bench", "bars", "--cases", "large"]) == 2
    assert "--cases must be of mlp-25%" in capsys.readouterr().err


def test_costs_are_measured_and_answers_checked(tmp_path, capsys, monkeypatch):
    def small():
        torch.manual_seed(0)
        convolutions = (torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4))
        return torch.nn.Sequential(*convolutions, torch.nn.ReLU(), *pooled).eval()

    monkeypatch.setattr(cost, "efficientnet", small)
    command = ["bench", "cost", "--images", "32", "--size", "32", "--units", "24"]
    assert main([*command, "--targets", "6", "--output", str(tmp_path)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((tmp_path / "cost.json").read_text())
    assert results["select"]["units"] == 24
    assert results["compress 784-500-10"]["cpu_seconds"] > 0
    assert results["score EfficientNet-Lite0"]["cpu_seconds"] > 0
    assert results["measure EfficientNet-Lite0"]["layers"] == 2
    wrong = cost.select_units([], 24, count=24)
    monkeypatch.setattr(cost, "select_units", lambda layers, units: wrong)
    assert main([*command, "--targets", "6", "--output", str(tmp_path)]) == 2
    assert "the time of a wrong answer is none" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:score. ")
def test_pretrained_networks_keep_as_much_by_each_criterion(tmp_path, capsys, monkeypatch):
    def small(seed):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(8, 30), torch.nn.ReLU(), torch.nn.Linear(30, 30), torch.nn.ReLU()]
        x = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(seed))
        model = torch.nn.Sequential(*layers, torch.nn.Linear(30, 4))
        return model, list(x[0].split(50)), list(x[1].split(50))

    case = pretrained.Case(small, {"params": 0.5}, ("agreement", "kl"))
    monkeypatch.setattr(pretrained, "CASES", {"small": case})
    command = ["bench", "pretrained", "--cases", "small", "--seeds", "2", "--output", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["seeds"] == [0, 1]
    rows = {(r["method"], r["widths"]): r for r in results["cases"]["small"]["rows"]}
    assert len(rows) == 1 + 2 * len(pretrained.RIVALS)
    ours = rows["simmim", "own"]
    assert all(0.4 < left <= 0.5 for row in rows.values() for left in row["left"])
    assert rows["random", "shared"]["left"] == ours["left"]
    assert sum(ours["kl"]) < sum(rows["random", "shared"]["kl"])
    assert main(command) == 0
    assert "random, own widths" in capsys.readouterr().out
    assert main(["bench", "pretrained", "--cases", "large"]) == 2
    assert "--cases must be of small, got large" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", ["compression", "bars"])
def test_an_output_that_is_no_folder_is_named(experiment, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", experiment, "--output", str(tmp_path / "file")]) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err
