"""Batches of every shape, their errors, and the held-out split."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress
from simmim_ext import data as d
from simmim_ext.forward import forward
from simmim_ext.labels import class_labels, value_labels
from simmim_ext.modes import evaluating, seeded


def test_inputs_and_labels_of_every_kind_of_batch():
    x, y = torch.rand(4, 3), torch.arange(4)
    assert d.inputs_of(x)[0][0] is x
    assert d.inputs_of((x, y))[0][0] is x
    assert d.inputs_of([x])[0][0] is x
    assert d.inputs_of({"a": x, "labels": y}) == ((), {"a": x})
    assert d.inputs_of(({"a": x}, y)) == ((), {"a": x})
    assert d.labels_of(x) is None
    assert d.labels_of((x,)) is None
    assert d.labels_of((x, y)) is y
    assert d.labels_of({"a": x, "label": y}) is y
    assert d.labels_of(({"a": x, "labels": y},)) is y


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (torch.tensor([2, 0, 1], dtype=torch.int32), [2, 0, 1]),
        (torch.tensor([2, 0, 1], dtype=torch.uint8), [2, 0, 1]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (torch.tensor([2.0, 0.0, 1.0]), [2, 0, 1]),
        (torch.tensor([[2], [0], [1]]), [2, 0, 1]),
        (torch.tensor([2, -1, -100]), [2, -100, -100]),
        (torch.tensor([0.5, 0.0, 1.0]), None),
        (torch.tensor([2, 0]), None),
        (torch.tensor(2), None),
        (None, None),
    ],
)
def test_class_labels_are_one_whole_number_a_row(labels, classes):
    found = class_labels((torch.rand(3, 4), labels), 3)
    assert (found is None) == (classes is None)
    if found is not None:
        assert found.dtype == torch.int64
        assert found.tolist() == classes


def test_value_labels_come_in_the_shape_of_the_outputs():
    x, y = torch.rand(3, 4), torch.rand(3, dtype=torch.float64)
    assert torch.equal(value_labels((x, y), torch.rand(3, 1)), y[:, None].float())
    assert value_labels((x, torch.rand(2, 3)), torch.rand(3, 2)) is None
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    tokens = {"x": x, "attention_mask": mask, "labels": torch.rand(3, 2, 5)}
    assert torch.equal(value_labels(tokens, torch.rand(3, 5)), tokens["labels"][mask.bool()])


@pytest.mark.parametrize("batch", ["text", (), 3, None])
def test_a_batch_of_another_kind_is_named(batch):
    with pytest.raises(SimMIMError, match=r"a batch must be a tensor, a tuple .* got"):
        d.inputs_of(batch)


def test_take_cuts_every_tensor_of_a_batch():
    batch = {"a": torch.arange(6), "b": [torch.arange(6), 7], "scale": torch.tensor(2.0)}
    cut = d.take(batch, slice(1, 3))
    assert cut["a"].tolist() == cut["b"][0].tolist() == [1, 2]
    assert cut["b"][1] == 7
    assert cut["scale"] == 2


def test_batches_stop_at_the_limit():
    data = [torch.arange(3), torch.empty(0), torch.arange(3, 6), torch.arange(6, 9)]
    assert [b.tolist() for b in d.batches(data, limit=5)] == [[0, 1, 2], [3, 4]]
    assert [b.tolist() for b in d.batches(data, limit=6)] == [[0, 1, 2], [3, 4, 5]]
    assert sum(len(b) for b in d.batches(data)) == 9


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (torch.rand(4, 3), r"one tensor of shape \[4, 3\]; give its batches"),
        ([], "no sample came out of an empty list"),
        ([torch.empty(0, 3)], "no sample came out of a list"),
        (iter([torch.rand(2, 3)]), "read only once"),
        ((torch.rand(2, 3) for _ in range(2)), "a generator, which can be read only once"),
        (3, "expected an iterable of batches .* got an int"),
        ([np.zeros((4, 3))], "train: a batch must be a tensor, .* got an ndarray; change the loa"),
        ({"x": torch.rand(2)}, "expected an iterable of batches .* got a dict"),
        (torch.utils.data.TensorDataset(torch.rand(2, 3)), "gives single samples; wrap it"),
    ],
)
def test_data_that_cannot_serve_says_what_to_do(data, text):
    with pytest.raises(SimMIMError, match=text):
        list(d.batches(data, name="train"))


def test_data_that_are_empty_the_second_time_must_be_iterable_again():
    class Once:
        def __init__(self):
            self.batches = iter([torch.rand(2, 3)])

        def __iter__(self):
            return self.batches

    data = Once()
    assert len(list(d.batches(data, name="calibration"))) == 1
    text = "calibration: no sample came out of an? Once; .* can be iterated over again"
    with pytest.raises(SimMIMError, match=text):
        list(d.batches(data, name="calibration"))


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.rand(10, 8, device="meta"), r"tensor of shape \[10, 8\] on the meta device"),
        (torch.rand(10, 8).to_sparse(), r"a torch.sparse_coo tensor .* give it dense"),
    ],
)
def test_tensors_without_values_or_rows_are_refused(batch, text):
    with pytest.raises(SimMIMError, match=text):
        d.split(d.gather([batch], 10))


@pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")
def test_inputs_that_require_a_gradient_serve_and_get_none():
    leaf = torch.rand(300, 8, requires_grad=True)
    data = [(2 * leaf).detach().requires_grad_(), 2 * leaf]
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    config = CompressConfig(epochs=2)
    found = compress(model, calibration=data, constraints={"units": 0.5}, config=config)
    assert data[0].grad is None
    assert leaf.grad is None
    plain = [x.detach() for x in data]
    expected = compress(model, calibration=plain, constraints={"units": 0.5}, config=config)
    assert all(map(torch.equal, found.model.parameters(), expected.model.parameters()))


def test_split_holds_every_fifth_sample_out():
    data = [torch.arange(7), torch.arange(7, 8), torch.arange(8, 23)]
    fit, held_out = d.split(data)
    held = torch.cat(held_out).tolist()
    assert held == [4, 9, 14, 19]
    assert sorted(held + torch.cat(fit).tolist()) == list(range(23))
    with pytest.raises(SimMIMError, match=r"at least 5 samples are needed .* got 4"):
        d.split([torch.rand(4, 2)])


def test_a_shuffling_loader_cannot_mix_what_was_held_out():
    loader = torch.utils.data.DataLoader(torch.arange(100), batch_size=7, shuffle=True)
    fit, held_out = d.split(d.gather(loader, 100))
    assert set(torch.cat(held_out).tolist()).isdisjoint(torch.cat(fit).tolist())
    assert sum(map(len, held_out)) == 20


def test_shuffled_covers_all_and_follows_the_global_generator():
    data = d.Shuffled([torch.arange(10), torch.arange(10, 15)], size=4)
    torch.manual_seed(1)
    first = [b.tolist() for b in data]
    torch.manual_seed(1)
    assert first == [b.tolist() for b in data]
    assert first != [b.tolist() for b in data]
    assert sorted(i for batch in first for i in batch) == list(range(15))
    assert len(first) == len(data) == 5


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, attention_mask=None):
        return self.answer


def test_forward_takes_what_models_return():
    x, y = torch.rand(2, 3), torch.rand(2, 5)
    tokens = torch.rand(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    padded = {"x": x, "attention_mask": mask}
    assert forward(Answers(y), x) is y
    assert forward(Answers((y, None)), x) is y
    assert forward(Answers([y, None]), x) is y
    assert forward(Answers(SimpleNamespace(logits=y)), x) is y
    assert forward(Answers({"loss": None, "logits": y}), x) is y
    assert forward(Answers(torch.rand(2)), x).shape == (2, 1)
    assert forward(Answers(tokens), x).shape == (6, 5)
    assert torch.equal(forward(Answers(tokens), padded), tokens[mask.bool()])
    pooled = forward(Answers(SimpleNamespace(last_hidden_state=tokens)), padded)
    torch.testing.assert_close(pooled, torch.stack([tokens[0, :2].mean(0), tokens[1, 0]]))
    assert torch.equal(forward(Answers({"last_hidden_state": tokens}), padded), pooled)
    assert forward(Answers(None), x, lambda model, batch: batch) is x


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "returned a NoneType; expected a tensor, or an object or a dict with log"),
        ({"y": torch.rand(2, 5)}, r"returned a dict of 'y': tensor of shape \[2, 5\]; expected"),
        (torch.rand(2, 3, 4, 4), r"shape \[2, 3, 4, 4\]; expected \[samples, outputs\]"),
    ],
)
def test_forward_names_what_it_cannot_take(answer, text):
    with pytest.raises(SimMIMError, match=text):
        forward(Answers(answer), torch.rand(2, 3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_outputs_that_are_no_real_numbers_are_refused(dtype):
    text = rf"the model returned a tensor of {dtype}; expected floating-point outputs, as logits"
    with pytest.raises(SimMIMError, match=text):
        forward(Answers(torch.ones(2, 3).to(dtype)), torch.rand(2, 3))


def test_evaluating_restores_every_modules_own_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False]

    def interrupted():
        with evaluating(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize("fused", [True, False])
def test_evaluating_restores_fused_attention(fused, monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", fused)
    with pytest.raises(KeyboardInterrupt), evaluating(nn.Linear(2, 2)):
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyboardInterrupt
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_seeded_gives_the_callers_random_state_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1, 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), inside)
    with seeded(2, 1):
        assert not torch.equal(torch.rand(3), inside)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"bins": 1}, ValueError, "CompressConfig: bins must be between 2 and 256, got 1"),
        ({"bins": 2.0}, TypeError, "CompressConfig: bins must be an integer, got 2.0"),
        ({"epochs": -1}, ValueError, "CompressConfig: epochs must be at least 0, got -1"),
        ({"lr": 0.0}, ValueError, "CompressConfig: lr must be positive and finite, got 0.0"),
        ({"gram_weight": -1.0}, ValueError, "gram_weight must be finite and not negative, got -1"),
        ({"temperature": "2"}, TypeError, "temperature must be a number, got '2'"),
        ({"amp": 1}, TypeError, "amp must be True or False, got 1"),
        ({"estimator": "best"}, ValueError, "estimator must be one of plugin, .* got 'best'"),
        ({"steps": 3}, ValueError, 'steps must be 1 with schedule="one-shot", got 3'),
        ({"device": "warp"}, ValueError, "device must be None or name a torch device, got 'warp'"),
        ({"criterion": 3}, TypeError, "criterion must be a string, got 3"),
        ({"criterion": "l3"}, ValueError, "criterion must be one of simmim, .*, random, got 'l3'"),
        (
            {"allocation": "even"},
            ValueError,
            "allocation must be one of information, .* got 'even'",
        ),
        ({"schedule": "slow"}, ValueError, "schedule must be one of one-shot, .* got 'slow'"),
    ],
)
def test_config_names_field_rule_and_value(settings, error, text):
    with pytest.raises(error, match=text):
        CompressConfig(**settings)


def test_config_takes_numpys_numbers():
    config = CompressConfig(epochs=np.int64(3), lr=np.float32(0.5), bins=np.uint8(8))
    assert config == CompressConfig(epochs=3, lr=0.5, bins=8)
    assert [type(v) for v in (config.epochs, config.lr, config.bins)] == [int, float, int]
    with pytest.raises(TypeError, match="epochs must be an integer"):
        CompressConfig(epochs=np.float64(3))


def test_config_is_json_and_frozen():
    config = CompressConfig(device=torch.device("cpu"))
    assert CompressConfig(**config.to_dict()) == CompressConfig(device="cpu")
    with pytest.raises(AttributeError):
        config.lr = 1.0


class Shorter(nn.Module):
    """Answers for fewer tokens than it is given, as encoder-decoders do."""

    def __init__(self, hidden):
        super().__init__()
        self.head, self.hidden = nn.Linear(4, 3), hidden

    def forward(self, x, attention_mask):
        answer = self.head(x)[:, 1:]
        return {"last_hidden_state": answer} if self.hidden else answer


@pytest.mark.parametrize("hidden", [True, False])
def test_a_mask_of_other_tokens_asks_for_a_forward_fn(hidden):
    batch = {"x": torch.rand(2, 6, 4), "attention_mask": torch.ones(2, 6)}
    text = (
        r"returned tensor of shape \[2, 5, 3\] for an attention_mask of shape \[2, 6\], which does "
        "not tell tokens from padding in it; pass forward_fn="
    )
    with pytest.raises(SimMIMError, match=text):
        forward(Shorter(hidden), batch)
