import warnings
from dataclasses import replace

import pytest
import torch
from models import CASES, case, mlp, snapshot
from torch import nn

from simmim_ext import (
    CompressConfig,
    Scores,
    SimMIMError,
    compress,
    entropy,
    mutual_information,
    score,
)
from simmim_ext.config import CRITERIA as NAMES
from simmim_ext.criteria import CRITERIA, metric_root
from simmim_ext.modes import seeded

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")


def data(name, samples=200):
    generator = torch.Generator().manual_seed(5)
    shape = (12,) if name == "mlp" else (1, 8, 8)
    return torch.randn(samples, *shape, generator=generator).split(64)


def test_every_criterion_can_be_configured():
    assert set(CRITERIA) == set(NAMES)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", CASES)
def test_every_criterion_scores_every_model(name, criterion):
    model, _ = case(name)
    model.train()
    before = snapshot(model)
    scores = score(model, data(name), criterion=criterion)
    assert snapshot(model) == before
    assert isinstance(scores, Scores)
    assert scores.criterion == criterion
    assert set(scores) == {group.name for group in scores.groups}
    for group in scores.groups:
        values, order = scores[group.name], scores.order[group.name]
        assert values.shape == (group.units,)
        assert torch.isfinite(values).all()
        assert sorted(order) == list(range(group.units))
        sorted_values = values[list(order)]
        assert (sorted_values[:-1] >= sorted_values[1:] - 1e-6).all()
        assert scores.information[group.name].shape == (group.units,)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_repeats_itself(criterion):
    model, _ = case("cnn")
    one = score(model, data("cnn"), criterion=criterion)
    torch.manual_seed(12345)
    two = score(model, data("cnn"), criterion=criterion)
    assert one.order == two.order
    assert all(torch.equal(one[name], two[name]) for name in one)


def with_dead_and_double_units():
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0, -1  # never speaks
        model[0].weight[7], model[0].bias[7] = model[0].weight[2], model[0].bias[2]
    return model


@pytest.mark.parametrize("criterion", ["simmim", "entropy", "relevance", "activation"])
def test_dead_unit_comes_last(criterion):
    model = with_dead_and_double_units()
    order = score(model, data("mlp", 600), criterion=criterion).order["0"]
    assert order[-1] == 3


@pytest.mark.parametrize("criterion", ["simmim", "redundancy", "mrmr", "cmim"])
def test_only_one_of_two_copies_is_wanted(criterion):
    model = with_dead_and_double_units()
    order = score(model, data("mlp", 600), criterion=criterion).order["0"]
    assert max(order.index(2), order.index(7)) >= 7


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_units_that_never_vary_say_nothing(value):
    for seed in range(3):
        torch.manual_seed(seed)
        scores = score(mlp(), [torch.full((300, 12), value)])
        assert not scores["0"].any()
        assert scores.order["0"] == tuple(range(10))


@pytest.mark.parametrize("spread", [1e-7, 1e-6, 1e-5, 1e-4])
def test_units_of_wide_layers_that_hardly_vary_say_no_more_than_they_can(spread):
    torch.manual_seed(0)
    x = 1 + spread * torch.randn(300, 12)
    scores = score(mlp(hidden=400).double(), [x.double()])
    assert scores["0"].max() < 20  # and not a logarithm of rounding errors, hundreds of nats


def test_a_single_sample_is_refused():
    with pytest.raises(SimMIMError, match=r"^calibration: at least 2 samples are needed, got 1;"):
        score(mlp(), [torch.rand(1, 12)])


def test_relevance_and_entropy_are_the_public_functions():
    model = mlp()
    x = torch.cat(data("mlp"))
    with torch.no_grad():
        a, p = model[:2](x), model(x).softmax(1)
    span = (float(a.min()), float(a.max()))
    scores = score(model, data("mlp"), criterion="relevance")
    expected = mutual_information(a, probabilities=p, bins=16, range=span)
    torch.testing.assert_close(scores["0"], expected)
    torch.testing.assert_close(scores.information["0"], expected)
    torch.testing.assert_close(scores.entropy["0"], entropy(a, bins=16, range=span))
    apart = score(
        model, data("mlp"), criterion="entropy", config=CompressConfig(bins=9, shared_range=False)
    )
    torch.testing.assert_close(apart["0"], entropy(a, bins=9))


def test_criterion_of_the_config():
    config = CompressConfig(criterion="random", seed=3)
    one = score(mlp(), data("mlp"), config=config)
    assert one.criterion == "random"
    other = score(mlp(), data("mlp"), config=CompressConfig(criterion="random", seed=4))
    assert one.order != other.order


def test_scores_of_simmim_are_information_that_would_be_lost():
    scores = score(mlp(), data("mlp"))
    values = scores["0"][list(scores.order["0"])]
    assert (values[:-1] > values[1:]).all()
    assert values[-1] > 0


def test_metric_is_half_fisher_half_even():
    fisher = torch.diag(torch.tensor([6.0, 2.0, 0.0])).double()
    root = metric_root(fisher)
    expected = torch.diag(torch.tensor([6 / 16, 2 / 16, 0.0])) + torch.eye(3) / 6
    torch.testing.assert_close(root @ root.T, expected.double())


@pytest.mark.parametrize("criterion", ["simmim", "relevance", "cmim", "taylor"])
def test_regression(criterion):
    model = mlp(outputs=1)
    scores = score(model, data("mlp"), criterion=criterion, output="values")
    assert len(scores.order["0"]) == 10


def test_labels_are_not_needed_and_serve_taylor():
    model = mlp()
    labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in data("mlp")]
    assert score(model, labelled).order == score(model, data("mlp")).order
    a = score(model, labelled, criterion="taylor")
    b = score(model, data("mlp"), criterion="taylor")
    assert not torch.equal(a["0"], b["0"])


def test_limits_samples_and_warns_of_few():
    model = mlp()
    config = CompressConfig(calibration_samples=100)
    first = score(model, data("mlp"), config=config)
    assert first.order == score(model, [torch.cat(data("mlp"))[:100]], config=config).order
    with pytest.warns(UserWarning, match="100 calibration samples are few; give at least 1000"):
        score(model, data("mlp"), config=config)
    settings = {"constraints": {"units": 0.5}, "config": replace(config, epochs=0)}
    with pytest.warns(UserWarning, match="80 .* are few; .* a quarter more where") as found:
        compress(model, calibration=data("mlp"), **settings)
    assert [warning.filename for warning in found] == [__file__]  # of the caller, not of ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(model, data("mlp", 1000))


def shuffled(samples=200):
    return torch.utils.data.DataLoader(torch.cat(data("mlp", samples)), batch_size=64, shuffle=True)


def test_a_shuffling_loader_is_read_once_and_alike_each_time(monkeypatch):
    model = nn.Sequential(mlp(outputs=9), nn.ReLU(), nn.Linear(9, 4))
    with seeded(0):
        samples = list(shuffled())
    expected = score(model, samples)
    monkeypatch.setattr("simmim_ext.collect.PASS_BYTES", 1)  # a pass for each layer
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = score(model, shuffled())
    assert torch.equal(torch.get_rng_state(), before)
    assert found.order == expected.order
    assert list(found) == ["0.0", "0.2"]
    for name in found:
        torch.testing.assert_close(found.information[name], expected.information[name])
    torch.manual_seed(2)
    assert score(model, shuffled()).order == found.order


def test_bad_arguments_and_models_are_refused():
    with pytest.raises(ValueError, match="criterion must be one of simmim, entropy, .* got 'l3'"):
        score(mlp(), data("mlp"), criterion="l3")
    for criterion in ("", ["simmim"], torch.zeros(2)):
        with pytest.raises(ValueError, match="score: criterion must be one of simmim, entropy, "):
            score(mlp(), data("mlp"), criterion=criterion)
    with pytest.raises(SimMIMError, match="no units that can be removed"):
        score(nn.Linear(12, 3), data("mlp"))
    with pytest.raises(SimMIMError, match="no sample came out"):
        score(mlp(), [])
    broken = mlp()
    with torch.no_grad():
        broken[2].weight[0, 0] = float("nan")
    with pytest.raises(SimMIMError, match="outputs are not finite"):
        score(broken, data("mlp"), output="classes")
    half = mlp()
    with torch.no_grad():
        half[0].weight[0, 0] = float("inf")
        half[2].weight[:, 0] = 0
    with pytest.raises(SimMIMError, match="not finite"):
        score(half, data("mlp"), output="classes")


class Tokens(nn.Module):
    """A text classifier whose hidden layer sees its tokens in another arrangement."""

    def __init__(self, arrange):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 12)
        self.back, self.head, self.arrange = nn.Linear(12, 8), nn.Linear(8, 4), arrange

    def forward(self, tokens, attention_mask=None):
        x = self.embed(tokens)
        y, restore = self.arrange(x)
        return self.head((x + restore(self.back(self.hidden(y).relu()))).mean(1))


ARRANGEMENTS = {
    "tokens first": lambda x: (x.transpose(0, 1), lambda y: y.transpose(0, 1)),
    "flat": lambda x: (x.flatten(0, 1), lambda y: y.view(x.shape)),
    "windows": lambda x: (x.reshape(2 * len(x), -1, 8), lambda y: y.view(x.shape)),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_the_arrangement_of_tokens_does_not_matter(name):
    data = [torch.randint(20, (100, 6), generator=torch.Generator().manual_seed(0))]
    plain, other = (
        score(Tokens(arrange), data, criterion="relevance")
        for arrange in (lambda x: (x, lambda y: y), ARRANGEMENTS[name])
    )
    assert plain.keys() == other.keys() == {"embed", "hidden"}
    for layer, values in plain.items():
        assert torch.allclose(values, other[layer], atol=1e-6)


@pytest.mark.parametrize("criterion", ["relevance", "simmim"])
def test_tokens_before_samples_are_told_apart_where_they_are_as_many_or_masked(criterion):
    # Of as many samples as tokens.
    tokens = torch.randint(20, (40, 6, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 2, 3, 1, 5, 4])[:, None]
    data = [{"tokens": t, "attention_mask": mask.long()} for t in tokens]
    plain, other = (
        score(Tokens(arrange), data, criterion=criterion)
        for arrange in (lambda x: (x, lambda y: y), ARRANGEMENTS["tokens first"])
    )
    for layer, values in plain.items():
        assert torch.allclose(values, other[layer], atol=1e-6)


def test_rows_that_are_not_as_many_of_each_sample_are_refused():
    def some(x):
        chosen = torch.ones(x.shape[:2], dtype=torch.bool)
        chosen[0, 3:] = False
        return x[chosen], lambda y: x.masked_scatter(chosen[..., None], y)

    data = [torch.randint(20, (100, 6), generator=torch.Generator().manual_seed(0))]
    with pytest.raises(SimMIMError, match="of 'hidden' are read in 597 rows of 100 samples"):
        score(Tokens(some), data, criterion="relevance", ignored_layers=["embed"])


class Branches(nn.Module):
    """Branches behind an input that may want a gradient, as gradient checkpointing has it."""

    def __init__(self, wanted):
        super().__init__()
        torch.manual_seed(0)
        self.wanted = wanted
        self.a, self.b = (nn.Sequential(nn.Linear(12, 10), nn.ReLU()) for _ in range(2))
        self.out_a, self.out_b = nn.Linear(10, 4), nn.Linear(10, 4)

    def forward(self, x):
        if self.wanted and torch.is_grad_enabled():
            x = x.detach().requires_grad_(True)
        return self.out_a(self.a(x)) + self.out_b(self.b(x))


@pytest.mark.parametrize("criterion", ["simmim", "taylor", "hessian"])
def test_models_that_want_gradients_of_their_own_score_the_same(criterion):
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(1)).split(100)
    plain, wanted = (score(Branches(w), x, criterion=criterion) for w in (False, True))
    assert plain.order == wanted.order
    for name, divergence in plain.divergence.items():
        assert torch.equal(divergence, wanted.divergence[name])


class Split(nn.Module):
    """As MixNet's blocks: channels of one convolution that two others read by halves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(10, 12, 1)
        self.firsts = nn.ModuleList(nn.Conv2d(4, 5, 1) for _ in range(2))
        self.seconds = nn.ModuleList(nn.Conv2d(6, 5, 1) for _ in range(2))
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        for layer, parts in ((self.first, self.firsts), (self.second, self.seconds)):
            halves = layer(x).relu().chunk(2, 1)
            x = torch.cat([part(half) for part, half in zip(parts, halves, strict=True)], 1)
        return self.head(x.mean((2, 3)))


def test_units_that_are_split_among_layers_are_all_named():
    data = [torch.randn(100, 3, 4, 4)]
    text = r"no layer reads all units of 'first', 'second', .* split .* \(GLU\); put all of these"
    with pytest.raises(SimMIMError, match=text):
        score(Split(), data)
    left = score(Split(), data, ignored_layers=["first", "second"])
    assert set(left) == {"firsts.0", "firsts.1", "seconds.0", "seconds.1"}


@pytest.mark.parametrize("how", ["chunk", "slice", "glu"])
def test_units_that_gate_each_other_in_one_layer_are_named_with_the_cause(how):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(12, 20), nn.Linear(10, 4)

        def forward(self, x):
            x = self.up(x)
            if how == "glu":
                return self.down(nn.functional.glu(x))
            value, gate = x.chunk(2, -1) if how == "chunk" else (x[:, :10], x[:, 10:])
            return self.down(value * gate.sigmoid())

    with pytest.raises(SimMIMError, match=r"units of 'up'.* gate each other \(GLU\).* put "):
        score(Gated(), [torch.randn(100, 12)])


class Roots(nn.Module):
    """Its outputs are finite, and its gradients are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.third(self.second(self.first(x)).sqrt().nan_to_num())


def test_what_is_not_finite_inside_is_named():
    x = torch.randn(1000, 12)
    text = r"inputs or outputs of '{}', their products or the gradients .* are not finite; scale"
    with pytest.raises(SimMIMError, match=text.format("second")):
        score(Roots(), x.split(250))
    with pytest.raises(SimMIMError, match=text.format("2")):
        score(mlp(), [batch * 1e20 for batch in x.split(250)])
