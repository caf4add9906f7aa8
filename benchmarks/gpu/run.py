"""What `make gpu` does: from a checkout to figures, on a machine with a CUDA GPU and no network.

    python3 benchmarks/gpu/run.py [--stages build,tests,...] [--seconds 540]

Each stage is a process of its own with a share of the time, the most important first; what it
found is written at once to results/gpu/, to benchmarks/results/gpu-<device>.json and to the README.
One table comes last. Exit status: 0 where every stage passed, 1 where one failed, 2
where there is no GPU or an argument is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import table

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "results" / "gpu"
OPTIONAL = ("torch_pruning", "hypothesis", "scipy", "sklearn")  # what some tests need
LEAST = 20  # seconds in which anything can be found
OUT_OF_TIME = 124
# The sanitizer's tools, the most important first: its options, and how many of a case's arguments.
OURS = ["--kernel-name", "kernel_substring=simmim"]
# Torch asks the driver for what it may lack; and a kernel that fails should not end the later ones.
LENIENT = ["--report-api-errors", "no", "--destroy-on-device-error", "kernel"]
TOOLS: dict[str, tuple[list[str], int]] = {
    "memcheck": ([*OURS, *LENIENT], 6),
    "racecheck": (OURS, 6),
    "initcheck": ([], 2),  # all kernels: what unchecked ones write counts as never written
}
REPORTS = 9  # the exit status of a tool that has any

Found = dict[str, Any]


def run(
    log: str, command: list[str], seconds: float, folder: Path = ROOT, **environment: str
) -> tuple[int, str]:
    """The exit status and output of a command, which is in OUT/log too; what failed is shown.

    Out of time, everything that the command started ends with it.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        open(OUT / log, "w") as target,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=target,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = OUT_OF_TIME
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    output = (OUT / log).read_text(errors="replace")
    if status != 0:
        print(*output.splitlines()[-30:], sep="\n", flush=True)
    return status, output


def outcome(detail: str, *statuses: int) -> Found:
    """What a stage reports of its commands."""
    failed = any(status not in (0, OUT_OF_TIME) for status in statuses)
    name = "failed" if failed else "out of time" if OUT_OF_TIME in statuses else "passed"
    return {"outcome": name, "detail": " ".join(detail.split())[:300]}


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]


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
        return outcome(last_line(output), status)
    for made in (*folder.glob("simmim_ext/_C.*.so"), folder / "simmim_ext/_build.py"):
        shutil.copy(made, ROOT / "simmim_ext")
    return outcome(f"for compute capability {architecture}", status)


def tests(seconds: float, architecture: str) -> Found:
    """Every operator's cases on the device, graphs, streams and agreement with the CPU.

    A process for each file, for after a CUDA error no other test passes in the same one.
    """
    end, counts, statuses, unfinished = time.monotonic() + seconds, Counter[str](), [], []
    for name in ("ops", "cuda_device", "cuda_linear", "structured_cuda"):
        command = [sys.executable, "-m", "pytest", "-v", "-W", "default", "-k", "cuda"]
        command.append(f"tests/test_{name}.py")
        status, output = run(f"tests-{name}.log", command, end - time.monotonic())
        statuses.append(status)
        counts.update(
            re.findall(r"^tests/.* (PASSED|FAILED|ERROR|SKIPPED)\b", output, re.MULTILINE)
        )
        if status not in (0, 1):  # of a run that came to its end
            unfinished.append(f"; {name} ended at {last_line(output)}")
    failed = counts["FAILED"] + counts["ERROR"]
    said = f"{counts['PASSED']} passed, {failed} failed, {counts['SKIPPED']} skipped"
    return outcome(said + "".join(unfinished), *statuses)


def bench(seconds: float, architecture: str) -> Found:
    """The operators against torch, and against what this device's memory and tensor cores do."""
    figures = OUT / "figures.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/gpu/workloads.py", str(figures)]
    end, found, statuses = time.monotonic() + seconds, {}, []
    # A workload that fails ends the process, and another goes on with the next.
    while not statuses or (found.get("left") and statuses[-1] != OUT_OF_TIME):
        status, _ = run(f"bench-{len(statuses)}.log", command, end - time.monotonic())
        statuses.append(status)
        found = json.loads(figures.read_text()) if figures.exists() else {}
    left = found.pop("left", [])
    measured = [figure for figure in found.get("figures", {}).values() if figure["times_as_fast"]]
    detail = f"{len(measured)} figures"
    if left:
        detail += f"; not run: {', '.join(left)}"
    return {**outcome(detail, *statuses), **found}


def verdict(tool: str, status: int, output: str) -> tuple[int, str]:
    """The status that a tool's run deserves, and its summary."""
    ours = re.search(r"^=+ .* at .*simmim::", output, re.MULTILINE)  # where an access was
    if status == OUT_OF_TIME:
        return (REPORTS, "reports, then out of time") if ours else (status, "out of time")
    summaries = [line.split("SUMMARY:")[1].strip() for line in output.splitlines()
                 if "SUMMARY:" in line]  # fmt: skip
    if not summaries:  # the program may have run unwatched
        return status or 1, f"no summary, exit status {status}"
    if tool == "initcheck" and status == REPORTS and not ours:
        return 0, f"{summaries[-1]}, none of them in this package's kernels"
    ended = "" if status in (0, REPORTS) else f", exit status {status}"
    return status, summaries[-1] + ended


def sanitizer(seconds: float, architecture: str) -> Found:
    """compute-sanitizer over the operators' cases, each tool with all the time that is left."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"outcome": "skipped", "detail": "compute-sanitizer is not installed"}
    end, found, statuses = time.monotonic() + seconds, [], []
    for tool, (options, cases) in TOOLS.items():
        status, said, left = OUT_OF_TIME, "no time", end - time.monotonic()
        if left >= LEAST:
            command = [program, "--tool", tool, "--error-exitcode", str(REPORTS), *options]
            command += ["--launch-timeout", "120"]  # seconds until torch is imported
            command += [sys.executable, "benchmarks/gpu/sanitized.py", str(cases)]
            log = f"{tool}.log"
            status, said = verdict(
                tool, *run(log, command, left, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            )
        found.append(f"{tool}: {said}")
        statuses.append(status)
    return outcome("; ".join(found), *statuses)


# Most important first; with the share of the time that each may take. The last has what is left.
STAGES: dict[str, tuple[Callable[[float, str], Found], float]] = {
    "build": (build, 0.40),
    "tests": (tests, 0.25),
    "bench": (bench, 0.40),
    "sanitizer": (sanitizer, 1.0),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; wrong ones end the program with status 2."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="of " + ", ".join(STAGES))
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
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
        seconds = end - begin
        if name != options.stages[-1]:
            seconds = min(share * options.seconds, seconds)
        if seconds < LEAST:
            found = outcome("no time", OUT_OF_TIME)
        else:
            print(f"make gpu: {name}, at most {seconds:.0f} s", flush=True)
            try:
                found = stage(seconds, device["capability"])
            except Exception as error:  # the other stages are worth having
                traceback.print_exc()
                found = outcome(f"{type(error).__name__}: {error}", 1)
        for key in ("measured", "figures"):
            if key in found:
                results[key] = found.pop(key)
        results["stages"][name] = {**found, "seconds": round(time.monotonic() - begin, 1)}
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        table.keep(results)
        if name == "build" and found["outcome"] != "passed":
            break
    print(table.table(results))
    return int(any(s["outcome"] in ("failed", "out of time") for s in results["stages"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
