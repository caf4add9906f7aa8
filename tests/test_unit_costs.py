import pytest
import torch
from models import CASES, case

from simmim_ext import CompressConfig, score
from simmim_ext.graph import trace_units
from simmim_ext.measure import count_flops, count_params
from simmim_ext.plan import make_plan
from simmim_ext.removal import remove_units
from simmim_ext.unit_costs import UnitCosts, shape_costs


@pytest.mark.parametrize("budget", ["params", "flops", "bytes"])
@pytest.mark.parametrize("name", CASES)
def test_costs_are_those_of_the_model_built(name, budget):
    model, x = case(name)
    groups = trace_units(model, x)
    costs = UnitCosts(model, groups, shape_costs(budget, model, x))
    counts = {
        "params": count_params,
        "bytes": lambda m: sum(p.nbytes for p in m.parameters()),
        "flops": lambda m: count_flops(m, x),
    }
    for share in (1.0, 0.5):
        widths = {g.name: max(1, int(share * g.units)) for g in groups}
        built, _ = remove_units(model, groups, {n: range(w) for n, w in widths.items()})
        assert costs.of(widths) == pytest.approx(counts[budget](built))
    another = costs.of_another_unit(widths)
    name = groups[0].name
    assert another[name] == pytest.approx(
        costs.of(widths | {name: widths[name] + 1}) - costs.of(widths)
    )


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize(("budget", "share"), [("params", 0.3), ("units", 0.5)])
def test_a_budget_is_spent_where_it_saves_most(budget, share):
    model, _ = case("cnn")
    data = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(5)).split(100)
    scores = score(model, data, config=CompressConfig(seed=1))
    assert set(scores.divergence) == set(scores)
    for name, values in scores.divergence.items():
        assert len(values) == len(scores[name]) + 1
        assert (values.diff() <= 1e-12).all()

    def predicted(allocation):
        plan = make_plan(model, scores, {budget: share}, data[0], allocation=allocation)
        built, _ = remove_units(model, scores.groups, plan.kept)
        if budget == "params":
            assert count_params(built) <= share * count_params(model)
        else:
            assert sum(one["after"] for one in plan.layers) == int(share * (6 + 8 + 9))
        return sum(float(scores.divergence[one["name"]][one["after"]]) for one in plan.layers)

    assert predicted("information") < predicted("uniform")
    assert predicted("information") < predicted("score")
    relevance = score(model, data, criterion="relevance")
    assert relevance.divergence == {}
