"""Embeddings that only a Linear reads, as of tables and recommenders."""

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, compress, load
from simmim_ext.graph import trace_units


class Table(nn.Module):
    """Two categories and numbers; what becomes of the embeddings a and b is up to ``join``."""

    def __init__(self, join, width):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.join = nn.Embedding(20, 8), nn.Embedding(10, 8), join
        self.hidden, self.head = nn.Linear(width, 16), nn.Linear(16, 4)

    def forward(self, codes, numbers):
        joined = self.join(self.a(codes[:, :3]), self.b(codes[:, 3]), numbers)
        return self.head(self.hidden(joined).relu())


# Name -> how embeddings of three and of one token are joined, to what width, and the groups.
JOINED = {
    "summed": (lambda a, b, x: a.sum(1) + b, 8, {"a": 8}),
    "concatenated": (lambda a, b, x: torch.cat([a.mean(1), b], 1), 16, {"a": 8, "b": 8}),
    "beside numbers": (lambda a, b, x: torch.cat([a[:, 0], b, x], 1), 18, {"a": 8, "b": 8}),
    "multiplied": (lambda a, b, x: a[:, 1] * b, 8, {"a": 8}),
    "flattened": (lambda a, b, x: torch.cat([a.flatten(1), b], 1), 32, None),
    "a product": (lambda a, b, x: torch.cat([(a[:, 0] * b).sum(1, True), b], 1), 9, None),
    "a distance": (
        lambda a, b, x: torch.cat([(a[:, 0] - b).norm(dim=1, keepdim=True), b], 1),
        9,
        None,
    ),
    "halves": (lambda a, b, x: a[:, 0, :4] * a[:, 1, 4:] + b[:, :4], 4, None),
}


class Read(nn.Module):
    """An embedding that a layer reads which nothing can be removed from, and one beside it."""

    def __init__(self):
        super().__init__()
        self.words, self.kind = nn.Embedding(20, 8), nn.Embedding(10, 6)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(14, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.cat([self.gru(self.words(x))[0][:, -1], self.kind(x[:, 0])], 1)
        return self.head(self.hidden(x).relu())


@pytest.mark.filterwarnings("ignore:Maximum recursive depth reached")
@pytest.mark.parametrize(
    ("ignored", "left"),
    [(["gru"], {"kind", "hidden"}), (["gru", "kind"], {"hidden"}), (["gru", "hidden"], {"kind"})],
)
def test_an_embedding_that_an_ignored_layer_reads_keeps_its_width(ignored, left):
    x = torch.randint(9, (2, 5))
    assert {g.name for g in trace_units(Read(), x, ignored_layers=ignored)} == left


def test_embeddings_whose_products_are_not_followed_end_tracing_in_time():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 8)
            self.hidden, self.head = nn.Linear(24, 12), nn.Linear(12, 4)

        def forward(self, x):
            e = self.words(x)
            x = torch.cat([torch.bmm(e, e.transpose(1, 2)).flatten(1), self.words(x[:, 0])], 1)
            return self.head(self.hidden(x).relu())

    groups = trace_units(Pairs(), torch.randint(9, (2, 4)), ignored_layers=["head"], time_limit=5)
    assert [group.name for group in groups] == ["hidden"]


def data():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(1, 10, (1300, 4), generator=generator)
    numbers = torch.randn(1300, 2, generator=generator)
    batches = zip(codes.split(325), numbers.split(325), strict=True)
    return [{"codes": c, "numbers": x} for c, x in batches]


@pytest.mark.parametrize("name", JOINED)
def test_embeddings_shrink_where_they_are_followed_and_else_keep_their_width(name, tmp_path):
    join, width, embeddings = JOINED[name]
    model = Table(join, width).eval()
    units = {group.name: group.units for group in trace_units(model, data()[0])}
    assert units.pop("hidden") == 16
    if embeddings is not None:
        assert units == embeddings
    result = compress(
        model, calibration=data(), constraints={"params": 0.7}, config=CompressConfig(epochs=0)
    )
    layers = {layer["name"]: layer["after"] for layer in result.report["layers"]}
    for layer in embeddings or ():
        assert result.model.get_submodule(layer).embedding_dim == layers[layer] < 8
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", Table(join, width)).eval()
    batch = data()[0]
    assert torch.equal(again(**batch), result.model(**batch))
