"""The command line: one line for a mistake, JSON that is only JSON, the same twice."""

import gzip
import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from cases import CASES
from conftest import CAPABILITIES

from simmim_ext import SimMIMError, images, load
from simmim_ext.bench import EXPERIMENTS
from simmim_ext.cli import COMMANDS


def simmim(*arguments, **environment):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "simmim_ext.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("dmeo",), "invalid choice: 'dmeo'"),
        (("demo", "--units", "2"), "argument --units: must be a fraction in (0, 1], got 2"),
        (("demo", "--units", "x"), "argument --units: must be a fraction in (0, 1], got x"),
        (("demo", "--seed", "-1"), "argument --seed: must be an integer of at least 0, got -1"),
        (("demo", "--seed=--1"), "argument --seed: must be an integer of at least 0, got --1"),
        (("demo", "--sede", "1"), "unrecognized arguments: --sede 1"),
        (("demo", "--data-dir", "/nowhere"), "--data-dir /nowhere holds no train-images"),
        (("demo", "--output", os.sep), "--output / is not an empty folder; name a new one"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, arguments, text):
    code, out, error = run(*arguments)
    assert code == 2
    assert out == ""
    assert text in error
    assert error.count("\n") == 1


def test_a_mistake_is_one_line_from_the_shell_too():
    done = simmim("demo", "--units", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_help_and_version_name_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    assert run("--version")[1].startswith("simmim_ext ")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"bench {name}" for name in EXPERIMENTS)])
def test_help_of_every_command(run, command):
    code, out, error = run(*command.split(), "--help")
    assert (code, error) == (0, "")
    assert out.startswith(f"usage: simmim {command} ")


def test_info_says_what_is_compiled_in(run):
    code, out, _ = run("info", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["versions"]["torch"] == torch.__version__
    built = found["build"]["cuda"] is not None
    for case in CASES:
        backends = ["cpu", "cuda"] if built else ["cpu"]
        assert found["kernels"][case.name] == backends
    assert found["devices"]["cpu capability"] in CAPABILITIES
    words = simmim("info", SIMMIM_CPU_CAPABILITY="portable")
    assert "portable" in words.stdout
    assert "histogram" in words.stdout


def test_demo_finds_a_read_only_folder_before_it_trains(run, fashion, monkeypatch):
    def train(*arguments, **keywords):
        pytest.fail("it trained first")

    monkeypatch.setattr("simmim_ext.demo.train_teacher", train)
    code, out, error = run("demo", "--data-dir", fashion, "--output", "/proc/nowhere/out")
    assert (code, out) == (2, "")
    assert "--output /proc/nowhere/out cannot be written to (" in error.splitlines()[-1]


@pytest.fixture
def no_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SYSTEM_FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(images, "CACHE_FOLDER", tmp_path / "nothing")


def write_idx(path, data):
    header = b"\0\0\x08" + bytes([data.dim()]) + struct.pack(f">{data.dim()}I", *data.shape)
    content = header + data.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path):
    """Four files as Fashion-MNIST has them, smaller: class c's images are bright in row c."""
    generator = torch.Generator().manual_seed(0)
    for part, samples in (("train", 2000), ("t10k", 500)):
        labels = torch.randint(10, (samples,), generator=generator)
        pixels = torch.randint(100, (samples, 28, 28), generator=generator)
        pixels[torch.arange(samples), labels] += 120
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


def test_images_are_found_in_the_folder_given(fashion):
    found = images.find_images(fashion)
    assert (found.name, found.source) == ("Fashion-MNIST", str(fashion))
    assert found.train.shape == (2000, 784)
    assert found.test.shape == (500, 784)
    assert found.train.dtype == torch.float32
    assert 0 <= found.train.min() < found.train.max() <= 1
    assert found.train_labels.dtype == torch.int64


@pytest.mark.usefixtures("no_fashion_mnist")
def test_digits_where_there_is_nothing_else():
    found = images.find_images()
    assert (found.name, found.source) == ("digits", "scikit-learn")
    assert len(found.train) + len(found.test) == 1797
    assert found.train.max() == 1


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("train-images-idx3-ubyte.gz", lambda data: data[:-20], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda data: b"text", "cannot be read: Not a gzipped file"),
        ("t10k-labels-idx1-ubyte", lambda data: data[:-1], "should hold 500 bytes .* holds 499"),
        ("t10k-labels-idx1-ubyte", lambda data: b"text", "is no idx file of bytes"),
        ("t10k-labels-idx1-ubyte", lambda data: None, "holds no t10k-labels-idx1-ubyte.gz"),
    ],
)
def test_damaged_images_are_named(fashion, name, damage, text):
    content = damage((fashion / name).read_bytes())
    (fashion / name).unlink()
    if content is not None:
        (fashion / name).write_bytes(content)
    with pytest.raises(SimMIMError, match=text):
        images.find_images(fashion)


def without_times(report):
    report = json.loads(json.dumps(report))
    for model in ("teacher", "student"):
        del report[model]["latency_ms"]
    for row in report["stages"] + report["training"]:
        del row["seconds"]
    return report


def test_demo_prints_json_alone_saves_everything_and_repeats_itself(run, fashion, tmp_path):
    arguments = ("demo", "--json", "--data-dir", fashion, "--seed", 3, "--epochs", 2)
    code, out, error = run(*arguments, "--output", tmp_path / "out0")
    assert code == 0, error
    report = json.loads(out)
    assert f"Fashion-MNIST from {fashion}" in error
    assert json.loads((tmp_path / "out0" / "report.json").read_text()) == report
    assert (tmp_path / "out0" / "information.png").read_bytes().startswith(b"\x89PNG")
    again = simmim(*arguments, "--output", tmp_path / "out1", OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    first, second = without_times(report), without_times(json.loads(again.stdout))
    assert first == second
    assert first["student"]["accuracy"] > 0.9
    assert first["layers"][0]["after"] == 50
    from simmim_ext.demo import build_model

    model = load(tmp_path / "out0", build_model(images.find_images(fashion)))
    assert model[0].out_features == 50


@pytest.mark.usefixtures("no_fashion_mnist")
@pytest.mark.slow
def test_demo_on_digits_keeps_accuracy_and_shows_a_table(run, tmp_path):
    code, out, error = run("demo", "--output", tmp_path / "out")
    assert code == 0, error
    assert "digits from scikit-learn" in error
    for word in ("accuracy", "agreement", "KL", "predictive information", "bytes", "latency"):
        assert word in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["student"]["accuracy"] > report["teacher"]["accuracy"] - 0.03
    assert sum(stage["seconds"] for stage in report["stages"]) < 60
