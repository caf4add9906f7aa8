"""The whole road on small networks: budgets, reports, resuming; nothing of the caller changes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, load
from simmim_ext.nn import MaskedLinear
from simmim_ext.schedule import budgets, epochs_of_steps

CONFIG = CompressConfig(epochs=2, lr=1e-2)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 4)
    )


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 5),
    )


@pytest.fixture(scope="module")
def x():
    return torch.randn(2000, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels(x):
    return x[:, :4].argmax(1)


@pytest.fixture(scope="module")
def trained(x, labels):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_report_says_what_design_says_and_is_json(trained, x, labels):
    data = list(zip(x.split(500), labels.split(500), strict=True))
    result = compress(trained, calibration=data, constraints={"units": 0.5}, config=CONFIG)
    report = json.loads(json.dumps(result.report))
    assert report == result.report
    for role in ("teacher", "student"):
        for key in ("params", "flops", "bytes", "latency_ms", "predictive_information"):
            assert report[role][key] > 0
        assert 0 < report[role]["accuracy"] <= 1
    assert report["teacher"]["params"] == sum(p.numel() for p in trained.parameters())
    assert report["student"]["params"] == sum(p.numel() for p in result.model.parameters())
    assert report["teacher"]["flops"] == 2 * (12 * 40 + 40 * 20 + 20 * 4)
    assert report["teacher"]["bytes"] == 4 * report["teacher"]["params"]
    fidelity = report["fidelity"]
    assert fidelity["kl_interval"][0] <= fidelity["kl"] <= fidelity["kl_interval"][1]
    low, high = fidelity["agreement_interval"]
    assert low <= fidelity["agreement"] <= high
    assert fidelity["data"] == "held-out calibration samples"
    assert fidelity["samples"] == 400
    assert sum(layer["after"] for layer in report["layers"]) == 30
    assert [layer["name"] for layer in report["layers"]] == ["0", "2"]
    assert all(len(layer["kept"]) == layer["after"] for layer in report["layers"])
    assert result.model[0].out_features == report["layers"][0]["after"]
    assert [stage["name"] for stage in report["stages"]] == [
        *("score", "measure", "prune", "reconstruct", "distil", "compare")
    ]
    assert report["output"] == "classes"
    assert report["config"] == CONFIG.to_dict()
    assert report["versions"]["torch"] == torch.__version__


def test_nothing_of_the_callers_changes(trained, x):
    trained.train()
    trained[1].eval()
    before, gradients = weights(trained), [p.grad.clone() for p in trained.parameters()]
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    result = compress(trained, calibration=[x], constraints={"params": 0.3}, config=CONFIG)
    assert torch.equal(torch.rand(2), expected)
    assert same(before, weights(trained))
    assert [m.training for m in trained.modules()] == [m.training for m in result.model.modules()]
    assert all(map(torch.equal, gradients, (p.grad for p in trained.parameters())))
    kept = sum(p.numel() for p in result.model.parameters())
    assert kept <= 0.3 * sum(p.numel() for p in trained.parameters())
    trained.train()


def test_training_helps_and_evaluate_is_used(trained, x, labels):
    evaluate = [(x[1500:], labels[1500:])]
    settings = {"calibration": [x[:1500]], "evaluate": evaluate, "constraints": {"units": 0.4}}
    raw, short = (
        compress(trained, config=CompressConfig(epochs=epochs, lr=1e-2), **settings).report
        for epochs in (0, 20)
    )
    assert raw["fidelity"]["data"] == short["fidelity"]["data"] == "evaluate"
    assert raw["fidelity"]["samples"] == 500
    assert raw["training"] == []
    assert len(short["training"]) == 20
    assert short["fidelity"]["kl"] < raw["fidelity"]["kl"]


def test_a_cnn_with_batch_norm_goes_the_whole_road(tmp_path):
    model = cnn()
    x = torch.randn(1500, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    result = compress(model, calibration=x.split(300), constraints={"flops": 0.5}, config=CONFIG)
    assert result.report["student"]["flops"] <= 0.5 * result.report["teacher"]["flops"]
    result.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", cnn().eval())
    assert torch.equal(loaded(x[:50]), result.model.eval()(x[:50]))


def test_weights_become_masked_layers_that_save_small(trained, x, tmp_path):
    settings = {"granularity": "weight", "constraints": {"sparsity": 0.8}, "config": CONFIG}
    result = compress(trained, calibration=[x], **settings, checkpoint_dir=tmp_path / "state")
    masks = [m.mask for m in result.model.modules() if isinstance(m, MaskedLinear)]
    total = sum(mask.numel() for mask in masks)
    assert total == 12 * 40 + 40 * 20 + 20 * 4
    assert sum(int(mask.sum()) for mask in masks) == int(0.2 * total)
    report = json.loads(json.dumps(result.report))
    assert report["student"]["params"] == int(0.2 * total) + 64
    assert report["student"]["flops"] == 2 * int(0.2 * total)
    assert report["student"]["bytes"] < 0.4 * report["teacher"]["bytes"]
    assert sum(layer["after"] for layer in report["layers"]) == int(0.2 * total)
    result.save(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved", network(seed=5))(x), result.model(x))
    again = compress(trained, calibration=[x], **settings, checkpoint_dir=tmp_path / "state")
    assert same(weights(result.model), weights(again.model))


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_gradual_schedules_end_at_the_budget_and_load(trained, x, tmp_path, schedule):
    config = CompressConfig(epochs=5, schedule=schedule, steps=3)
    result = compress(trained, calibration=[x], constraints={"units": 0.3}, config=config)
    assert sum(layer["after"] for layer in result.report["layers"]) == 18
    assert all(len(layer["kept"]) == layer["after"] for layer in result.report["layers"])
    assert len(result.report["training"]) == 5
    result.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", network(seed=5))
    assert torch.equal(loaded(x), result.model(x))


def test_schedules():
    constraints, originals = {"units": 0.1, "params": 200}, {"units": 500, "params": 2000}
    assert budgets(constraints, {}, "one-shot", 1) == [constraints]
    iterative = budgets(constraints, originals, "iterative", 2)
    assert iterative == [{"units": 158, "params": 632}, {"units": 50, "params": 200}]
    cubic = budgets(constraints, originals, "cubic", 2)
    assert cubic == [{"units": 106, "params": 425}, {"units": 50, "params": 200}]
    assert epochs_of_steps(10, 3) == [3, 3, 4]
    with pytest.raises(ValueError, match=r'a latency budget needs schedule="one-shot", got'):
        budgets({"latency": 0.5}, originals, "cubic", 2)


def test_values_and_embeddings(x):
    result = compress(
        nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 1)),
        calibration=[x],
        constraints={"units": 0.5},
        config=CONFIG,
    )
    assert result.report["output"] == "values"
    assert result.report["fidelity"]["agreement"] is None
    assert result.report["fidelity"]["relative_error"] < 0.5
    result = compress(
        network(), calibration=[x], constraints={"units": 0.5}, output="embeddings", config=CONFIG
    )
    assert result.report["fidelity"]["cosine"] > 0.9


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_samples_that_are_all_alike(x):
    config = CompressConfig(epochs=0)
    result = compress(
        network(), calibration=[x[:1]] * 50, constraints={"units": 0.5}, config=config
    )
    assert result.report["fidelity"]["kl"] < 1e-9  # the biases alone do it


def test_a_forward_fn_and_keyword_inputs(x):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, *, pixels):
            return {"answer": self.body(pixels)}

    result = compress(
        Keywords(),
        calibration=[{"pixels": part} for part in x.split(400)],
        constraints={"units": 0.5},
        forward_fn=lambda model, batch: model(**batch)["answer"],
        config=CompressConfig(epochs=1),
    )
    assert result.report["layers"][0]["name"] == "body.0"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"granularity": "n:m"}, ValueError, r"granularity must be one of \"unit\".* got .n:m."),
        ({"constraints": {}}, ValueError, r"constraints must be a dict with at least one of"),
        ({"constraints": {"unit": 0.5}}, ValueError, r"'unit' is none of units"),
        ({"constraints": {"units": 0}}, ValueError, r"units must be a fraction kept in \(0, 1\]"),
        ({"constraints": {"params": 10}}, SimMIMError, r"params=10 cannot be met"),
        (
            {"granularity": "weight"},
            ValueError,
            r'constraints must be \{"sparsity": fraction of weights removed.* got \{.units',
        ),
        ({"output": "text"}, ValueError, r"output must be one of auto, .* got 'text'"),
        ({"calibration": []}, SimMIMError, r"calibration: no sample came out of an empty list"),
        ({"train": iter([])}, SimMIMError, r"train: got a list_iterator, which can be read only"),
        ({"calibration": [torch.rand(3, 12)]}, SimMIMError, r"at least 5 samples are needed"),
        ({"ignored_layers": ["5"]}, SimMIMError, r"ignored_layers holds '5', which is no layer"),
    ],
)
def test_what_cannot_be_done_says_so_and_changes_nothing(trained, x, arguments, error, text):
    before = weights(trained)
    settings = {"calibration": [x], "constraints": {"units": 0.5}, "config": CONFIG, **arguments}
    with pytest.raises(error, match=text):
        compress(trained, **settings)
    assert same(before, weights(trained))


def test_an_interrupt_changes_nothing(trained, x):
    class Interrupting:
        def __len__(self):
            return 2

        def __iter__(self):
            yield x[:100]
            raise KeyboardInterrupt

    before, modes = weights(trained), [m.training for m in trained.modules()]
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    with pytest.raises(KeyboardInterrupt):
        compress(
            trained,
            calibration=[x],
            train=Interrupting(),
            constraints={"units": 0.5},
            config=CONFIG,
        )
    assert torch.equal(torch.rand(2), expected)
    assert same(before, weights(trained))
    assert modes == [m.training for m in trained.modules()]


# Resuming ---------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_compression import network, random_data
from simmim_ext import CompressConfig, compress
config = CompressConfig(epochs=8, schedule="iterative", steps=2)
result = compress(network(), calibration=[random_data()], train=random_data().split(10),
                  constraints={{"units": 0.5}}, config=config, checkpoint_dir=sys.argv[1])
torch.save(result.model.state_dict(), sys.argv[2])
"""


def random_data():
    return torch.randn(1500, 12, generator=torch.Generator().manual_seed(1))


def run_and_kill(folder, output, after):
    script = SCRIPT.format(tests=os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(output)], stderr=subprocess.PIPE
    )
    begin = time.monotonic()
    # Start-up is not what is tested: the clock runs from the first state kept.
    while process.poll() is None and not list(folder.glob("*")):
        time.sleep(0.002)
        assert time.monotonic() - begin < 120
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    error = process.communicate()[1].decode()
    assert process.returncode in (0, -signal.SIGKILL), error


def check_kills(tmp_path, kills, seed):
    run_and_kill(tmp_path / "whole", tmp_path / "whole.pt", after=300)
    expected = torch.load(tmp_path / "whole.pt")
    draw = random.Random(seed)
    for _ in range(kills):
        if not (tmp_path / "killed.pt").exists():
            run_and_kill(tmp_path / "killed", tmp_path / "killed.pt", after=draw.uniform(0, 1.0))
    if not (tmp_path / "killed.pt").exists():
        run_and_kill(tmp_path / "killed", tmp_path / "killed.pt", after=300)
    assert same(expected, torch.load(tmp_path / "killed.pt"))


def test_a_killed_run_ends_with_the_same_model(tmp_path):
    check_kills(tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_twenty_kills(tmp_path, seed):
    check_kills(tmp_path, kills=4, seed=1 + seed)


def test_a_finished_run_is_not_repeated(trained, x, tmp_path):
    settings = {"calibration": [x], "constraints": {"units": 0.5}, "config": CONFIG}
    first = compress(trained, **settings, checkpoint_dir=tmp_path)
    again = compress(trained, **settings, checkpoint_dir=tmp_path)
    assert same(weights(first.model), weights(again.model))
    assert first.report["training"] == again.report["training"]
    plain = compress(trained, **settings)
    assert same(weights(first.model), weights(plain.model))


def test_another_runs_state_is_refused(trained, x, tmp_path):
    settings = {"calibration": [x], "constraints": {"units": 0.5}, "config": CONFIG}
    compress(trained, **settings, checkpoint_dir=tmp_path)
    changes = [
        {"constraints": {"units": 0.4}},
        {"calibration": [x + 1]},
        {"config": CompressConfig(epochs=3)},
        {"example_inputs": x[:3]},
        {"evaluate": [x]},  # then no samples are held out
        {"forward_fn": lambda model, batch: model(batch)[:, :3]},
        {"forward_fn": lambda model, batch: 2 * model(batch)},
    ]
    for change in changes:
        with pytest.raises(SimMIMError, match=r"another model, .* without evaluate;"):
            compress(trained, **{**settings, **change}, checkpoint_dir=tmp_path)
    with pytest.raises(SimMIMError, match=r"another model, .* without evaluate;"):
        compress(network(seed=3), **settings, checkpoint_dir=tmp_path)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(SimMIMError, match=r"checkpoint_dir: .* or delete .* to start again"):
        compress(trained, **settings, checkpoint_dir=tmp_path)


def test_a_run_goes_on_where_the_teacher_rounds_otherwise(trained, x, tmp_path):
    def rounds(by):
        return lambda model, batch: model(batch)[:, :3] * (1 + by)

    settings = {"calibration": [x], "constraints": {"units": 0.5}, "checkpoint_dir": tmp_path}
    first = compress(trained, **settings, config=CONFIG, forward_fn=rounds(0))
    again = compress(trained, **settings, config=CONFIG, forward_fn=rounds(1e-5))
    assert same(weights(first.model), weights(again.model))


# Saving -----------------------------------------------------------------------------------------


@pytest.fixture
def saved(trained, x, tmp_path):
    result = compress(trained, calibration=[x], constraints={"units": 0.5}, config=CONFIG)
    result.save(tmp_path / "saved")
    return tmp_path / "saved", result


def test_a_saved_model_loads_into_a_fresh_process(saved, x, tmp_path):
    folder, result = saved
    torch.save(x[:20], tmp_path / "x.pt")
    code = """
import sys, torch
from torch import nn
import simmim_ext
model = nn.Sequential(
    nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 4))
loaded = simmim_ext.load(sys.argv[1], model)
assert model[0].out_features == 40
torch.save(loaded(torch.load(sys.argv[2])), sys.argv[3])
"""
    files = folder, tmp_path / "x.pt", tmp_path / "y.pt"
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), result.model(x[:20]))
    assert json.loads((folder / "report.json").read_text()) == result.report
    assert not any(b"pickle" in path.read_bytes() for path in folder.iterdir())


def test_save_takes_only_a_new_or_an_empty_folder(saved, tmp_path):
    folder, result = saved
    with pytest.raises(SimMIMError, match=r"save: .*saved is not an empty folder; give a new"):
        result.save(folder)
    (tmp_path / "file").touch()
    with pytest.raises(SimMIMError, match=r"save: .*file is not an empty folder"):
        result.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    result.save(tmp_path / "empty")


def test_load_refuses_another_architecture(saved):
    folder, _ = saved
    with pytest.raises(
        SimMIMError, match=r"belongs to another architecture: 0.bias is \[40\] there"
    ):
        load(folder, nn.Sequential(nn.Linear(12, 41)))
