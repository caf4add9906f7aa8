"""simmim tune: the speed table that kernels are chosen from, on disk and in force."""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CAPABILITIES
from torch import nn

from simmim_ext import cache, cli
from simmim_ext.nn import SparseLinear
from simmim_ext.nn.choice import MARGIN, choose
from simmim_ext.nn.pattern import recognise
from simmim_ext.nn.speed_table import DENSE_BFLOAT16, KERNELS, ROUNDING, SpeedTable, parse
from simmim_ext.nn.tuned import DEFAULTS, cpu_model, in_force, tuned_path
from simmim_ext.nn.tuning import measure_speeds
from simmim_ext.ops._library import cpu_capability

THREADS = 1


@pytest.fixture(autouse=True)
def own_cache(no_tuned_speeds, tmp_path, monkeypatch, threads):
    """No test sees the tables of the person who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("simmim_ext.nn.tuned.cache_folder", cache.cache_folder)
    threads(THREADS)


def simmim(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "simmim_ext.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS), **environment},
    )


def path() -> Path:
    return tuned_path(cpu_capability(), THREADS)


def table(**speeds: float) -> SpeedTable:
    """A table of this machine, of one speed for each kernel: 0.5 unless given."""
    default = in_force(cpu_capability()).table
    names = (*KERNELS[cpu_capability()], DENSE_BFLOAT16)
    return replace(
        default,
        package=simmim_version(),
        cpu=cpu_model(),
        capability=cpu_capability(),
        threads=THREADS,
        sizes=(128,),
        batches=(1, 16),
        densities=(0.5,),
        speeds={name: (((speeds.get(name, 0.5),),) * 2,) for name in names},
    )


def simmim_version() -> str:
    from simmim_ext import __version__

    return __version__


def plant(text: str) -> None:
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_text(text)


def make_layer(density: float = 0.5, dtype: torch.dtype | None = None) -> SparseLinear:
    torch.manual_seed(0)
    mask = torch.rand(256, 256) < density
    return SparseLinear.from_linear(nn.Linear(256, 256), mask, dtype=dtype)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_default_tables_are_whole(name) -> None:
    text = (DEFAULTS / f"{name}.json").read_text()
    found = parse(text)
    assert found.capability == name
    assert found.threads == 1
    assert found.text() == text
    for kernel in KERNELS[name]:
        assert found.speed(kernel, 1024, 0, 0.02) > found.speed(kernel, 1024, 0, 0.9) > 0


def test_a_table_survives_its_text() -> None:
    assert parse(table(element=3.25).text()) == table(element=3.25)


def test_speeds_between_and_beyond_the_measured() -> None:
    found = replace(
        table(), sizes=(100, 400), batches=(1,), densities=(0.1, 0.4),
        speeds={"element": (((8.0, 2.0),), ((32.0, 8.0),))},
    )  # fmt: skip
    expected = {
        (100, 0.1): 8, (100, 0.4): 2, (400, 0.1): 32, (400, 0.4): 8,
        (100, 0.2): 4, (200, 0.1): 16, (200, 0.2): 8,  # halfway between logarithms
        (50, 0.1): 8, (900, 0.1): 32, (100, 0.05): 8, (100, 0.0): 8, (100, 0.8): 1,  # beyond
    }  # fmt: skip
    for (size, density), speed in expected.items():
        assert found.speed("element", size, 0, density) == pytest.approx(speed)


def test_the_choice_follows_the_table() -> None:
    kernels = [name for name in KERNELS[cpu_capability()] if name not in ("block", "compact")]
    for kernel in kernels:
        plant(table(**{kernel: 7.5}).text())
        choice = make_layer(dtype=torch.bfloat16 if kernel in ROUNDING else None).choice
        assert choice.kernels == ((None, kernel),)
        assert dict(choice.speeds) == pytest.approx({1: 7.5, 16: 7.5})
        assert choice.reason == "fastest in this machine's speed table"
    plant(table(element=MARGIN * 0.99).text())
    choice = make_layer().choice
    assert (choice.kernels, choice.speeds) == (((None, "dense"),), ((1, 1.0), (16, 1.0)))
    assert choice.reason == "nothing is faster in this machine's speed table"
    path().unlink()
    assert "the default speed table" in make_layer().choice.reason


def test_each_batch_has_its_kernel() -> None:
    both = table()
    first, second = KERNELS[cpu_capability()][:2]
    speeds = {**both.speeds, first: (((2.0,), (5.0,)),), second: (((3.0,), (1.0,)),)}
    plant(replace(both, speeds=speeds).text())
    layer = make_layer()
    assert layer.choice.kernels == ((1, second), (None, first))
    assert layer.choice.kernels_text() == f"{second}, {first} from batch 2"
    x = torch.randn(20, 256)
    expected = layer.to_dense()(x)
    for batch in (1, 2, 16, 20):
        torch.testing.assert_close(layer(x[:batch]), expected[:batch], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gain", "kernels"), [(1.05, 1), (1.2, 2)])
def test_a_kernel_that_gains_little_is_not_packed(gain, kernels) -> None:
    first, second = KERNELS[cpu_capability()][:2]
    speeds = {**table().speeds, first: (((2.0,), (5.0,)),), second: (((2.0 * gain,), (1.0,)),)}
    plant(replace(table(), speeds=speeds).text())
    assert len(make_layer().choice.kernels) == kernels
    assert make_layer().choice.kernel(16) == first


def test_between_two_batches_a_kernel_is_as_slow_as_at_the_slower() -> None:
    first, second = KERNELS[cpu_capability()][:2]
    speeds = {**table().speeds, first: (((0.5,), (5.0,)),), second: (((3.0,), (1.0,)),)}
    plant(replace(table(), speeds=speeds).text())
    assert make_layer().choice.kernels == ((1, second), (15, "dense"), (None, first))


@pytest.mark.parametrize(
    ("mask", "kernel"), [("columns", "compact"), ("block", "block"), ("element", "dense")]
)
def test_kernels_for_patterns_serve_those_alone(mask, kernel) -> None:
    plant(table(compact=3.0, block=2.0).text())
    masks = {
        "columns": (torch.arange(256) % 2 == 0).expand(256, 256),
        "block": torch.eye(16, 256).repeat_interleave(16, 0) > 0,
        "element": torch.eye(256) > 0,
    }
    assert choose(recognise(masks[mask]), (256, 256), cpu_capability(), torch.float32).kernels == (
        (None, kernel),
    )


def test_half_precision_is_held_against_its_own_dense_product() -> None:
    pattern = recognise(torch.rand(256, 256) < 0.5)
    plant(table(element=3.0, **{DENSE_BFLOAT16: 2.9}).text())
    single, half = (
        choose(pattern, (256, 256), cpu_capability(), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (single.kernel(1), half.kernel(1)) == ("element", "dense")
    assert dict(half.speeds) == pytest.approx({1: 2.9, 16: 2.9})
    wide = choose(pattern, (256, 256), cpu_capability(), torch.float64)
    assert (wide.kernel(1), wide.speeds) == ("dense", ())


BROKEN = {
    "empty": ("", "is not JSON"),
    "half": (lambda text: text[: len(text) // 2], "is not JSON"),
    "binary": (b"\xff\xfe\x00", "is not JSON"),
    "deep": ("[" * 100_000, "is not JSON"),
    "foreign": ('{"a": 1}', "is no speed table of simmim_ext"),
    "list": ("[1]", "is no speed table of simmim_ext"),
    "an entry too few": (lambda text: text.replace('"cpu"', '"gpu"'), "should hold package,"),
    "nan": (lambda text: text.replace("7.5]", "NaN]"), "must have speeds of element that is"),
    "huge": (lambda text: text.replace("7.5]", "1" + "0" * 400 + "]"), "must have speeds of el"),
    "negative": (lambda text: text.replace("[0.5]", "[-0.5]"), "must have densities that is"),
    "descending": (lambda text: text.replace("[1, 16]", "[16, 1]"), "must have batches that is"),
    "no kernels": (lambda text: text.replace('"element"', '"elements"'), "must have speeds that"),
    "shape": (lambda text: text.replace("[128]", "[128, 256]"), "element that is [2, 2, 1] numb"),
    "capability": (lambda text: text.replace(f'"{cpu_capability()}"', '"sse"'), "is one of"),
    "version": (lambda text: text.replace(f'"{simmim_version()}"', '"0.0.1"'),
                f"was measured with package 0.0.1, and this is {simmim_version()}"),
    "cpu": (lambda text: text.replace('"cpu": "', '"cpu": "Not '), "was measured with cpu Not "),
    "threads": (lambda text: text.replace('"threads": 1', '"threads": 3'),
                "was measured with threads 3, and this is 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_broken_or_foreign_is_named_and_not_used(name) -> None:
    damage, text = BROKEN[name]
    good = table(element=7.5).text()
    content = damage(good) if callable(damage) else damage
    assert content != good
    plant("")
    path().write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match=re.escape(text)) as caught:
        choice = make_layer().choice
    (message,) = {str(one.message) for one in caught}
    assert message.startswith(str(path()))
    assert "run `simmim tune` to measure a new one, or `simmim tune --reset`" in message
    assert "the default speed table" in choice.reason
    make_layer()  # says it once


def test_a_table_that_is_a_folder_is_named() -> None:
    path().mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"cannot be read \(Is a directory\)"):
        make_layer()


def test_a_changed_file_is_read_again() -> None:
    plant(table(element=7.5).text())
    assert make_layer().choice.speeds[0][1] == pytest.approx(7.5)
    plant(table(element=8.5).text())
    os.utime(path(), ns=(1, 1))
    assert make_layer().choice.speeds[0][1] == pytest.approx(8.5)


def test_measured_speeds_are_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []

    def timed(dense, layer, seconds):
        called.append(dense() - layer())
        return 3.0, 1.5

    monkeypatch.setattr("simmim_ext.nn.tuning._in_turn", timed)
    shares = []
    found = measure_speeds(
        sizes=(256,), batches=(1, 40), densities=(0.02, 0.9), seconds=0.0, runs=2,
        progress=shares.append,
    )  # fmt: skip
    assert sum(shares) == pytest.approx(1)
    assert parse(found.text()) == found
    assert (found.cpu, found.capability) == (cpu_model(), cpu_capability())
    for kernel in KERNELS[cpu_capability()]:
        assert found.speeds[kernel] == (((2.0, 2.0), (2.0, 2.0)),)
    assert all(difference.abs().max() < 0.5 for difference in called)


def test_dense_times_that_something_disturbed_are_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(
        "simmim_ext.nn.tuning._in_turn",
        lambda dense, layer, seconds: (300.0 if next(calls) == 1 else 3.0, 1.5),
    )
    found = measure_speeds(sizes=(256,), batches=(1, 40), densities=(0.1,), seconds=0.0, runs=1)
    assert all(row == (((2.0,), (2.0,)),) for row in found.speeds.values())


def test_speeds_are_timed() -> None:
    found = measure_speeds(sizes=(256,), batches=(1,), densities=(0.1,), seconds=0.0, runs=1)
    assert all(row[0][0][0] > 0 for row in found.speeds.values())


def test_tune_keeps_a_table_that_layers_then_use() -> None:
    done = simmim("tune", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    assert f"Wrote {path()} after " in done.stderr
    assert "about 10 seconds" in done.stderr
    assert os.listdir(path().parent) == [path().name]
    assert path().read_text() == done.stdout
    assert in_force(cpu_capability(), THREADS) == (parse(done.stdout), path())
    assert "this machine's speed table" in make_layer().choice.reason
    assert "default" in make_in_force(threads=THREADS + 1)


def make_in_force(threads: int) -> str:
    return str(in_force(cpu_capability(), threads))


@pytest.fixture
def run(capsys):
    """The command in this process: (standard output, standard error) of a success."""

    def call(*arguments):
        assert cli.main(arguments) == 0
        return tuple(capsys.readouterr())

    return call


def test_show_info_and_reset(run) -> None:
    assert "Speed table: the default, measured on" in run("tune", "--show")[0]
    out, error = run("tune", "--reset")
    assert (out, f"There is no {path()}" in error) == ("", True)
    plant(table(element=7.5).text())
    out, error = run("tune", "--show")
    assert f"Speed table: {path()}, measured on {cpu_model()}" in out
    assert "element 7.5" in out
    assert json.loads(run("tune", "--show", "--json")[0])["batches"] == [1, 16]
    found = json.loads(run("info", "--json")[0])
    assert found["sparse layers"]["speed table"].startswith(str(path()))
    assert f"Removed {path()}" in run("tune", "--reset")[1]
    assert not path().exists()
    found = json.loads(run("info", "--json")[0])
    assert found["sparse layers"]["speed table"].startswith("the default")


def test_a_broken_table_breaks_no_command(run) -> None:
    plant("{")
    done = simmim("info")
    assert done.returncode == 0
    assert done.stderr.startswith(f"simmim: warning: {path()} is not JSON (")
    assert "the default, measured on" in done.stdout
    assert run("tune", "--reset")[0] == ""
    assert not path().exists()


def test_tune_finds_a_read_only_folder_before_it_measures(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "simmim_ext.nn.tuning.measure_speeds", lambda **k: pytest.fail("it measured first")
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert cli.main(["tune"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot write to {path().parent}: " in error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--output", "."], "--output . is a folder; name a file in it"),
        (["--show", "--output", "table.json"], "leave it out of --show and --reset"),
        (["--reset", "--output", "table.json"], "leave it out of --show and --reset"),
        (
            ["--threads", "99999"],
            "--threads: must be an integer of at least 1 and at most 2, got 9",
        ),
    ],
)
def test_tune_finds_mistakes_before_it_measures(arguments, text, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "simmim_ext.nn.tuning.measure_speeds", lambda **k: pytest.fail("it measured first")
    )
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    plant(table(element=7.5).text())
    try:
        code = cli.main(["tune", *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error
    assert path().exists()


def test_tune_writes_where_it_is_told_and_restores_threads(monkeypatch, tmp_path, capsys) -> None:
    seen = []

    def measure(**keywords):
        seen.append(torch.get_num_threads())
        return table(element=7.5)

    monkeypatch.setattr("simmim_ext.nn.tuning.measure_speeds", measure)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    output = tmp_path / "new" / "table.json"
    assert cli.main(["tune", "--threads", "2", "--output", str(output)]) == 0
    assert (seen, torch.get_num_threads()) == ([2], THREADS)
    assert parse(output.read_text()) == table(element=7.5)
    assert not path().exists()
    assert "element 7.5" in capsys.readouterr().out


def test_an_interrupted_tune_leaves_what_was_there(monkeypatch, capsys) -> None:
    def interrupt(**keywords):
        raise KeyboardInterrupt

    plant(table(element=7.5).text())
    monkeypatch.setattr("simmim_ext.nn.tuning.measure_speeds", interrupt)
    assert cli.main(["tune"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert parse(path().read_text()) == table(element=7.5)
    assert os.listdir(path().parent) == [path().name]


@pytest.mark.parametrize("value", ["", "relative"])
def test_the_cache_is_in_the_home_folder_unless_told_absolutely(value, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache.cache_folder() == Path("/somewhere/.cache/simmim_ext")
