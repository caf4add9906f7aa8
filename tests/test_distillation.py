"""Distillation: it learns, it is the same twice, it resumes, it touches nothing of the caller's."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, assessment, compress, distill
from simmim_ext.data import Shuffled
from simmim_ext.distillation import Distillation
from simmim_ext.nn import MaskedLinear
from simmim_ext.outputs import kl_per_sample
from simmim_ext.similarity import gram
from simmim_ext.step_scales import step_scales

CONFIG = CompressConfig(epochs=4, lr=3e-2)


def mlp(hidden, outputs=5, seed=0, norm=False):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(8, hidden), *middle, nn.ReLU(), nn.Linear(hidden, outputs))


@pytest.fixture
def x():
    return torch.randn(512, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def teacher():
    model = mlp(64)
    with torch.no_grad():
        model[2].weight *= 5
    return model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kl(teacher, student, x):
    with torch.no_grad():
        return float(kl_per_sample(teacher(x), student.eval()(x)).mean())


def test_it_learns_and_changes_nothing_of_the_callers(teacher, x):
    student = mlp(8, seed=1)
    student[1].eval()
    before, original = weights(teacher), weights(student)
    torch.manual_seed(9)
    expected_random = torch.rand(1)
    torch.manual_seed(9)
    trained, history = distill(student, teacher, Shuffled([x], 64), config=CONFIG)
    assert torch.equal(torch.rand(1), expected_random)
    assert same(before, weights(teacher))
    assert same(original, weights(student))
    assert [m.training for m in trained.modules()] == [m.training for m in student.modules()]
    assert teacher.training
    assert all(p.grad is None for p in trained.parameters())
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["lr"] < 0.05 * CONFIG.lr
    assert kl(teacher, trained, x) < 0.5 * kl(teacher, student, x)


def test_two_runs_are_identical_and_another_seed_is_not(teacher, x):
    student, data = mlp(8, seed=1), Shuffled([x], 64)
    first = weights(distill(student, teacher, data, config=CONFIG)[0])
    torch.rand(7)
    assert same(first, weights(distill(student, teacher, data, config=CONFIG)[0]))
    other = CompressConfig(epochs=4, lr=3e-2, seed=1)
    assert not same(first, weights(distill(student, teacher, data, config=other)[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [False, True])
def test_a_run_taken_up_again_ends_with_the_same_weights(teacher, x, norm, dtype):
    student, data = mlp(8, seed=1, norm=norm).to(dtype), Shuffled([x[:500].to(dtype)], 71)
    teacher.to(dtype)
    whole, history = distill(student, teacher, data, config=CONFIG)
    run = Distillation(copy.deepcopy(student), teacher, data, config=CONFIG)
    for _ in range(CONFIG.epochs):
        state = run.state()
        fresh = mlp(8, seed=2, norm=norm).to(dtype)
        run = Distillation(fresh, teacher, data, config=CONFIG, state=state)
        run.run_epoch()
    assert same(weights(whole), weights(run.student))
    assert [row["loss"] for row in run.history] == [row["loss"] for row in history]


@pytest.mark.parametrize("masked", [False, True])
def test_small_steps_are_not_rounded_away_from_weights_of_bfloat16(teacher, x, masked):
    student, config = mlp(16, seed=1), CompressConfig(epochs=20, lr=2e-4)
    if masked:
        student[0] = MaskedLinear.from_linear(student[0], torch.rand(16, 8) < 0.5)
    data, halved = x.bfloat16().split(64), copy.deepcopy(student).bfloat16()
    expected, _ = distill(student, teacher, x.split(64), config=config)
    found, _ = distill(halved, teacher.bfloat16(), data, config=config)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert all(p.grad is None for p in found.parameters())
    teacher.float()
    before, wanted, after = (kl(teacher, m.float(), x) for m in (student, expected, found))
    assert before - after == pytest.approx(before - wanted, rel=0.1)


class Picky(nn.Sequential):
    """Has dropout as modules and as functions have it, and a BatchNorm that it does not train."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


def test_dropout_is_off_and_own_modes_are_kept(teacher, x):
    layers = [*mlp(8, seed=1, norm=True), nn.Dropout(0.5)]
    expected, _ = distill(
        nn.Sequential(*layers).eval(),
        teacher,
        x.split(64),
        config=CompressConfig(epochs=2, freeze_batch_norm=True),
    )
    for student in (Picky(*layers).train(), Picky(*layers).eval()):
        modes = [m.training for m in student.modules()]
        found, _ = distill(student, teacher, x.split(64), config=CompressConfig(epochs=2))
        assert same(weights(found), weights(expected))
        assert [m.training for m in found.modules()] == modes


class Checkpointing(nn.Sequential):
    """As a layer of transformers that is to checkpoint gradients in training mode."""

    gradient_checkpointing = True


def test_dropout_is_off_within_layers_that_have_to_be_in_training_mode(teacher, x):
    layers, config = [*mlp(8, seed=1)], CompressConfig(epochs=1)
    expected, _ = distill(nn.Sequential(*layers), teacher, x.split(64), config=config)
    student = Checkpointing(*layers, nn.Dropout(0.5))
    found, _ = distill(student, teacher, x.split(64), config=config)
    assert same(weights(found), weights(expected))


class Keeping(nn.Module):
    """Makes its bias of a parameter, in eval mode once, as LeViT's attention does."""

    def __init__(self):
        super().__init__()
        self.biases, self.kept = nn.Parameter(torch.zeros(3)), {}

    def train(self, mode=True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        bias = self.kept["bias"] if self.kept else self.biases[[0, 1, 2, 0, 1]]
        if not self.training:
            self.kept["bias"] = bias
        return x + bias


class Forgetting(Keeping):
    def forward(self, x):
        self.kept = {}
        return super().forward(x)


def test_what_layers_keep_in_eval_mode_is_learnt(teacher, x):
    config = CompressConfig(epochs=2)
    expected, _ = distill(
        nn.Sequential(*mlp(8, seed=1), Keeping(), nn.Dropout(0.5)).eval(),
        teacher,
        x.split(64),
        config=config,
    )
    assert all(expected[3].biases != 0)
    forgetting = nn.Sequential(*mlp(8, seed=1), Forgetting())
    found, _ = distill(forgetting, teacher, x.split(64), config=config)
    assert same(weights(found), weights(expected))


def test_a_student_with_gradients_in_training_alone_learns(teacher, x):
    class Encoder(nn.Sequential):
        def forward(self, x):
            with torch.set_grad_enabled(self.training):
                return super().forward(x)

    for frozen in (False, True):
        config = CompressConfig(epochs=4, lr=3e-2, freeze_batch_norm=frozen)
        student = Encoder(*mlp(8, seed=1, norm=True))
        found, history = distill(student, teacher, x.split(64), config=config)
        assert history[-1]["loss"] < 0.5 * history[0]["loss"]
        assert torch.equal(found[1].running_mean, student[1].running_mean) == frozen


def test_loaders_without_a_length_and_single_samples_are_taken(teacher, x):
    class Stream:
        def __iter__(self):
            return iter([x[:32], x[32:64], x[64:65]])

    trained, _ = distill(mlp(8, norm=True), teacher, Stream(), config=CompressConfig(epochs=1))
    assert not same(weights(trained), weights(mlp(8, norm=True)))


def test_a_loader_over_an_iterable_dataset_is_counted(teacher, x):
    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(x[:40])

    loader = torch.utils.data.DataLoader(Rows(), batch_size=16)
    assert Distillation(mlp(8), teacher, loader, config=CONFIG).steps == 3
    found = distill(mlp(8, seed=1), teacher, loader, config=CONFIG)[1]
    expected = distill(mlp(8, seed=1), teacher, x[:40].split(16), config=CONFIG)[1]
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]


def test_batches_of_one_sample_cannot_train_batch_norm(teacher, x):
    with pytest.raises(SimMIMError, match=r"every batch of epoch 1 has one sample.* 2 samples or"):
        distill(mlp(8, norm=True), teacher, x[:5].split(1), config=CONFIG)
    assert distill(mlp(8), teacher, x[:5].split(1), config=CONFIG)[1][0]["loss"] > 0


def test_regression_and_labels_and_gram(teacher, x):
    y = teacher(x).detach().argmax(1)
    data = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    plain, labelled, similar = (
        distill(mlp(8, seed=1), teacher, data, config=CompressConfig(epochs=1, **extra))[1][0]
        for extra in ({}, {"label_weight": 1.0}, {"gram_weight": 10.0})
    )
    assert labelled["loss"] > plain["loss"]
    assert similar["loss"] > plain["loss"]
    one = mlp(64, outputs=1)
    _, history = distill(mlp(8, 1, seed=1), one, [x], config=CompressConfig(epochs=60))
    assert history[-1]["loss"] < history[0]["loss"]
    half = CompressConfig(epochs=1, amp=True)
    assert distill(mlp(8), teacher, data, config=half)[0][0].weight.dtype == torch.float32


def labelled_loss(student, teacher, labels, x, **options):
    config = CompressConfig(epochs=1, label_weight=1.0)
    data = [(x[: len(labels)], labels)]
    return distill(student, teacher, data, config=config, **options)[1][0]["loss"]


def test_class_labels_of_every_kind_mean_the_same(teacher, x):
    student, labels = mlp(8, seed=1), torch.arange(40) % 2
    expected = labelled_loss(student, teacher, labels, x)
    one_hot = nn.functional.one_hot(labels, 5).float()
    for kind in (labels.int(), labels.bool(), labels.float(), labels[:, None], one_hot):
        found = labelled_loss(student, teacher, kind, x, output="classes")
        assert found == pytest.approx(expected)


def test_samples_without_a_label_have_no_label_loss(teacher, x):
    student, labels = mlp(8, seed=1), torch.arange(40) % 5
    labels[10:] = -1
    config = CompressConfig(epochs=1)
    plain = distill(student, teacher, [x[:40]], config=config)[1][0]["loss"]
    known = nn.functional.cross_entropy(student(x[:10]), labels[:10]).item()
    assert labelled_loss(student, teacher, labels, x) == pytest.approx(plain + known)
    none = torch.full_like(labels, -100)
    assert labelled_loss(student, teacher, none, x) == pytest.approx(plain)


def test_labels_of_tokens_are_learnt(teacher):
    tokens, y = torch.randn(8, 7, 8), torch.randint(5, (8, 7))
    mask = torch.ones(8, 7)
    mask[:4, 5:] = 0

    class Padded(nn.Sequential):
        def forward(self, x, attention_mask=None):
            return super().forward(x)

    def loss(**batch):
        config = CompressConfig(epochs=1, label_weight=1.0)
        pair = Padded(*mlp(8)), Padded(*teacher)
        return distill(*pair, [{"x": tokens, **batch}], config=config)[1][0]["loss"]

    assert loss(labels=y) > 0
    none = y.where(mask.bool(), -100)
    assert loss(labels=y, attention_mask=mask) == loss(labels=none, attention_mask=mask)


def test_gram_is_the_row_normalised_similarity_of_tung_and_mori():
    features = torch.randn(6, 3, 2)
    flat = features.flatten(1)
    expected = flat @ flat.T
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gram(features), expected)


def gram_loss(student, teacher, x):
    """What the Gram term adds to the loss of the first step."""
    plain, similar = (
        distill(student, teacher, [x], config=CompressConfig(epochs=1, gram_weight=weight))
        for weight in (0.0, 1.0)
    )
    return similar[1][0]["loss"] - plain[1][0]["loss"]


def test_gram_compares_the_same_layer_of_a_masked_student(teacher, x):
    student = copy.deepcopy(teacher)
    mask = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    student[2] = MaskedLinear.from_linear(student[2], mask)
    assert gram_loss(student, teacher, x) == pytest.approx(0, abs=1e-6)
    student[0] = MaskedLinear.from_linear(student[0], torch.eye(64, 8).bool())
    expected = (gram(student[:2](x)) - gram(teacher[:2](x))).square().mean().item()
    assert gram_loss(student, teacher, x) == pytest.approx(expected, rel=1e-3)


def test_gram_takes_each_models_own_last_call_of_a_layer_that_runs_twice(teacher, x):
    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + super().forward(-x)

    student = mlp(8, seed=1)
    expected = (gram(student[:2](-x)) - gram(teacher[:2](-x))).square().mean().item()
    assert expected > 1e-5
    found = gram_loss(Twice(*student), Twice(*teacher), x)
    assert found == pytest.approx(expected, rel=1e-3)


def test_zero_epochs_train_nothing(teacher, x):
    student = mlp(8)
    trained, history = distill(student, teacher, [x], config=CompressConfig(epochs=0))
    assert history == []
    assert trained is not student
    assert same(weights(trained), weights(student))


def test_what_cannot_be_distilled_says_what_to_do(teacher, x):
    student = mlp(8)
    with pytest.raises(SimMIMError, match=r"data: got a generator, which can be read only once"):
        distill(student, teacher, (x for _ in range(2)))
    with pytest.raises(SimMIMError, match=r"data: no sample came out of an empty list"):
        distill(student, teacher, [])
    with pytest.raises(SimMIMError, match=r"label_weight=1.0 needs one label for each of the 512"):
        distill(student, teacher, [x], config=CompressConfig(label_weight=1.0))
    with pytest.raises(SimMIMError, match=r"label_weight=1.0 needs labels of the outputs' shape"):
        labelled_loss(student, teacher, torch.rand(40, 4), x)
    with pytest.raises(SimMIMError, match=r"the loss became nan in epoch 1, step 1; lower"):
        distill(student, teacher, [x * float("nan")])
    with pytest.raises(SimMIMError, match=r"parameters are float16, .* model.float\(\) or"):
        distill(student.half(), teacher.half(), [x.half()])
    student.float()
    teacher.float()
    with pytest.raises(SimMIMError, match=r"no parameter of the model requires a gradient"):
        distill(student.requires_grad_(False), teacher, [x])
    with pytest.raises(SimMIMError, match=r"no parameter .* or set epochs=0"):
        compress(student, calibration=[x], constraints={"units": 0.5})
    conv = nn.Sequential(nn.Conv1d(8, 5, 1), nn.Flatten())
    with pytest.raises(SimMIMError, match=r"gram_weight needs an nn.Linear .* teacher runs none"):
        distill(conv, conv, [x[..., None]], config=CompressConfig(gram_weight=1.0))


@pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)]
)
def test_the_callers_modes_change_nothing(mode, monkeypatch):
    monkeypatch.setattr(assessment, "measure_latency", lambda *_: [1.0, 1.0])

    def work():
        model = mlp(16, norm=True)
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        data = [(x, torch.arange(64) % 5)]
        config = CompressConfig(epochs=1, label_weight=1.0)
        half = {"calibration": data, "example_inputs": data[0], "config": config}
        yield distill(model, mlp(16), data, config=config)[0]
        yield compress(model, constraints={"units": 0.5}, **half).model
        yield compress(model, constraints={"sparsity": 0.5}, granularity="weight", **half).model

    expected = [weights(found) for found in work()]
    with mode():
        models = list(work())
    for model, before in zip(models, expected, strict=True):
        assert same(weights(model), before)
        model(torch.rand(3, 8)).sum().backward()


def _in_half(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)


@pytest.mark.parametrize("callers", [False, True], ids=["alone", "in the caller's"])
@pytest.mark.parametrize("amp", [True, False], ids=["amp", "forward_fn"])
def test_each_step_under_autocast_sees_the_weights_of_that_step(amp, callers, teacher, x):
    student, config = mlp(8, seed=1), dataclasses.replace(CONFIG, amp=amp)
    with torch.autocast("cpu", torch.bfloat16, enabled=callers):
        student(x)  # whose weights it casts, and keeps
        trained, history = distill(
            student, teacher, [x] * 8, config=config, forward_fn=None if amp else _in_half
        )
        assert torch.is_autocast_enabled("cpu") == callers
        found = trained(x)
    losses = [row["loss"] for row in history]
    assert losses[-1] < 0.5 * losses[0]
    assert kl(teacher, trained, x) < 0.5 * kl(teacher, student, x)
    # The caller's autocast has not kept what the weights were.
    assert (found - trained(x)).abs().max() <= 0.02 * found.abs().max()


def test_an_interrupt_leaves_modes_and_random_state(teacher, x):
    class Interrupting:
        def __init__(self):
            self.passes = 0

        def __len__(self):
            return 8

        def __iter__(self):
            self.passes += 1
            yield from x[:256].split(64)
            if self.passes > 1:
                raise KeyboardInterrupt

    student = mlp(8)
    before = weights(student)
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, Interrupting(), config=CONFIG)
    assert torch.equal(torch.rand(1), expected)
    assert teacher.training
    assert student.training
    assert same(before, weights(student))


def test_steps_are_as_large_as_the_layers_weights(teacher, x):
    """Adam's first step is the learning rate for every weight, times its layer's scale."""
    student = mlp(8, seed=1)
    with torch.no_grad():
        student[0].weight.copy_(3 * teacher[0].weight[:8].square().mean().sqrt())
    config = CompressConfig(epochs=1, lr=1e-4)
    trained = distill(student, teacher, [x], config=config)[0]
    scales = step_scales(student, teacher)
    for name, before in student.named_parameters():
        step = (trained.get_parameter(name) - before).abs()
        moved = step[step > 0]
        expected = config.lr * scales.get(name, 1.0)
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=0.02, atol=1e-7)
    assert sorted(scales) == ["0.weight", "2.weight"]


@torch.no_grad()
def test_scales_of_steps(teacher):
    student = copy.deepcopy(teacher)
    assert step_scales(student, teacher) == {"0.weight": 1.0, "2.weight": 1.0}
    student[0].weight *= 3
    assert step_scales(student, teacher)["0.weight"] == 2**1.5  # the nearest quarter of an octave
    student[0].weight *= 1e3
    student[2].weight *= 1e-3
    assert step_scales(student, teacher) == {"0.weight": 8.0, "2.weight": 1.0}  # and no more
    mask = torch.zeros_like(teacher[2].weight, dtype=torch.bool)
    mask[:, :8] = True
    teacher[2].weight[:, :8] *= 2 * (teacher[2].weight.norm() / teacher[2].weight[:, :8].norm())
    student[2] = MaskedLinear.from_linear(teacher[2], mask)
    kept, whole = (w.square().mean().sqrt() for w in (student[2].weight[:, :8], teacher[2].weight))
    assert step_scales(student, teacher)["2.weight"] == pytest.approx(float(kept / whole), rel=0.1)
    teacher[2].weight.zero_()
    assert "2.weight" not in step_scales(student, teacher)  # nothing to compare with
    assert step_scales(nn.Sequential(nn.Conv1d(1, 2, 3)), nn.Linear(2, 2)) == {}
    empty = nn.Sequential(MaskedLinear(4, 3))
    empty[0].mask.zero_()
    assert step_scales(empty, nn.Sequential(nn.Linear(4, 3))) == {"0.weight": 1.0}
