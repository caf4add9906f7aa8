"""The public names: a contract that outside code is written against."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

import simmim_ext

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", simmim_ext.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(simmim_ext, name)
    assert value is not None
    assert getattr(simmim_ext, name) is value
    assert name in dir(simmim_ext)


def test_no_module_hides_a_public_function() -> None:
    for name in simmim_ext._PUBLIC:
        assert not (ROOT / "simmim_ext" / f"{name}.py").exists()


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'simmim_ext' has no attribute 'entropie'"):
        _ = simmim_ext.entropie


def test_type_checkers_see_the_same_names() -> None:
    stub = (ROOT / "simmim_ext/__init__.pyi").read_text()
    imported = re.findall(r"^from (\S+) import \w+ as (\w+)$", stub, re.MULTILINE)
    assert sorted(name for _, name in imported) == sorted(simmim_ext.__all__)
    for module, name in imported:
        if name in simmim_ext._PUBLIC:
            assert module == "." + simmim_ext._PUBLIC[name]
            assert hasattr(import_module(module, "simmim_ext"), name)


def test_readme_example_runs_as_printed(tmp_path, monkeypatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["small"](scope["images"][:2]).shape == (2, 10)
    assert scope["mi"].shape == (64,)
    assert (tmp_path / "small" / "manifest.json").exists()


def test_readme_shows_the_committed_demo() -> None:
    path = ROOT / "benchmarks/results/demo-fashion-mnist.json"
    report, text = json.loads(path.read_text()), (ROOT / "README.md").read_text()
    for side in ("teacher", "student"):
        assert f"{report[side]['accuracy']:.2%}" in text
        assert f"{report[side]['params']:,}" in text
        assert f"{report[side]['predictive_information']:.4f}" in text
        assert f"{report[side]['latency_ms']:.2f} ms" in text
    low, high = report["fidelity"]["kl_interval"]
    assert f"{report['fidelity']['kl']:.4f} (95%: {low:.4f} to {high:.4f})" in text
    low, high = report["fidelity"]["agreement_interval"]
    assert f"{report['fidelity']['agreement']:.2%} (95%: {low:.2%} to {high:.2%})" in text


def test_readme_shows_what_the_defaults_reached() -> None:
    results = json.loads((ROOT / "benchmarks/results/bars-fashion-mnist.json").read_text())
    lines = (ROOT / "README.md").read_text().splitlines()
    for name, case in results["cases"].items():
        accuracy, kl, agreement = (case[k]["mean"] for k in ("accuracy", "kl", "agreement"))
        original = sum(case["teacher_accuracy"]) / case["seeds"]
        row = f"| {original:.1%} | {accuracy:.1%} | {kl:.4f} | {agreement:.1%} |"
        assert any(line.endswith(row) for line in lines), name
        assert all(case[k]["reached"] for k in ("accuracy", "kl", "agreement")), name


@pytest.mark.parametrize(
    ("network", "epochs", "words"),
    [("lenet", 10, "LeNet's"), ("mlp", 10, "MLP's"), ("resnet-30-epochs", 30, "residual")],
)
def test_readme_shows_what_training_from_scratch_reached(network, epochs, words) -> None:
    path = ROOT / f"benchmarks/results/compression-{network}-fashion-mnist.json"
    reached: dict[str, float] = {}
    for row in json.loads(path.read_text())["rows"]:
        method = row["method"].split()[0]
        if row["epochs"] == epochs and (method == "scratch" or row["reconstruct"]):
            mean = sum(row["accuracy"]) / len(row["accuracy"])
            reached[method] = max(mean, reached.get(method, 0.0))
    text = " ".join((ROOT / "README.md").read_text().split())
    said = text[text.index("Networks of the same size trained from scratch") :].split(" ![")[0]
    (part,) = (part for part in re.split(", and |; ", said) if words in part)
    assert re.findall(r"\d+\.\d%", part) == [f"{reached[m]:.1%}" for m in ("scratch", "simmim")]
