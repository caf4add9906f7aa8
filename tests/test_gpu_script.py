"""`make gpu` as far as it goes without a GPU: its arguments, its table, and what it says."""

import json
import os
import subprocess
import sys
import time
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
    assert scripts[0].parse([]).seconds < 600


@pytest.mark.parametrize("stages", ["build,everything", ","])
def test_unknown_stages_are_refused(scripts, stages, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        scripts[0].parse(["--stages", stages])
    assert left.value.code == 2
    assert "STAGES must" in capsys.readouterr().err


@pytest.fixture
def fake(scripts, monkeypatch, tmp_path) -> ModuleType:
    """run, with a device, and all that it writes in a temporary folder."""
    run, table = scripts
    monkeypatch.setattr(run, "OUT", tmp_path)
    monkeypatch.setattr(run, "find_device", lambda: SAMPLE["device"])
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    (tmp_path / "README.md").write_text("<!-- gpu --><!-- end of gpu -->")
    return run


def test_run_stops_where_the_build_fails(fake, monkeypatch, tmp_path, capsys) -> None:
    calls = []

    def stage(name: str, outcome: str):
        def call(seconds: float, architecture: str) -> dict[str, str]:
            calls.append((name, architecture))
            return {"outcome": outcome, "detail": name}

        return call, 0.5

    for outcome, expected in (("failed", ["build"]), ("passed", ["build", "tests"])):
        calls.clear()
        monkeypatch.setattr(
            fake, "STAGES", {"build": stage("build", outcome), "tests": stage("tests", "passed")}
        )
        assert fake.main([]) == int(outcome == "failed")
        assert calls == [(name, "9.0") for name in expected]
        assert f"| build | {outcome} |" in capsys.readouterr().out
        assert "build" in json.loads((tmp_path / "results.json").read_text())["stages"]


def test_results_are_kept_after_each_stage(fake, monkeypatch, tmp_path, capsys) -> None:
    """Also where one raises; the last has the time that is left, and a stage needs some."""
    given = {}

    def raising(seconds: float, architecture: str) -> None:
        given["tests"] = seconds
        raise KeyError("what nobody\nthought of")

    def last(seconds: float, architecture: str) -> dict[str, str]:
        given["bench"] = seconds
        kept = json.loads((tmp_path / "gpu-nvidia-sample-9000.json").read_text())
        assert kept["stages"]["tests"]["outcome"] == "failed"
        assert kept["stages"]["tests"]["detail"] == r"KeyError: 'what nobody\nthought of'"
        assert "| tests | failed |" in (tmp_path / "README.md").read_text()
        return fake.outcome("figures", 0)

    monkeypatch.setattr(fake, "STAGES", {"tests": (raising, 0.25), "bench": (last, 0.25)})
    assert fake.main(["--seconds", "100"]) == 1
    assert given == {"tests": 25, "bench": pytest.approx(100, abs=5)}
    assert "| bench | passed | figures |" in capsys.readouterr().out
    assert fake.main(["--seconds", "1"]) == 1
    assert "| bench | out of time | no time |" in capsys.readouterr().out


def test_a_command_out_of_time_ends_with_its_children(fake, tmp_path, capsys) -> None:
    script = "sleep 600 & echo $! > child; echo half; wait"
    begin = time.monotonic()
    status, output = fake.run("a.log", ["sh", "-c", script], 1.0, tmp_path)
    assert time.monotonic() - begin < 60
    assert (status, output) == (fake.OUT_OF_TIME, "half\n")
    assert capsys.readouterr().out == "half\n"  # of what failed
    with pytest.raises(ProcessLookupError):  # an orphan is reaped by init
        for _ in range(600):
            os.kill(int((tmp_path / "child").read_text()), 0)
            time.sleep(0.1)


def test_a_failure_outweighs_lack_of_time(fake) -> None:
    for statuses, name in (((0, 0), "passed"), ((0, 124), "out of time"), ((124, 1), "failed")):
        assert fake.outcome("", *statuses)["outcome"] == name


def test_each_file_of_tests_is_run_by_itself(fake, monkeypatch) -> None:
    """And what ended counts, though a file be cut off."""

    def run(log: str, command: list[str], seconds: float) -> tuple[int, str]:
        file = command[-1]
        if "ops" in file:
            return fake.OUT_OF_TIME, f"{file}::one[a b] PASSED [ 5%]\n{file}::two "
        outcomes = ("PASSED", "SKIPPED (no stream)", "FAILED", "PASSED", "ERROR")
        lines = [f"{file}::{i} {word} [ 9%]" for i, word in enumerate(outcomes)]
        return 1, "\n".join([*lines, f"FAILED {file}::2 - PASSED", f"ERROR {file}::4", "3 failed"])

    monkeypatch.setattr(fake, "run", run)
    assert fake.tests(1, "9.0") == {
        "outcome": "failed",
        "detail": "7 passed, 6 failed, 3 skipped; ops ended at tests/test_ops.py::two",
    }


SUMMARY = "echo '========= ERROR SUMMARY: 1 error'; [ $2 != initcheck ] || exit 9"
THEIRS = "echo '========= at at::f()+0x1'; echo '=========  Host Frame: at::g in simmim::h';"
OURS = "echo '=========     at void simmim::kernel<int>()+0x10';"


@pytest.mark.parametrize(
    ("body", "outcome", "said"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", "passed", ["0 errors"] * 3),
        (THEIRS + SUMMARY, "passed",
         ["1 error", "1 error", "1 error, none of them in this package's kernels"]),
        (OURS + SUMMARY, "failed", ["1 error"] * 3),
        ("true", "failed", ["no summary, exit status 0"] * 3),
        (THEIRS + "sleep 60", "out of time", ["out of time", "no time", "no time"]),
        (OURS + "sleep 60", "failed", ["reports, then out of time", "no time", "no time"]),
    ],
)  # fmt: skip
def test_sanitizer(body, outcome, said, fake, monkeypatch, tmp_path) -> None:
    """What was not run is said; initcheck is judged by this package's kernels alone."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(fake, "LEAST", 1)
    found = fake.sanitizer(2 if "no time" in said else 60, "9.0")
    tools = ("memcheck", "racecheck", "initcheck")
    expected = "; ".join(f"{tool}: {words}" for tool, words in zip(tools, said, strict=True))
    assert found == {"outcome": outcome, "detail": expected}
    for call in (tmp_path / "calls").read_text().splitlines():
        filtered = "--kernel-name kernel_substring=simmim" in call
        assert filtered == ("initcheck" not in call)
        assert call.endswith("sanitized.py 6" if filtered else "sanitized.py 2")


WORKLOADS = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {scripts!r})
import torch, workloads

def good(measures, name):
    yield name, {{"ms": 1.0, "rate": "", "times_as_fast": {{"torch": measures["copy"]}}}}

def bad(measures):
    yield "half", {{"ms": 2.0, "rate": "", "times_as_fast": {{"torch": 1.0}}}}
    {wrong}

workloads.measured = lambda: {{"copy": 3.0}}
torch.cuda.empty_cache = lambda: None
workloads.WORKLOADS = {{
    "a": partial(good, name="first"), "worst": bad, "b": partial(good, name="last")
}}
workloads.main(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("assert False, 'not\\n close'", "failed: AssertionError: not close"),
        ("import os; os.abort()", "did not end"),
    ],
)
def test_one_workload_does_not_cost_the_others(wrong, said, fake, monkeypatch, tmp_path) -> None:
    scripts = str(ROOT / "benchmarks" / "gpu")
    (tmp_path / "benchmarks" / "gpu").mkdir(parents=True)
    script = tmp_path / "benchmarks" / "gpu" / "workloads.py"
    script.write_text(WORKLOADS.format(scripts=scripts, wrong=wrong))
    run = fake.run
    monkeypatch.setattr(fake, "run", lambda *arguments: run(*arguments, tmp_path))
    found = fake.bench(300, "9.0")
    assert (found["outcome"], found["detail"]) == ("failed", "3 figures")
    assert found["measured"] == {"copy": 3.0}
    assert [found["figures"][name]["ms"] for name in ("first", "half", "last")] == [1.0, 2.0, 1.0]
    assert found["figures"]["worst"] == {"ms": None, "rate": said, "times_as_fast": {}}


def test_figures_are_kept_when_time_is_out(fake, monkeypatch, tmp_path) -> None:
    written = {"measured": {}, "figures": SAMPLE["figures"], "left": ["pairs", "labels"]}

    def run(*arguments: Any) -> tuple[int, str]:
        (tmp_path / "figures.json").write_text(json.dumps(written))
        return fake.OUT_OF_TIME, ""

    monkeypatch.setattr(fake, "run", run)
    found = fake.bench(60, "9.0")
    assert found["outcome"] == "out of time"
    assert found["detail"] == "3 figures; not run: pairs, labels"
    assert found["figures"] == SAMPLE["figures"]


def test_workloads_that_cannot_begin_are_tried_once(fake, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(fake, "run", lambda *arguments: calls.append(arguments) or (1, ""))
    assert fake.bench(60, "9.0") == {"outcome": "failed", "detail": "0 figures"}
    assert len(calls) == 1


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
