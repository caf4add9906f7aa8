"""What `make gpu` does: from a checkout to figures, on a machine with a CUDA GPU and no network.

    python3 benchmarks/gpu/run.py [--stages build,tests,...] [--seconds 590]

Each stage is a process of its own with a share of the time, the most important first; what it
found is written to results/gpu/ at once, and at the end to benchmarks/results/gpu-<device>.json and
to the README. One table comes last. Exit status: 0 where every stage passed, 1 where one failed, 2
where there is no GPU or an argument is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import table

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "results" / "gpu"
OPTIONAL = ("torch_pruning", "hypothesis", "scipy", "sklearn")  # what some tests need
TOOLS = ("memcheck", "racecheck", "initcheck")

Found = dict[str, Any]


def run(
    log: str, command: list[str], seconds: float, folder: Path = ROOT, **environment: str
) -> tuple[int, str]:
    """The exit status and output of a command, which is also kept in OUT/log; 124: out of time."""
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if error.stdout else ""
        status = 124
    (OUT / log).write_text(output)
    return status, output


def outcome(status: int, detail: str) -> Found:
    """What a stage reports of a command."""
    name = {0: "passed", 124: "out of time"}.get(status, "failed")
    return {"outcome": name, "detail": detail}


def build(seconds: float, architecture: str) -> Found:
    """The extension, for this chip alone.

    From a copy without pyproject.toml, which a setuptools that was there before us may be too old
    to read.
    """
    folder = OUT / "build"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("csrc", "simmim_ext"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "setup.py", folder)
    status, output = run(
        "build.log",
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        seconds,
        folder,
        SIMMIM_CUDA="1",
        TORCH_CUDA_ARCH_LIST=architecture,
    )
    if status != 0:
        return outcome(status, (output.strip().splitlines() or ["no output"])[-1][:200])
    for made in (*folder.glob("simmim_ext/_C.*.so"), folder / "simmim_ext/_build.py"):
        shutil.copy(made, ROOT / "simmim_ext")
    return outcome(status, f"for compute capability {architecture}")


def tests(seconds: float, architecture: str) -> Found:
    """Every operator's cases on the device, graphs, streams and agreement with the CPU."""
    report = OUT / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "default",
        "-k",
        "cuda",
        f"--junitxml={report}",
    ]
    command += [
        f"tests/test_{name}.py" for name in ("ops", "cuda_device", "cuda_linear", "structured_cuda")
    ]
    status, output = run("tests.log", command, seconds)
    if not report.exists():
        return outcome(status, output.strip().splitlines()[-1][:200] if output.strip() else "")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    failed = counts["failures"] + counts["errors"]
    return outcome(status, f"{passed} passed, {failed} failed, {counts['skipped']} skipped")


def bench(seconds: float, architecture: str) -> Found:
    """The operators against torch, and against what this device's memory and tensor cores do."""
    figures = OUT / "figures.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/gpu/workloads.py", str(figures), str(seconds - 10)]
    status, _ = run("bench.log", command, seconds)
    found = json.loads(figures.read_text()) if figures.exists() else {}
    result = outcome(status, f"{len(found.get('figures', {}))} figures")
    return {**result, **found}


def sanitizer(seconds: float, architecture: str) -> Found:
    """compute-sanitizer over the operators' cases, in this package's kernels."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"outcome": "skipped", "detail": "compute-sanitizer is not installed"}
    found, worst = [], 0
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "9"]
        command += ["--kernel-name", "kernel_substring=simmim"]
        command += [sys.executable, "benchmarks/gpu/sanitized.py"]
        status, output = run(
            f"{tool}.log", command, seconds / len(TOOLS), PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        summary = [line for line in output.splitlines() if "SUMMARY" in line]
        said = summary[-1].split("SUMMARY:")[-1].strip() if summary else f"exit status {status}"
        found.append(f"{tool}: {said}")
        worst = max(worst, status)
    return outcome(worst, "; ".join(found))


# Most important first; with the share of the time that each may take.
STAGES: dict[str, tuple[Callable[[float, str], Found], float]] = {
    "build": (build, 0.40),
    "tests": (tests, 0.25),
    "bench": (bench, 0.30),
    "sanitizer": (sanitizer, 0.40),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; wrong ones end the program with status 2."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="of " + ", ".join(STAGES))
    parser.add_argument("--seconds", type=float, default=590.0, help="for all of it")
    options = parser.parse_args(arguments)
    options.stages = [name for name in options.stages.split(",") if name]
    for name in options.stages:
        if name not in STAGES:
            parser.error(f"STAGES must be some of {', '.join(STAGES)}, got {name!r}")
    if not options.stages:
        parser.error("STAGES must name at least one stage")
    options.stages.sort(key=list(STAGES).index)
    return options


def find_device() -> dict[str, Any]:
    """What GPU there is; without one, the program ends with status 2."""
    import torch

    if not torch.cuda.is_available():
        print(
            f"make gpu: torch {torch.__version__} finds no CUDA GPU on this machine; run it where "
            "there is one (make test proves the kernels without)",
            file=sys.stderr,
        )
        raise SystemExit(2)
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
    }


def main(arguments: list[str]) -> int:
    """Runs the stages; the exit status."""
    options = parse(arguments)
    device = find_device()
    end = time.monotonic() + options.seconds
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if missing:
        print(f"make gpu: not installed, what needs them is skipped: {', '.join(missing)}")
    results: dict[str, Any] = {"device": device, "missing": missing, "stages": {}}
    for name in options.stages:
        stage, share = STAGES[name]
        begin = time.monotonic()
        seconds = min(share * options.seconds, end - begin)
        if seconds < 20:
            found: Found = {"outcome": "skipped", "detail": "no time was left"}
        else:
            print(f"make gpu: {name}, at most {seconds:.0f} s", flush=True)
            found = stage(seconds, device["capability"])
        for key in ("measured", "figures"):
            if key in found:
                results[key] = found.pop(key)
        results["stages"][name] = {**found, "seconds": round(time.monotonic() - begin, 1)}
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        if name == "build" and found["outcome"] != "passed":
            break
    table.keep(results)
    print(table.table(results))
    return int(any(s["outcome"] in ("failed", "out of time") for s in results["stages"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
