import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch_pruning as tp
from models import CASES, IMAGES, ROWS, case, mlp, snapshot
from torch import nn

from simmim_ext import SimMIMError
from simmim_ext.equivalence import check_mask_equivalence
from simmim_ext.graph import trace_units
from simmim_ext.removal import remove_units
from simmim_ext.timelimit import run_limited


def members(group):
    return {(m.module, m.axis): len(m.indices) for m in group.members}


def test_mlp_has_its_hidden_units():
    (group,) = trace_units(mlp(), ROWS)
    assert (group.name, group.units) == ("0", 10)
    assert members(group) == {("0", "out"): 10, ("2", "in"): 10}
    assert [m.module for m in group.readers] == ["2"]


def test_cnn_groups_follow_norms_slopes_and_flattening():
    model, x = case("cnn")
    first, second, third = trace_units(model, x)
    assert members(first) == {
        ("features.0", "out"): 6,
        ("features.1", "out"): 6,
        ("features.4", "in"): 6,
    }
    assert members(second) == {
        ("features.4", "out"): 8,
        ("features.5", "out"): 8,
        ("hidden", "in"): 32,
    }
    (columns,) = second.readers
    assert columns.indices == tuple(range(32))
    assert columns.units == tuple(i // 4 for i in range(32))  # 8 channels of 2 x 2 pixels
    assert members(third) == {("hidden", "out"): 9, ("norm", "out"): 9, ("head", "in"): 9}


def test_residual_sum_and_concatenation_are_coupled():
    model, x = case("residual")
    groups = {group.name: group for group in trace_units(model, x)}
    assert set(groups) == {"stem", "side", "merge"}
    assert members(groups["stem"]) == {
        ("stem", "out"): 6,
        ("depthwise", "out"): 6,
        ("branch", "in"): 6,
        ("branch", "out"): 6,
        ("side", "in"): 6,
        ("merge", "in"): 6,
    }
    (merge,) = (m for m in groups["side"].members if m.module == "merge")
    assert merge.indices == tuple(range(6, 11))


def test_shared_slope_between_convolution_and_flatten():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.PReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)
    )
    (group,) = trace_units(model, IMAGES)
    assert members(group) == {("0", "out"): 3, ("4", "in"): 27}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_callers_model_is_untouched(name, training):
    model, x = case(name)
    model.train(training)
    next(model.parameters()).requires_grad_(False)
    next(model.parameters()).grad = None
    before = snapshot(model)
    trace_units(model, x)
    assert snapshot(model) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_frozen_parameters_and_disabled_gradients_hide_nothing(mode):
    model = mlp()
    expected = trace_units(model, ROWS)
    model.requires_grad_(False)
    assert trace_units(model, ROWS) == expected
    model[0].requires_grad_(True)
    with mode():
        assert trace_units(model, ROWS.clone()) == expected


@pytest.mark.parametrize("by_name", [True, False])
def test_ignored_layers_keep_their_outputs(by_name):
    model, x = case("cnn")
    ignored = ["features", "hidden"] if by_name else [model.features, model.hidden]
    assert trace_units(model, x, ignored_layers=ignored) == ()
    rest = trace_units(model, x, ignored_layers=ignored[:1])
    assert [group.name for group in rest] == ["hidden"]


def test_ignored_layers_by_pattern():
    model, x = case("cnn")
    assert [group.name for group in trace_units(model, x, ignored_layers=["feat*.?"])] == ["hidden"]


def test_parameters_of_no_layer_go_with_their_units():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)
            self.gamma = nn.Parameter(torch.ones(1, 8))

        def forward(self, x):
            return self.b(self.a(x) * self.gamma)

    (group,) = trace_units(Scaled(), ROWS)
    assert members(group) == {("a", "out"): 8, ("gamma", "1"): 8, ("b", "in"): 8}


def test_channels_that_are_normalized_together_are_one_unit():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    )
    (group,) = trace_units(model, IMAGES)
    assert (group.units, group.channels) == (4, 2)
    assert group.members[0].units == (0, 0, 1, 1, 2, 2, 3, 3)
    assert members(group) == {("0", "out"): 8, ("1", "out"): 8, ("4", "in"): 288}


def test_channels_that_are_normalized_with_others_are_refused():
    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 6, 1)
            self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.cat([self.a(x), self.b(x)], 1)
            return self.head(self.norm(x).mean((2, 3)))

    with pytest.raises(SimMIMError, match="'norm' takes its channels in groups, and those of 'b'"):
        trace_units(Concatenated(), IMAGES)


def test_unknown_ignored_layer_is_named():
    with pytest.raises(SimMIMError, match="ignored_layers holds 'nowhere', which is no layer"):
        trace_units(mlp(), ROWS, ignored_layers=["nowhere"])
    with pytest.raises(SimMIMError, match="ignored_layers holds Linear, which is no layer"):
        trace_units(mlp(), ROWS, ignored_layers=[nn.Linear(2, 2)])


def test_outputs_are_never_units_even_through_operations():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.b(self.a(x).tanh()).log_softmax(-1) / 2

    assert [group.name for group in trace_units(Head(), ROWS)] == ["a"]


class Answers(nn.Module):
    """Returns its features as well, in the given form, and what another head makes of them."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 6)
        self.head, self.other, self.form = nn.Linear(6, 5), nn.Linear(6, 3), form

    def forward(self, x):
        features = self.b(self.a(x).relu()).relu()
        return self.form(self.head(features), features, self.other(features))


FORMS = {
    "tuple": lambda y, features, more: (y, features, more),
    "list": lambda y, features, more: [y, features, more],
    "dict": lambda y, features, more: {"logits": y, "more": [features, (more,)]},
    "object": lambda y, features, more: SimpleNamespace(logits=y, features=features, more=more),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_everything_that_is_returned_keeps_its_width(form):
    model = Answers(form)
    (group,) = trace_units(model, ROWS)
    assert group.name == "a"
    pruned, history = remove_units(model, [group], {"a": [1, 2]})
    check_mask_equivalence(model, pruned, history, ROWS)


def test_another_head_takes_part_where_the_features_are_not_returned():
    model = Answers(lambda y, features, more: (y, more))
    groups = trace_units(model, ROWS)
    assert [group.name for group in groups] == ["a", "b"]
    assert [member.module for member in groups[1].readers] == ["head", "other"]


def test_forward_fn_says_what_is_an_output():
    model = Answers(FORMS["tuple"])

    def first(model, batch):
        return model(batch)[0]

    groups = trace_units(model, ROWS, ignored_layers=["other"], forward_fn=first)
    assert [group.name for group in groups] == ["a", "b"]


def test_units_added_to_the_inputs_are_no_group():
    class AddsInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 5)

        def forward(self, x):
            return self.b(x + self.a(x).relu())

    assert trace_units(AddsInput(), ROWS) == ()


def test_forward_fn_and_keyword_batches():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, *, x, scale):
            return {"result": self.net(x) * scale}

    batch = {"x": ROWS, "scale": torch.ones(7, 1)}
    groups = trace_units(
        Keywords(), batch, forward_fn=lambda model, batch: model(**batch)["result"]
    )
    assert [group.name for group in groups] == ["net.0"]


def test_module_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.loop, self.b = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(self.loop(self.loop(x).relu()).relu())

    (group,) = trace_units(Twice(), ROWS)
    assert ("loop", "in") in members(group)
    assert ("loop", "out") in members(group)


def untraceable():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).detach())

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)
            self.gamma = nn.Parameter(torch.ones(4, 2))

        def forward(self, x):
            return self.b(self.a(x) * self.gamma.flatten())

    tied = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 2))
    tied[2].weight = tied[0].weight
    decoder = nn.Sequential(
        nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)
    )
    decoder[4].weight = decoder[0].weight
    normed = mlp()
    nn.utils.parametrizations.weight_norm(normed[0])
    adapted = mlp()
    adapted[0].extra = nn.Parameter(torch.ones(1))
    return {
        "unused": (Detached(), ROWS, "layer 'a' is not reached from the outputs"),
        "parameter": (Scaled(), ROWS, r"'gamma' of shape \[4, 2\] belongs to no"),
        "tied": (tied, ROWS, "'0.weight' and '2.weight' are one parameter"),
        "tied decoder": (
            decoder,
            ROWS,
            "removing units of '0' and '2' would untie them; .* put '0' and '2' in ignored_layers",
        ),
        "parametrized": (normed, ROWS, "layer '0' is parametrized"),
        "adapter": (
            adapted,
            ROWS,
            r"layer '0' has parameters besides weight and bias \(extra\), as",
        ),
        "grouped": (
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1, groups=2)),
            IMAGES,
            r"layer '1' is a grouped convolution \(groups=2\)",
        ),
        "kind": (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 1)),
            IMAGES,
            "layer '1' is a ConvTranspose2d, whose units cannot be removed",
        ),
        "shape": (mlp(), ROWS[:, :5], r"example_inputs: .* failed on a batch, .* shape \[7, 5\]"),
    }


@pytest.mark.parametrize("name", untraceable())
def test_what_cannot_be_traced_is_named(name):
    model, x, text = untraceable()[name]
    with pytest.raises(SimMIMError, match=text):
        trace_units(model, x, forward_fn=lambda m, b: m(b).flatten(1))


def test_unsupported_layers_can_be_left_alone():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.Conv2d(4, 8, 1, groups=2),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(384, 2),
    )
    groups = trace_units(model, IMAGES, ignored_layers=["1"])
    assert [group.name for group in groups] == ["2"]


def test_endless_tracing_is_stopped(monkeypatch):
    def endless(*args, **kwargs):
        while True:
            with contextlib.suppress(Exception):  # as stubborn as it gets
                time.sleep(0.001)

    monkeypatch.setattr(tp.DependencyGraph, "get_all_groups", endless)
    with pytest.raises(SimMIMError, match=r"did not end within 0\.2 s"):
        trace_units(mlp(), ROWS, time_limit=0.2)
    assert not [t for t in threading.enumerate() if t.name == "simmim_ext.run_limited"]


def test_time_limit_works_outside_the_main_thread():
    outcome = []

    def work():
        try:
            run_limited(lambda: [None for _ in iter(int, 1)], 0.2)
        except TimeoutError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert outcome == ["stopped after 0.2 s"]


def test_errors_of_the_limited_work_come_through():
    with pytest.raises(ZeroDivisionError):
        run_limited(lambda: 1 // 0, 5)


def test_model_that_cannot_be_copied():
    model = mlp()
    model.cache = model(ROWS)
    with pytest.raises(SimMIMError, match="the model cannot be copied"):
        trace_units(model, ROWS)


def test_what_an_ignored_gru_reads_must_be_ignored_as_well():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gru = nn.Conv1d(4, 16, 3), nn.GRU(16, 8, batch_first=True)
            self.hidden, self.head = nn.Linear(8, 24), nn.Linear(24, 5)

        def forward(self, x):
            x = self.gru(self.conv(x).relu().transpose(1, 2))[0][:, -1]
            return self.head(self.hidden(x).relu())

    model, x = Recurrent(), torch.randn(3, 4, 10)
    text = (
        "units could not be followed, as happens into a GRU; put the layers that are read by 'gru'"
    )
    with pytest.raises(SimMIMError, match=text):
        trace_units(model, x, ignored_layers=["gru"])
    groups = trace_units(model, x, ignored_layers=["gru", "conv"])
    assert [group.name for group in groups] == ["hidden"]
