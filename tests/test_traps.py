"""Each trap of structured pruning that is known, by name: it raises, or it is handled."""

import pytest
import torch
from architectures import architecture
from models import ROWS, mlp
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, prune, score
from simmim_ext.graph import trace_units
from simmim_ext.removal import apply_history, remove_units

pytestmark = pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")
UNIFORM = CompressConfig(epochs=0, allocation="uniform", reconstruct=False)


def test_all_scores_tied_still_meets_the_budget():
    result = prune(
        mlp(),
        {"0": torch.ones(10)},
        constraints={"units": 0.5},
        example_inputs=ROWS,
        config=UNIFORM,
    )
    assert result.model[0].out_features == 5
    assert result.report["layers"][0]["after"] == 5


@pytest.mark.parametrize(
    "values", [torch.full((10,), torch.nan), torch.ones(9), torch.ones(11)], ids=["nan", "9", "11"]
)
def test_scores_that_are_nan_or_of_a_wrong_length_are_refused(values):
    with pytest.raises(SimMIMError, match="must hold 10 finite values for '0'"):
        prune(mlp(), {"0": values}, constraints={"units": 0.5}, example_inputs=ROWS, config=UNIFORM)


@pytest.mark.parametrize("values", [None, "high", [None] * 10, [[1.0], [2.0, 3.0]]])
def test_scores_that_are_no_numbers_are_refused(values):
    text = "must hold 10 finite values for '0', got .*; score this model, or put the layer in ign"
    with pytest.raises(SimMIMError, match=text):
        prune(mlp(), {"0": values}, constraints={"units": 0.5}, example_inputs=ROWS, config=UNIFORM)


def test_missing_scores_are_refused():
    with pytest.raises(SimMIMError, match="must hold 10 finite values for '0', got none"):
        prune(mlp(), {}, constraints={"units": 0.5}, example_inputs=ROWS, config=UNIFORM)


def test_budgets_are_monotonic_and_met_from_below():
    model, data = architecture("mobilenet")
    scores = score(model, data)
    total = sum(p.numel() for p in model.parameters())
    counts = []
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        result = prune(model, scores, constraints={"params": share})
        counts.append(sum(p.numel() for p in result.model.parameters()))
        assert counts[-1] <= share * total
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)


def test_history_is_recorded_once_and_replays_once():
    model = mlp()
    pruned, history = remove_units(model, trace_units(model, ROWS), {"0": [1, 4]})
    assert len(history) == 2
    assert apply_history(mlp(), history)[0].out_features == pruned[0].out_features == 2


@pytest.mark.parametrize("frozen", ["all", "some"])
def test_frozen_parameters_hide_no_group_and_stay_frozen(frozen):
    model = mlp()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen == "some" and name != "0.weight")
    (group,) = trace_units(model, ROWS)
    pruned, _ = remove_units(model, [group], {"0": [1, 2]})
    flags = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (model, pruned)]
    assert flags[0] == flags[1]


def test_the_classifier_never_shrinks():
    result = prune(
        mlp(), {"0": torch.rand(10)}, constraints={"params": 0.3}, example_inputs=ROWS,
        config=UNIFORM,
    )  # fmt: skip
    assert result.model[2].out_features == 4


def test_tracing_leaves_training_mode_and_the_next_call_alone():
    model = mlp().train()
    first = trace_units(model, ROWS, ignored_layers=["0"])
    assert model.training
    assert first == ()
    assert len(trace_units(model, ROWS)) == 1


def test_an_optimizer_built_before_has_none_of_the_results_parameters():
    model, data = architecture("mlp")
    result = compress(model, calibration=data, constraints={"units": 0.5}, config=UNIFORM)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}


def test_heads_are_told_from_shapes_where_no_attribute_counts_them():
    model, data = architecture("heads together")  # has head_size alone
    heads = [g for g in trace_units(model, data[0]) if g.channels > 1]
    assert [(g.units, g.channels) for g in heads] == [(4, 4)] * 2


def test_rotary_head_channels_are_never_split():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)  # with its default cache, which is no obstacle
    groups = trace_units(model, {"input_ids": torch.arange(6)[None]})
    (heads,) = (g for g in groups if g.name.endswith("self_attn"))
    for member in heads.members:
        for unit in range(heads.units):
            own = [i for i, u in zip(member.indices, member.units, strict=True) if u == unit]
            assert own == list(range(own[0], own[0] + len(own)))
            assert len(own) % 4 == 0


def test_members_of_unlike_lengths_after_flatten_go_by_unit():
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 3))
    x = torch.randn(2, 1, 8, 8)
    (group,) = trace_units(model, x)
    pruned, _ = remove_units(model, [group], {"0": [3, 9]})
    assert pruned[2].in_features == 72
    columns = model[2].weight.view(3, 16, 36)[:, [3, 9]].flatten(1)
    assert torch.equal(pruned[2].weight, columns)


def test_a_regression_model_is_judged_by_its_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 3))
    data = list(torch.randn(400, 12).split(100))
    result = compress(
        model,
        calibration=data,
        constraints={"units": 0.5},
        output="values",
        config=CompressConfig(epochs=0),
        progress=False,
    )
    fidelity = result.report["fidelity"]
    assert result.report["output"] == "values"
    assert fidelity["agreement"] is None
    assert fidelity["relative_error"] < 0.5
    assert fidelity["rank_correlation"] > 0.8


def test_tied_weights_count_once_in_a_budget():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.hidden = nn.Embedding(20, 16), nn.Linear(16, 40)
            self.back, self.head = nn.Linear(40, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens)
            return self.head(x + self.back(self.hidden(x).relu()))

    torch.manual_seed(0)
    model, data = Tied(), [torch.randint(20, (400, 6))]
    result = compress(model, calibration=data, constraints={"params": 0.6}, config=UNIFORM)
    params = [sum(p.numel() for p in m.parameters()) for m in (model, result.model)]
    assert 0.6 * params[0] - 33 < params[1] <= 0.6 * params[0]  # one more hidden unit is too many
    assert result.model.head.weight is result.model.embed.weight


def test_units_that_the_tracer_leads_astray_are_refused():
    class Astray(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.side = nn.BatchNorm1d(3), nn.Conv1d(3, 2, 3, padding=1)
            self.mix, self.more = nn.Conv1d(5, 5, 3, padding=1), nn.Conv1d(5, 2, 3, padding=1)
            self.head = nn.Linear(56, 4)

        def forward(self, x):
            x = self.norm(x).relu()
            x = torch.cat([x, self.side(x)], 1)
            x = (x + self.mix(x)).relu()
            return self.head(torch.cat([x, self.more(x)], 1).flatten(1))

    with pytest.raises(SimMIMError, match=r"of 'side' could not be followed into 'more', as happ"):
        trace_units(Astray(), torch.randn(3, 3, 8))


def test_no_layer_before_a_concatenation_loses_all():
    model, data = architecture("loop after concatenation")
    (group,) = trace_units(model, data[0])
    of_side = next(m for m in group.members if (m.module, m.axis) == ("side", "out")).units
    values = torch.ones(group.units).index_fill(0, torch.tensor(of_side), 0.0)
    result = prune(
        model,
        {group.name: values},
        constraints={"units": 0.3},
        example_inputs=data[0],
        config=UNIFORM,
    )
    assert result.model.side.out_features == 1
    assert result.model.loop.in_features == 6
    kept = [unit for unit in range(group.units) if unit not in of_side]
    with pytest.raises(SimMIMError, match=r"'side' would lose all of its 8 channels; put 'loop'"):
        remove_units(model, [group], {group.name: kept})


def test_maxout_says_which_layer_to_ignore():
    class Maxout(nn.Module):
        def forward(self, x):
            return x.view(-1, 8, 2).amax(-1)

    model = nn.Sequential(nn.Linear(12, 16), Maxout(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4))
    data, config = torch.randn(200, 12).split(50), CompressConfig(epochs=0)
    settings = {"calibration": data, "constraints": {"params": 0.8}, "config": config}
    text = "'2' would lose all of its 8 channels; put '0' in ignored_layers"
    with pytest.raises(SimMIMError, match=text):
        compress(model, **settings)
    compress(model, **settings, ignored_layers=["0"])


def test_fpgm_of_a_model_in_bf16():
    model, data = architecture("bf16")
    scores = score(model, data, criterion="fpgm")
    assert all(torch.isfinite(values).all() for values in scores.values())


@pytest.mark.parametrize("positions", [(), (5,), (4, 4)])
def test_group_norm_of_one_group_is_a_norm_over_channels(positions):
    torch.manual_seed(0)
    kind = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d}[len(positions)]
    kernel = (1,) if positions else ()
    model = nn.Sequential(
        kind(6, 12, *kernel), nn.GroupNorm(1, 12), nn.ReLU(), kind(12, 4, *kernel), nn.Flatten()
    )
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    nn.init.uniform_(model[1].bias, -0.5, 0.5)
    result = compress(
        model, calibration=[torch.randn(300, 6, *positions)], constraints={"units": 0.5},
        config=UNIFORM, output="values",
    )  # fmt: skip
    assert result.model[1].num_channels == 6


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_loses_the_statistics_of_lost_channels(affine):
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=affine, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    x = torch.randn(40, 3, 6, 6)
    model(x)
    mean = norm.running_mean.clone()
    result = prune(
        model.eval(), {"0": torch.arange(8.0)}, constraints={"units": 3}, example_inputs=x,
        config=UNIFORM,
    )  # fmt: skip
    assert torch.equal(result.model[1].running_mean, mean[5:])
    assert result.model[1].num_features == 3


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of images, as ConvNeXt's."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("channels", [8, 16])  # 8 of which are left
def test_a_norm_of_images_as_wide_as_they_have_channels(channels):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1), LayerNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4, 8),
        nn.Flatten(),
    )  # fmt: skip
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    result = prune(
        model, {"0": torch.arange(float(channels))}, constraints={"units": channels // 2},
        example_inputs=torch.randn(20, 3, 8, 8), config=UNIFORM,
    )  # fmt: skip
    assert result.model[1].normalized_shape == (channels // 2,)


@pytest.mark.parametrize("scale", [0.0, 1e-12])
def test_outputs_that_hardly_vary(scale):
    model = mlp()
    model[-1].weight.data.mul_(scale)
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    config = CompressConfig(epochs=0)
    result = compress(model, calibration=[x], constraints={"units": 0.5}, config=config)
    assert result.report["fidelity"]["kl"] == 0


class TokensToLogits(nn.Module):
    """Its head is the embedding, as a product of the caller's own."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.back = (
            nn.Embedding(20, 16),
            nn.Linear(16, 40),
            nn.Linear(40, 16),
        )

    def forward(self, tokens):
        x = self.embed(tokens)
        return (x + self.back(self.hidden(x).relu())) @ self.embed.weight.T


def test_a_product_with_a_parameter_is_no_attention():
    torch.manual_seed(0)
    model, data = TokensToLogits(), [torch.randint(20, (100, 6))]
    result = compress(model, calibration=data, constraints={"params": 0.7}, config=UNIFORM)
    assert result.model.hidden.out_features < 40
    assert result.model.embed.embedding_dim == 16


def test_a_model_that_is_attention_itself_is_told_what_to_ignore():
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 4)

        def forward(self, x):
            left, right = self.left(x), self.right(x)
            return self.head((left @ right.T).softmax(-1) @ right)

    text = "the model, a Mix, multiplies activations .* put the layers that make them in ignored_la"
    with pytest.raises(SimMIMError, match=text):
        trace_units(Mix(), ROWS)


def test_all_layers_that_cannot_lose_units_are_named_at_once():
    ups = nn.ConvTranspose2d(8, 8, 2), nn.ConvTranspose2d(8, 4, 2)
    between = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), ups[0], *between, ups[1], nn.Flatten())
    x = torch.randn(2, 3, 4, 4)
    text = (
        r"the layer '1' is a ConvTranspose2d, .*; to leave it as it is, and 1 that cannot lose "
        "units either, put in ignored_layers: '1', '4'$"
    )
    with pytest.raises(SimMIMError, match=text):
        trace_units(model, x)
    assert [g.name for g in trace_units(model, x, ignored_layers=["1", "4"])] == ["2"]


class Flipping(nn.Module):
    """Attention in which torch-pruning loses its way."""

    def __init__(self):
        super().__init__()
        self.values = nn.Linear(8, 8)

    def forward(self, x, scale):
        left, right = (
            self.values(x).view(*x.shape[:-1], 2, 4).transpose(-1, -2).flatten(-2).chunk(2, -1)
        )
        x = torch.cat([(left @ right.mT).softmax(-1) @ left, right], -1) * scale
        return x.view(*x.shape[:-1], 2, 4).transpose(-1, -2).flatten(-2), None


@pytest.mark.parametrize("residual", [False, True])
def test_what_ignored_attention_reads_and_writes_stays_though_it_cannot_be_followed(residual):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.attention, self.last = nn.Linear(12, 8), Flipping(), nn.Linear(8, 4)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = self.first(x)
            made, _ = self.attention(x, scale=torch.ones(8))
            x = x + made if residual else made
            return self.last(x + self.down(self.up(x).relu()))

    model = Around()
    with pytest.raises(SimMIMError, match=r"'attention', a Flipping, multiplies"):
        trace_units(model, torch.randn(2, 6, 12))
    groups = trace_units(model, torch.randn(2, 6, 12), ignored_layers=["attention"])
    assert [group.name for group in groups] == ["up"]


class Shuffling(nn.Module):
    """As ShuffleNet: half of the channels pass, and all are shuffled in the end."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 5)

    def forward(self, x):
        left, right = self.stem(x).relu().chunk(2, 1)
        x = torch.cat([left, self.branch(right).relu()], 1)
        for _ in range(2):
            x = x.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
            left, right = x.chunk(2, 1)
            x = torch.cat([left, self.branch(right).relu()], 1)
        return self.head(x.mean((2, 3)))


class Router(nn.Linear):
    """A layer that returns a tuple, as Phi-3.5-MoE's."""

    def forward(self, x):
        return super().forward(x), None


class Routed(nn.Sequential):
    def forward(self, x):
        return self[2](self[1](self[0](x))[0])


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Shuffling, (3, 4, 4)), (lambda: Routed(*mlp()[:1], Router(10, 6), nn.Linear(6, 4)), (2, 12))],
    ids=["shuffled", "router"],
)
def test_what_torch_pruning_cannot_follow_is_not_blamed_on_the_data(make, shape):
    torch.manual_seed(0)
    model, x = make(), torch.randn(40, *shape)
    text = r"torch-pruning cannot follow the units .*Error: .* by compress\(granularity=\"weight\""
    with pytest.raises(SimMIMError, match=text):
        score(model, [x])
    compress(
        model,
        calibration=[x],
        constraints={"sparsity": 0.5},
        granularity="weight",
        config=CompressConfig(epochs=0),
    )


def test_what_an_ignored_layer_that_cannot_shrink_reads_stays():
    class Upsampling(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, 2)
            self.skip, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.first(x).relu()
            x = self.up(x) + nn.functional.interpolate(self.skip(x), scale_factor=2)
            return self.head(self.last(x.relu()).mean((2, 3)))

    groups = trace_units(Upsampling(), torch.randn(2, 3, 8, 8), ignored_layers=["up"])
    assert [group.name for group in groups] == ["last"]
