import pytest
import torch

from simmim_ext import selection
from simmim_ext.selection import (
    TARGET_NOISE,
    UNIT_NOISE,
    ConditionalInformation,
    divergences,
    select_units,
)


def problem(columns=12, targets=4, samples=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(samples, columns, generator=generator) @ mix
    z = x @ torch.randn(columns, targets, generator=generator)
    z = z + torch.randn(samples, targets, generator=generator)
    x, z = (x - x.mean(0)).double(), (z - z.mean(0)).double()
    return x.T @ x / samples, x.T @ z / samples, z.T @ z / samples


def information(xx, xz, zz, columns):
    """I(T_columns + noise; Z + noise) by determinants."""
    noise = UNIT_NOISE * xx.diagonal().mean()
    noisy_z = zz + TARGET_NOISE * zz.diagonal().mean() * torch.eye(len(zz))
    noisy_x = xx[columns][:, columns] + noise * torch.eye(len(columns))
    cross = xz[columns]
    given = noisy_x - cross @ torch.linalg.solve(noisy_z, cross.T)
    return 0.5 * (torch.logdet(noisy_x) - torch.logdet(given))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_gains_are_differences_of_joint_information(block):
    moments = problem()
    layer = ConditionalInformation(*moments, block=block)
    units = 12 // block

    def columns(chosen):
        return [u * block + k for u in chosen for k in range(block)]

    chosen: list[int] = []
    for _ in range(units - 1):
        known = information(*moments, columns(chosen)) if chosen else 0
        gains = layer.gains()
        for unit in set(range(units)) - set(chosen):
            expected = information(*moments, columns([*chosen, unit])) - known
            assert gains[unit] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
        chosen.append(int(gains.argmax()) if not chosen else min(set(range(units)) - set(chosen)))
        layer.take_(chosen[-1])


@pytest.mark.parametrize("block", [1, 3])
def test_greedy_equals_the_naive_definition(block):
    moments = problem(seed=3)
    units = 12 // block
    order: list[int] = []
    while len(order) < units:
        rest = [u for u in range(units) if u not in order]
        value = [
            float(information(*moments, [v * block + k for v in [*order, u] for k in range(block)]))
            for u in rest
        ]
        order.append(rest[max(range(len(rest)), key=value.__getitem__)])
    found = select_units([ConditionalInformation(*moments, block=block)], units)
    assert list(found.order) == order
    assert sum(found.gains) == pytest.approx(float(information(*moments, list(range(12)))))


def test_a_copy_comes_last_and_ties_go_to_the_lowest_index():
    xx, xz, zz = problem(columns=5)
    index = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    double = ConditionalInformation(xx[index][:, index], xz[index], zz)
    found = select_units([double], 10)
    assert sorted(found.order[:5]) == [0, 1, 2, 3, 4]
    assert max(found.gains[5:]) < 0.1 * min(found.gains[:5])


def test_dead_units_add_nothing_and_come_in_order():
    xx, xz, zz = problem(columns=6)
    dead = [1, 4]
    xx[dead], xx[:, dead], xz[dead] = 0, 0, 0
    found = select_units([ConditionalInformation(xx, xz, zz)], 6)
    assert found.order[-2:] == (1, 4)
    assert found.gains[-2:] == (0, 0)


def test_all_units_dead():
    zero = ConditionalInformation(torch.zeros(4, 4), torch.zeros(4, 2), torch.zeros(2, 2))
    assert select_units([zero], 4).order == (0, 1, 2, 3)


def test_layers_that_read_the_same_units_add_up():
    a, b = problem(seed=1), problem(seed=2)
    both = [ConditionalInformation(*a), ConditionalInformation(*b)]
    expected = both[0].gains() + both[1].gains()
    found = select_units([ConditionalInformation(*a), ConditionalInformation(*b)], 12, count=1)
    assert found.order == (int(expected.argmax()),)
    assert found.gains[0] == pytest.approx(float(expected.max()))


def test_count_cuts_the_same_order():
    moments = problem()
    whole = select_units([ConditionalInformation(*moments)], 12)
    part = select_units([ConditionalInformation(*moments)], 12, count=5)
    assert part.order == whole.order[:5]


def test_scale_of_units_and_targets_does_not_matter():
    xx, xz, zz = problem()
    one = select_units([ConditionalInformation(xx, xz, zz)], 12)
    other = select_units([ConditionalInformation(xx * 1e-8, xz * 1e-1, zz * 1e6)], 12)
    assert one.order == other.order


def test_block_must_divide():
    with pytest.raises(ValueError, match="block must divide the 12 columns, got 5"):
        ConditionalInformation(*problem(), block=5)


def test_updates_by_panels_are_those_by_single_columns():
    """More units than a panel holds: the covariance itself is brought up to date."""
    moments = problem(columns=200, samples=1000)
    found = select_units([ConditionalInformation(*moments)], 200)
    whole = float(information(*moments, list(range(200))))
    assert sum(found.gains) == pytest.approx(whole, rel=1e-6)
    for taken in (63, 64, 65, 130):
        part = float(information(*moments, list(found.order[:taken])))
        assert sum(found.gains[:taken]) == pytest.approx(part, rel=1e-6)


@pytest.mark.parametrize("block", [1, 3])
def test_divergences_are_those_of_what_the_regression_leaves_open(block):
    xx, xz, zz = problem(seed=4)
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fisher = root @ root.T
    order = torch.randperm(12 // block, generator=torch.Generator().manual_seed(2)).tolist()
    found = divergences(xx, xz, zz, fisher, order, block=block)
    assert len(found) == len(order) + 1
    for k in range(len(order) + 1):
        columns = [u * block + i for u in order[:k] for i in range(block)]
        noisy = xx[columns][:, columns]
        noisy.diagonal().add_(UNIT_NOISE * xx.diagonal().mean())
        open_ = zz - xz[columns].T @ torch.linalg.solve(noisy, xz[columns])
        assert float(found[k]) == pytest.approx(0.5 * float((fisher @ open_).trace()), rel=1e-9)
    assert (found.diff() <= 0).all()


def test_more_outputs_than_units_need_only_the_directions_in_which_they_vary():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator).double()
    weight = torch.randn(20, 6, generator=generator).double()
    xx = x.T @ x / len(x)
    whole = ConditionalInformation(xx, xx @ weight.T, weight @ xx @ weight.T)
    few = torch.linalg.qr(weight, mode="r").R
    part = ConditionalInformation(xx, xx @ few.T, few @ xx @ few.T, outputs=20)
    one, two = select_units([whole], 6), select_units([part], 6)
    assert one.order == two.order
    torch.testing.assert_close(torch.tensor(one.gains), torch.tensor(two.gains), rtol=1e-6, atol=0)


@pytest.mark.parametrize("block", [1, 3])
def test_units_that_were_left_out_change_nothing(monkeypatch, block):
    """Many more units than a panel has, so that covariances are copied without those taken."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(900, 200 * block, generator=generator)
    z = x @ torch.randn(200 * block, 5, generator=generator)
    moments = [(a.T @ b / len(x)).double() for a, b in ((x, x), (x, z), (z, z))]

    def select():
        return select_units([ConditionalInformation(*moments, block=block)], 200)

    found = select()
    monkeypatch.setattr(selection, "_TAKEN_SHARE", 2.0)
    never = select()
    assert found.order == never.order
    assert found.gains == pytest.approx(never.gains, abs=1e-12)
