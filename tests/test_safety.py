"""Full disks, read-only folders, damaged states and weights: clear errors, and nothing is lost."""

import resource
from pathlib import Path

import pytest
import torch
from models import mlp, snapshot

from simmim_ext import CompressConfig, SimMIMError, compress, load, storage
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

X = torch.randn(1500, 12, generator=torch.Generator().manual_seed(0))
SETTINGS = {"calibration": [X], "constraints": {"units": 0.5}, "config": CompressConfig(epochs=4)}
READ_ONLY = Path("/sys/simmim_ext")  # where root makes no folder either


def state(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


class FillingUp:
    """Training data during whose second epoch the disk becomes full, for one manifest."""

    def __init__(self, folder=None):
        self.folder, self.epochs = folder, 0

    def __len__(self):
        return 3

    def __iter__(self):
        self.epochs += 1
        if self.epochs == 2 and self.folder is not None:
            (self.folder / "manifest.json.partial").symlink_to("/dev/full")
        return iter(X.split(500))


def test_a_disk_that_fills_up_during_the_run_loses_nothing(tmp_path):
    model = mlp()
    before = snapshot(model)
    whole = compress(model, **SETTINGS, train=FillingUp())
    text = r"cannot write to .*No space left on device; free some space there or choose another"
    with pytest.raises(SimMIMError, match=text):
        compress(model, **SETTINGS, train=FillingUp(tmp_path), checkpoint_dir=tmp_path)
    assert snapshot(model) == before
    assert len(list(tmp_path.iterdir())) == 2  # the state kept last, and no remains
    rest = FillingUp()
    result = compress(model, **SETTINGS, train=rest, checkpoint_dir=tmp_path)
    assert rest.epochs == 3  # of four
    assert state(result.model) == state(whole.model)


@pytest.mark.parametrize("limit", [100, 1500], ids=["weights", "report"])
def test_a_full_disk_loses_no_result(tmp_path, limit):
    """A limit on the size of files stands in for the disk."""
    result = compress(mlp(), **SETTINGS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SimMIMError, match=r"cannot write to .*saved: .*File too large"):
            result.save(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "saved").iterdir()) == []
    result.save(tmp_path / "saved")
    assert state(load(tmp_path / "saved", mlp())) == state(result.model)


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(monkeypatch):
    monkeypatch.setattr("simmim_ext.stages.score_groups", None)
    text = r"cannot write to /sys/simmim_ext: .*not permitted|Read-only.*; free some space there or"
    with pytest.raises(SimMIMError, match=text):
        compress(mlp(), **SETTINGS, checkpoint_dir=READ_ONLY)


def test_a_read_only_folder_is_told_before_the_work(tmp_path, monkeypatch):
    def refuse(path, target):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("simmim_ext.stages.score_groups", None)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(SimMIMError, match=r"cannot write to .*Permission denied.* choose another"):
        compress(mlp(), **SETTINGS, checkpoint_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_saving_where_nothing_can_be_written_is_a_clear_error():
    result = compress(mlp(), **SETTINGS)
    with pytest.raises(SimMIMError, match=r"cannot write to /sys/simmim_ext: .* choose another"):
        result.save(READ_ONLY)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("pattern", ["manifest.json", "weights-*"])
def test_a_damaged_state_is_refused_and_a_new_run_starts_without_it(tmp_path, damage, pattern):
    first = compress(mlp(), **SETTINGS, checkpoint_dir=tmp_path)
    damage(next(tmp_path.glob(pattern)))
    with pytest.raises(SimMIMError, match=r"checkpoint_dir: .*; give another folder, or delete "):
        compress(mlp(), **SETTINGS, checkpoint_dir=tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    again = compress(mlp(), **SETTINGS, checkpoint_dir=tmp_path)
    assert again.model[0].out_features == first.model[0].out_features


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = mlp()
    monkeypatch.setattr("simmim_ext.checkpoint.__version__", "0.0.0")
    compress(model, **SETTINGS, checkpoint_dir=tmp_path)
    monkeypatch.undo()
    with pytest.raises(
        SimMIMError, match=r"a run with another model, .* or version, .*; give another"
    ):
        compress(model, **SETTINGS, checkpoint_dir=tmp_path)


def test_what_a_kill_leaves_half_written_is_no_obstacle(tmp_path):
    whole = storage.digest(dict(compress(mlp_seeded(), **SETTINGS).model.state_dict()))
    for name in ("weights.partial", "manifest.json.partial", "probe.partial"):
        (tmp_path / name).write_bytes(b"half")
    result = compress(mlp_seeded(), **SETTINGS, checkpoint_dir=tmp_path)
    assert storage.digest(dict(result.model.state_dict())) == whole


def mlp_seeded():
    torch.manual_seed(0)
    return mlp()


LAYOUTS = ("element", "gather", "block", "window", "planes", "tile", "pair")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_weight_whose_header_was_changed_is_refused(layout) -> None:
    packed = pack_sparse_weight(torch.ones(40, 200), torch.ones(40, 200).bool(), layout)
    x = torch.ones(3, 200)
    assert torch.equal(sparse_linear(x, packed.clone(), None, 40), torch.full((3, 40), 200.0))
    text = "sparse_linear: packed must be .* pack_sparse_weight returned"
    header = packed.view(torch.int64)[:12]  # of which the last is its checksum
    for word in range(12):
        for changed in (0, int(header[word]) + 64, ~int(header[word]), 2**62):
            damaged = packed.clone()
            damaged.view(torch.int64)[word] = changed
            if torch.equal(damaged, packed):
                continue
            with pytest.raises(ValueError, match=text):
                sparse_linear(x, damaged, None, 40)
        for other in range(word):  # highest bits, which products alone would let cancel out
            damaged = packed.clone()
            damaged[[8 * word + 7, 8 * other + 7]] ^= 128
            with pytest.raises(ValueError, match=text):
                sparse_linear(x, damaged, None, 40)
