import itertools

import pytest
import torch

from simmim_ext import SimMIMError
from simmim_ext.widths import allocate, allocate_by_loss, check_constraints, unreachable

PRIORITIES = {"a": torch.tensor([9.0, 1, 5, 3]), "b": torch.tensor([2.0, 8, 4])}


def under(limit, costs=None):
    costs = costs or {"a": 1, "b": 1}
    return lambda widths: sum(costs[name] * width for name, width in widths.items()) <= limit


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (2, {"a": 1, "b": 1}),
        (3, {"a": 2, "b": 1}),  # pooled order 9 8 5 4 3 2 1
        (4, {"a": 2, "b": 2}),
        (5, {"a": 3, "b": 2}),
        (7, {"a": 4, "b": 3}),
    ],
)
def test_units_enter_in_pooled_order(limit, expected):
    assert allocate(PRIORITIES, under(limit)) == expected


def test_room_left_goes_to_cheaper_layers():
    # 9 and 8 fit; another unit of a (cost 5) does not, both others of b (cost 1) do.
    assert allocate(PRIORITIES, under(10, {"a": 5, "b": 1})) == {"a": 1, "b": 3}
    assert allocate(PRIORITIES, under(10, {"a": 5, "b": 1}), fill=False) == {"a": 1, "b": 1}


def test_budget_is_a_ceiling_and_nearly_reached():
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        priorities = {
            name: torch.rand(
                int(torch.randint(1, 30, (), generator=generator)), generator=generator
            )
            for name in "abcd"
        }
        costs = {name: int(torch.randint(1, 9, (), generator=generator)) for name in "abcd"}
        limit = 40 + trial
        widths = allocate(priorities, under(limit, costs))
        spent = sum(costs[name] * widths[name] for name in widths)
        open_layers = [costs[n] for n in widths if widths[n] < len(priorities[n])]
        assert spent <= limit
        assert all(1 <= widths[n] <= len(priorities[n]) for n in widths)
        assert not open_layers or limit - spent < min(open_layers)


def test_round_to_keeps_multiples_or_whole_layers():
    priorities = {"a": torch.arange(20.0), "b": torch.arange(6.0) - 10}
    assert allocate(priorities, under(17), round_to=8) == {"a": 8, "b": 6}
    assert allocate(priorities, under(22), round_to=8) == {"a": 16, "b": 6}
    assert allocate(priorities, under(26), round_to=8) == {"a": 20, "b": 6}
    assert allocate(priorities, under(13), round_to=8) is None


def test_ties_go_to_the_first_unit_and_layer():
    tied = {"b": torch.ones(3), "a": torch.ones(3)}
    assert allocate(tied, under(4)) == {"a": 2, "b": 2}
    assert allocate(tied, under(3)) == {"a": 2, "b": 1}


def chain(inputs, outputs):
    """Weights of two hidden layers in a chain, and what another unit of each adds."""

    def cost(w):
        return inputs * w["a"] + w["a"] * w["b"] + w["b"] * outputs

    def prices(w):
        return {"a": inputs + w["b"], "b": w["a"] + outputs}

    return cost, prices


@pytest.mark.parametrize(("inputs", "outputs"), [(100, 10), (10, 100), (3, 3)])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_priced_widths_are_nearly_the_best_of_all(inputs, outputs, share):
    cost, prices = chain(inputs, outputs)
    losses = {
        "a": 3 * torch.exp(-torch.arange(41.0) / 6),
        "b": torch.exp(-torch.arange(31.0) / 3),
    }
    limit = max(share * cost({"a": 40, "b": 30}), cost({"a": 1, "b": 1}))

    def fits(widths):
        return cost(widths) <= limit

    def loss(widths):
        return float(sum(losses[name][width] for name, width in widths.items()))

    widths = allocate_by_loss(losses, prices, fits, fits)
    assert fits(widths)
    every = ({"a": a, "b": b} for a, b in itertools.product(range(1, 41), range(1, 31)))
    best = min(map(loss, filter(fits, every)))
    assert best <= loss(widths) <= 1.1 * best
    flat = {name: torch.linspace(1, 0, len(one)) for name, one in losses.items()}
    assert allocate_by_loss(flat, prices, fits, lambda widths: False) is None


def test_the_dearer_of_two_like_layers_stays_narrower():
    losses = {name: torch.exp(-torch.arange(21.0) / 5) for name in "ab"}
    dear, even = (
        allocate_by_loss(losses, lambda w, p=price: p, under(60, price), under(60, price))
        for price in ({"a": 5, "b": 1}, {"a": 3, "b": 3})
    )
    assert even == {"a": 10, "b": 10}
    assert dear["a"] < 10 < dear["b"]


def test_nothing_fits():
    assert allocate(PRIORITIES, under(1)) is None
    error = unreachable("params", 0.01, 50, 1000)
    assert isinstance(error, SimMIMError)
    assert "params=0.01 cannot be met" in str(error)
    assert "50 of 1000 (0.05)" in str(error)


@pytest.mark.parametrize("value", [0.1, 1.0, 1, 250])
def test_constraints_that_are_fine(value):
    assert check_constraints({"params": value}) == {"params": value}


@pytest.mark.parametrize(
    ("constraints", "text"),
    [
        ({}, "constraints must be a dict with at least one of units, params"),
        (None, "got None"),
        ({"weights": 0.5}, "'weights' is none of units, params"),
        ({"sparsity": 0.5}, "'sparsity' is none of .*; compress takes it for a granularity of wei"),
        ({"units": 0}, r"units must be a fraction kept in \(0, 1\] or an integer greater than 1"),
        ({"units": 1.5}, "got 1.5"),
        ({"units": True}, "got True"),
        ({"units": "0.5"}, "got '0.5'"),
        ({"units": float("nan")}, "got nan"),
        ({"latency": 2}, r"latency must be a fraction kept in \(0, 1\], got 2"),
    ],
)
def test_constraints_that_cannot_be_meant(constraints, text):
    with pytest.raises(ValueError, match=text):
        check_constraints(constraints)
