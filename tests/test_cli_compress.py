"""``simmim compress`` and ``score``: what a recipe says is done, saved, shown and gone on with."""

import json
import subprocess
import sys

import torch
from recipes import CODE, network, recipe
from safetensors.torch import load_file

from simmim_ext import CompressConfig, compress, load, score


def test_a_recipe_is_compressed_saved_and_shown(project, run):
    path = recipe(project, data='evaluate = "net.py:labelled"')
    code, out, error = run("compress", path)
    assert code == 0, error
    assert "units of body" in out
    assert "accuracy" in out
    assert "what a module prints" in error
    assert f"Model and report are in {project / 'small'}" in error
    model = load(project / "small", network(project)["build"]())
    assert model.body.out_features == 4
    assert not (project / "small.checkpoint").exists()


def test_json_is_the_report_and_nothing_else_from_the_shell_too(project):
    done = subprocess.run(
        [sys.executable, "-m", "simmim_ext.cli", "compress", "small.toml", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((project / "small" / "report.json").read_text())
    assert report["layers"][0]["after"] == 4
    assert report["config"]["epochs"] == 2
    assert "what a module prints" in done.stderr


def test_a_recipe_is_what_compress_would_be_told(project, run):
    path = recipe(
        project,
        top='round_to = 3\noutput = "classes"\nforward_fn = "net.py:outputs"\ngranularity = "unit"',
        model="arguments = { hidden = 16 }",
        data='train = { call = "net.py:images", arguments = { samples = 1100 } }\n'
        'evaluate = "net.py:images"\nexample_inputs = "net.py:first"',
        config='criterion = "entropy"\nseed = 4',
    )
    code = "\n\ndef first():\n    return images()[0][:7]\n"
    (project / "net.py").write_text(CODE + code)
    assert run("compress", path)[0] == 0
    net = network(project)
    model = net["build"]()
    model.load_state_dict(load_file(project / "trained.safetensors"))
    report = json.loads((project / "small" / "report.json").read_text())
    expected = compress(
        model,
        calibration=net["images"](),
        train=net["images"](1100),
        evaluate=net["images"](),
        example_inputs=net["images"]()[0][:7],
        constraints={"units": 0.25},
        round_to=3,
        forward_fn=net["outputs"],
        config=CompressConfig(epochs=2, criterion="entropy", seed=4),
    )
    assert report["latency"]["batch"] == 7
    assert report["layers"] == expected.report["layers"]
    assert report["fidelity"] == expected.report["fidelity"]
    small = load(project / "small", net["build"]())
    assert torch.equal(small.body.weight, expected.model.body.weight)


def stopping(project, **parts):
    """A recipe whose third pass over the training data is interrupted, once."""
    marker = project / "stopped"
    train = f'train = {{ call = "net.py:Stops", arguments = {{ marker = "{marker}" }} }}'
    return recipe(project, data=train, config="lr = 0.01", **parts)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_model(project, run):
    path = stopping(project)
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 4"))
    one, other = project / "one", project / "other"
    code, out, error = run("compress", path, "--output", one)
    assert (code, out) == (130, "")
    assert error.splitlines()[-1] == "simmim compress: interrupted"
    state = project / "one.checkpoint"
    assert f"After an interruption the same command goes on from {state}" in error
    assert (state / "manifest.json").exists()
    code, _, error = run("compress", path, "--output", one)
    assert code == 0, error
    assert f"Going on from {state}" in error
    assert not state.exists()
    assert run("compress", path, "--output", other)[0] == 0
    models = [load(folder, network(project)["build"]()) for folder in (one, other)]
    assert torch.equal(models[0].body.weight, models[1].body.weight)
    texts = [(folder / "report.json").read_text() for folder in (one, other)]
    losses = [[row["loss"] for row in json.loads(text)["training"]] for text in texts]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_another_recipe_does_not_go_on_with_a_state_and_what_else_is_there_stays(project, run):
    path = stopping(project, top='checkpoint_dir = "state"')
    text = path.read_text().replace("epochs = 2", "epochs = 4")
    path.write_text(text)
    assert run("compress", path)[0] == 130
    (project / "state" / "notes.txt").write_text("mine")
    path.write_text(text.replace("lr = 0.01", "lr = 0.02"))
    code, _, error = run("compress", path)
    assert code == 2
    assert f"{project / 'state'} holds the state of a run with another model" in error
    path.write_text(text)
    assert run("compress", path)[0] == 0
    assert [file.name for file in (project / "state").iterdir()] == ["notes.txt"]


def test_scores_as_a_table_and_as_json(project, run):
    code, out, error = run("score", project / "small.toml")
    assert code == 0, error
    for part in ("simmim", "body", "16", "entropy, nats", "information, nats"):
        assert part in out
    code, out, _ = run("score", project / "small.toml", "--criterion", "magnitude_l1", "--json")
    assert code == 0
    scores = json.loads(out)
    net = network(project)
    model = net["build"]()
    model.load_state_dict(load_file(project / "trained.safetensors"))
    expected = score(model, net["images"](), criterion="magnitude_l1")
    assert scores == {name: values.tolist() for name, values in expected.items()}
