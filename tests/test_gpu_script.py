"""`make gpu` as far as it goes without a GPU: its arguments, its table, and what it says."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
SAMPLE: dict[str, Any] = {
    "device": {
        "name": "NVIDIA Sample 9000",
        "capability": "9.0",
        "multiprocessors": 132,
        "memory_bytes": 1 << 36,
        "torch": "2.11.0+cu130",
    },
    "missing": ["torch_pruning"],
    "stages": {
        "build": {"outcome": "passed", "detail": "for compute capability 9.0", "seconds": 91.2},
        "tests": {"outcome": "failed", "detail": "40 passed, 1 failed, 2 skipped", "seconds": 33.0},
    },
    "measured": {"copy_gb_per_s": 3011.4, "bf16_tflop_per_s": 798.2},
    "figures": {
        "entropy": {
            "ms": 1.2345,
            "rate": "2500 GB/s",
            "of_copy": 0.83,
            "times_as_fast": {"torch scatter_add": 123.4},
        },
        "pairs": {
            "ms": 80.0,
            "rate": "200e6 pairs/s",
            "of_tensor_peak": 0.04,
            "times_as_fast": {"torch int8": 31.0},
        },
        "worst": {"ms": None, "rate": "", "times_as_fast": {"cuBLAS": 0.97}},
    },
}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    return import_module("run"), import_module("table")


def test_table_of_a_recorded_run(scripts) -> None:
    text = scripts[1].table(SAMPLE)
    assert text.startswith("NVIDIA Sample 9000 (compute capability 9.0), torch 2.11.0+cu130")
    assert "| tests | failed | 40 passed, 1 failed, 2 skipped | 33 |" in text
    assert "what needs them skipped: ['torch_pruning']" in text
    assert "A copy there moves 3011 GB/s" in text
    assert "| entropy | 1.23 | 2500 GB/s | 83% |  | **1.2e+02** torch scatter_add |" in text
    assert "| pairs | 80 | 200e6 pairs/s |  | 4% | **31** torch int8 |" in text
    assert "| worst |  |  |  |  | **0.97** cuBLAS |" in text


def test_readme_says_what_has_run_on_a_gpu(scripts) -> None:
    text = (ROOT / "README.md").read_text()
    assert scripts[1].write_readme(text, scripts[1].kept()) == text
    assert (scripts[1].NEVER in text) == (not scripts[1].kept())


def test_results_replace_the_readmes_word(scripts, monkeypatch, tmp_path) -> None:
    """A second run of some stages keeps what the first found of the others."""
    run, table = scripts
    (tmp_path / "README.md").write_text("before <!-- gpu -->old<!-- end of gpu --> after")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    table.keep({**SAMPLE, "stages": {"build": {"outcome": "failed"}}})
    assert not list(tmp_path.glob("*.json"))
    table.keep(SAMPLE)
    again = {"outcome": "passed", "detail": "41 passed", "seconds": 30.0}
    table.keep({"device": SAMPLE["device"], "missing": [], "stages": {"tests": again}})
    kept = json.loads((tmp_path / "gpu-nvidia-sample-9000.json").read_text())
    assert kept["stages"] == {"build": SAMPLE["stages"]["build"], "tests": again}
    assert kept["figures"] == SAMPLE["figures"]
    readme = (tmp_path / "README.md").read_text()
    assert readme == f"before <!-- gpu -->\n{table.table(kept)}\n<!-- end of gpu --> after"


def test_stages_run_in_order_of_importance(scripts) -> None:
    options = scripts[0].parse(["--stages", "sanitizer,build", "--seconds", "60"])
    assert options.stages == ["build", "sanitizer"]
    assert options.seconds == 60
    assert scripts[0].parse([]).stages == list(scripts[0].STAGES)


@pytest.mark.parametrize("stages", ["build,everything", ","])
def test_unknown_stages_are_refused(scripts, stages, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        scripts[0].parse(["--stages", stages])
    assert left.value.code == 2
    assert "STAGES must" in capsys.readouterr().err


def test_run_stops_where_the_build_fails(scripts, monkeypatch, tmp_path, capsys) -> None:
    run, table = scripts
    calls = []

    def stage(name: str, outcome: str):
        def call(seconds: float, architecture: str) -> dict[str, str]:
            calls.append((name, architecture))
            return {"outcome": outcome, "detail": name}

        return call, 0.5

    monkeypatch.setattr(run, "OUT", tmp_path)
    monkeypatch.setattr(run, "find_device", lambda: SAMPLE["device"])
    monkeypatch.setattr(table, "keep", lambda results: None)
    for outcome, expected in (("failed", ["build"]), ("passed", ["build", "tests"])):
        calls.clear()
        monkeypatch.setattr(
            run, "STAGES", {"build": stage("build", outcome), "tests": stage("tests", "passed")}
        )
        assert run.main([]) == int(outcome == "failed")
        assert calls == [(name, "9.0") for name in expected]
        assert f"| build | {outcome} |" in capsys.readouterr().out
        assert "build" in json.loads((tmp_path / "results.json").read_text())["stages"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_leaves() -> None:
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    first = done.stderr.splitlines()[0]
    assert first.startswith(
        f"make gpu: torch {torch.__version__} finds no CUDA GPU on this machine"
    )
