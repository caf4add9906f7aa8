import pytest
import torch
from models import CASES, case, snapshot
from torch import nn

from simmim_ext import ridge
from simmim_ext.graph import trace_units
from simmim_ext.order import layers_together
from simmim_ext.original import Original
from simmim_ext.outputs import divergence
from simmim_ext.reconstruction import Pair, reconstruct
from simmim_ext.removal import remove_units
from simmim_ext.weights import prune_weights


def data(name, samples=400):
    generator = torch.Generator().manual_seed(5)
    shape = (12,) if name == "mlp" else (1, 8, 8)
    return torch.randn(samples, *shape, generator=generator).split(100)


def squared_error(student, teacher, batches):
    with torch.no_grad():
        x = torch.cat(list(batches))
        return float((student.eval()(x) - teacher.eval()(x)).square().mean())


def pair_of(student, teacher, batches):
    original = Original(teacher, batches, samples=100)
    return Pair(original.resumed(student), original)


def halved(name):
    model, x = case(name)
    groups = trace_units(model, x)
    return model.eval(), *remove_units(model, groups, {g.name: range(g.units // 2) for g in groups})


@pytest.mark.parametrize("name", CASES)
def test_comes_closer_and_changes_nobody(name):
    teacher, student, history = halved(name)
    teacher.train()
    before = snapshot(teacher), snapshot(student)
    fitted = reconstruct(student, teacher, data(name), history, samples=400)
    assert (snapshot(teacher), snapshot(student)) == before
    assert {n: m.training for n, m in fitted.named_modules()} == before[1][2]
    errors = [squared_error(model, teacher, data(name)) for model in (student, fitted)]
    assert errors[1] < 0.7 * errors[0]


def test_last_layer_is_the_ridge_regression(monkeypatch):
    monkeypatch.setattr(ridge, "SHARES", (1e-2,))
    teacher, student, history = halved("mlp")
    fitted = reconstruct(student, teacher, data("mlp"), history, samples=400)
    with torch.no_grad():
        x = torch.cat(data("mlp"))
        a, z = student[:2](x).double(), teacher(x).double()
    ac, zc, old = a - a.mean(0), z - z.mean(0), student[2].weight.double()
    xx = ac.T @ ac / len(x)
    noise = 1e-2 * xx.diagonal().mean() * torch.eye(len(xx)).double()
    # The ridge draws towards the weights that there were.
    weight = torch.linalg.solve(xx + noise, ac.T @ zc / len(x) + noise @ old.T).T
    torch.testing.assert_close(fitted[2].weight.double(), weight, rtol=1e-4, atol=1e-5)
    bias = z.mean(0) - weight @ a.mean(0)
    torch.testing.assert_close(fitted[2].bias.double(), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [3, 8, 20, 60])
def test_few_samples_make_nothing_worse(samples):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(12, 80), nn.ReLU(), nn.Linear(80, 4)).eval()
    groups = trace_units(teacher, torch.randn(2, 12))
    student, history = remove_units(teacher, groups, {"0": range(70)})
    fitted = reconstruct(student, teacher, [torch.randn(samples, 12)], history, samples=samples)
    unseen = torch.randn(4000, 12).split(1000)
    errors = [squared_error(model, teacher, unseen) for model in (student, fitted)]
    assert errors[1] <= 1.05 * errors[0]
    assert torch.equal(fitted[2].weight, student[2].weight) == (samples < 4)


def test_the_held_out_samples_are_every_fourth_of_whole_samples():
    teacher, student, history = halved("cnn")
    batches = data("cnn", 10)
    pair = pair_of(student, teacher, [batches[0][:5], batches[0][5:]])
    (seen, held_out) = pair.split({"features.4": [0, 1, 2]})["features.4"]
    positions = (seen.samples + held_out.samples) // 10
    assert held_out.samples == 2 * positions
    (whole,) = pair.whole({"features.4": [0, 1, 2]}).values()
    torch.testing.assert_close(whole.xz, seen.xz + held_out.xz)
    only = pair_of(student, teacher, [batches[0][[3, 7]]])
    (again,) = only.whole({"features.4": [0, 1, 2]}).values()
    assert positions == 4  # all of them are looked at
    torch.testing.assert_close(again.xz, held_out.xz)


def test_refitted_outputs_lower_the_divergence():
    teacher, student, history = halved("mlp")
    x = torch.cat(data("mlp"))

    def divergence(model):
        with torch.no_grad():
            p, q = teacher(x).log_softmax(1), model(x).log_softmax(1)
            return float((p.exp() * (p - q)).sum(1).mean())

    ridge, refitted = (
        reconstruct(student, teacher, data("mlp"), history, samples=400, refit_outputs=refit)
        for refit in (False, True)
    )
    assert divergence(refitted) < divergence(ridge) < divergence(student)


class Tagger(nn.Module):
    """Says something of each token, whatever the others are."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(20, 12), nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, input_ids, attention_mask):
        return self.head(self.hidden(self.embed(input_ids)).tanh())


def texts(padded):
    """Batches of ten texts, of which these are padded."""
    tokens = torch.randint(20, (40, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[padded, 4:] = 0
    return [
        {"input_ids": ids, "attention_mask": m}
        for ids, m in zip(tokens.split(10), mask.split(10), strict=True)
    ]


def by_units(teacher, batches, **options):
    (group,) = trace_units(teacher, batches[0], ignored_layers=["embed"], **options)
    student, history = remove_units(teacher, [group], {group.name: range(6)})
    return lambda refit: reconstruct(
        student, teacher, batches, history, samples=40, refit_outputs=refit, **options
    )


def by_weights(teacher, batches, **options):
    return lambda refit: prune_weights(
        teacher, batches, sparsity=0.7, samples=40, refit_outputs=refit, **options
    )[0]


@pytest.mark.parametrize("padded", [slice(20, None), slice(0, 30)], ids=["later", "first"])
@pytest.mark.parametrize("fitted", [by_units, by_weights])
def test_the_last_layer_is_refitted_without_padding(fitted, padded):
    torch.manual_seed(0)
    teacher, batches = Tagger(), texts(padded)
    students = map(fitted(teacher, batches), (False, True))
    ridge, refitted = (divergence(teacher, model, batches, None) for model in students)
    assert refitted < ridge


@pytest.mark.parametrize("fitted", [by_units, by_weights])
def test_rows_that_a_forward_fn_leaves_out_leave_the_last_layer_to_the_ridge(fitted):
    def of_tokens(model, batch):
        return model(**batch)[batch["attention_mask"].bool()]

    torch.manual_seed(0)
    fit = fitted(Tagger(), texts(slice(20, None)), forward_fn=of_tokens)
    assert torch.equal(*(fit(refit).head.weight for refit in (False, True)))


def test_redundant_units_are_made_up_for_exactly():
    teacher, _ = case("mlp")
    with torch.no_grad():  # units 5..9 are copies of 0..4
        teacher[0].weight[5:], teacher[0].bias[5:] = teacher[0].weight[:5], teacher[0].bias[:5]
    groups = trace_units(teacher, data("mlp")[0])
    student, history = remove_units(teacher, groups, {"0": range(5)})
    fitted = reconstruct(student, teacher, data("mlp"), history, samples=400)
    errors = [squared_error(model, teacher, data("mlp")) for model in (student, fitted)]
    assert errors[1] < 1e-4 * errors[0]


def test_layers_before_the_first_loss_stay_bit_for_bit():
    teacher, x = case("cnn")
    groups = trace_units(teacher, x)
    student, history = remove_units(teacher, groups, {"hidden": range(5)})
    fitted = reconstruct(student, teacher, data("cnn"), history, samples=400)
    assert torch.equal(fitted.features[4].weight, teacher.features[4].weight)
    assert torch.equal(fitted.hidden.weight, teacher.hidden.weight[:5])
    assert not torch.equal(fitted.head.weight, student.head.weight)


def test_nothing_removed_changes_nothing():
    teacher, _ = case("mlp")
    fitted = reconstruct(teacher, teacher, data("mlp"), [], samples=400, refit_outputs=True)
    assert all(map(torch.equal, fitted.parameters(), teacher.parameters()))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_columns_times_weight_are_the_convolution(padding_mode):
    from simmim_ext.layers import input_columns, output_rows

    layer = nn.Conv2d(
        3, 5, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), padding_mode=padding_mode
    )
    x = torch.randn(4, 3, 9, 8)
    z = layer(x)
    at = torch.tensor([0, 3, 17, z.shape[2] * z.shape[3] - 1])
    made = input_columns(layer, x, at) @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(made, output_rows(layer, z, at))


def test_layers_that_read_one_tensor_are_fitted_in_one_pass():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = self.a(x) + self.b(x)
            x += self.c(x)
            return self.d(x)

    together = layers_together(Net(), torch.randn(3, 4), None)
    assert together == [["a", "b"], ["c"], ["d"]]


class Mixed(nn.Module):
    """A text model of one hidden layer, which sees tokens before samples if it is told so."""

    def __init__(self, tokens_first):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden, self.head = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 4)
        self.tokens_first = tokens_first

    def forward(self, tokens, attention_mask):
        x = self.embed(tokens)
        y = self.hidden(x.transpose(0, 1)).transpose(0, 1) if self.tokens_first else self.hidden(x)
        return self.head(y.relu().mean(1))


@pytest.mark.parametrize("samples", [4, 6])
def test_padding_is_left_out_whether_tokens_or_samples_come_first(samples):
    tokens = torch.randint(20, (10, samples, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 2, 3, 1, 5, 4])[:samples, None]
    data = [{"tokens": t, "attention_mask": mask.long()} for t in tokens]
    found = []
    for tokens_first in (False, True):
        model = Mixed(tokens_first).eval()
        pair = pair_of(model, model, data)
        found.append(pair.split({"hidden": None})["hidden"])
    for plain, other in zip(*found, strict=True):
        assert plain.samples == other.samples > 0
        for name in ("x", "z", "xx", "xz"):
            torch.testing.assert_close(getattr(plain, name), getattr(other, name))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubling(x, hook=None):
    """A network whose last layer doubles its output, and one with half the units."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    if hook is None:
        model[2].__class__ = Doubled
    else:
        model[2].register_forward_hook(hook)
    groups = trace_units(model, x)
    return model, *remove_units(model, groups, {groups[0].name: range(5)})


@pytest.mark.parametrize(
    "hook", [None, lambda _, args, out: 2 * out, lambda _, args, out: out.mul_(2)]
)
def test_a_layer_whose_weights_do_not_make_its_output_stays(hook):
    x = data("mlp")
    teacher, student, history = doubling(x[0][:1], hook)
    fitted = reconstruct(student, teacher, x, history, samples=400)
    assert torch.equal(fitted[2].weight, student[2].weight)


def test_a_hook_that_changes_nothing_makes_no_difference():
    x = data("mlp")
    teacher, student, history = doubling(x[0][:1], lambda *_: None)
    fitted = reconstruct(student, teacher, x, history, samples=400)
    for model in (teacher, student):
        model[2]._forward_hooks.clear()
    expected = reconstruct(student, teacher, x, history, samples=400)
    assert torch.equal(fitted[2].weight, expected[2].weight)
    assert not torch.equal(fitted[2].weight, student[2].weight)
