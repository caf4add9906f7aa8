"""Files: what is written comes back, what is damaged is refused, what fails leaves nothing."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from simmim_ext import SimMIMError, storage
from simmim_ext.nn import MaskedLinear


def model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(9, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[3].weight = net[2].weight
    return net


def masked(seed=0):
    net = model(seed)
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.3
    net[0] = MaskedLinear.from_linear(net[0], mask)
    return net


def test_weights_come_back_shared_ones_once_and_masked_ones_packed():
    net = masked()
    tensors, description = storage.tensors_of(net)
    assert description == {"shared": {"3.weight": "2.weight"}, "masked": ["0"]}
    assert tensors["0.weight"].shape == (int(net[0].mask.sum()),)
    assert tensors["0.mask"].nbytes == 7
    fresh = model(seed=1).eval()
    storage.restore_tensors(fresh, tensors, description)
    assert fresh[3].weight is fresh[2].weight
    assert isinstance(fresh[0], MaskedLinear)
    assert not fresh[0].training
    assert torch.equal(fresh[0].weight, net[0].weight * net[0].mask)
    assert torch.equal(fresh[0].mask, net[0].mask)
    x = torch.rand(4, 9)
    assert torch.equal(fresh(x), net.eval()(x))


def test_stored_dtypes_come_back():
    net = model().to(torch.bfloat16)
    fresh = model(seed=1)
    storage.restore_tensors(fresh, *storage.tensors_of(net))
    assert fresh[0].weight.dtype == torch.bfloat16
    assert torch.equal(fresh[0].weight, net[0].weight)


def test_weights_of_another_model_are_refused():
    tensors, description = storage.tensors_of(model())
    with pytest.raises(SimMIMError, match=r"do not fit the model: .* give an instance of the orig"):
        storage.restore_tensors(nn.Sequential(nn.Linear(9, 6)), tensors, description)
    expected = storage.signature_of(model())
    storage.check_signature(model(1), expected, "load: x")
    other = nn.Sequential(nn.Linear(9, 5))
    with pytest.raises(SimMIMError, match=r"0.bias is \[6\] there and \[5\] in the model given"):
        storage.check_signature(other, expected, "load: x")


def test_state_that_is_no_tensor_is_named():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(SimMIMError, match=r"'_extra_state' is a dict; only tensors can be saved"):
        storage.tensors_of(Extra(2, 2))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "new" / "folder"
    storage.write_folder(path, {"a": torch.arange(100)}, {"format": "test", "n": 1}, {"r.txt": "r"})
    return path


def test_folders_come_back_and_are_replaced_whole(folder):
    tensors, body = storage.read_folder(folder, "test")
    assert torch.equal(tensors["a"], torch.arange(100))
    assert body == {"format": "test", "n": 1}
    assert (folder / "r.txt").read_text() == "r"
    storage.write_folder(folder, {"a": torch.zeros(3)}, {"format": "test", "n": 2})
    tensors, body = storage.read_folder(folder, "test")
    assert body["n"] == 2
    assert torch.equal(tensors["a"], torch.zeros(3))
    assert len(list(folder.glob("*.safetensors"))) == 1


def weights_file(folder):
    return next(folder.glob("*.safetensors"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def edit_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"n": 1', '"n": 3'))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: flip(weights_file(f)), "is damaged: its SHA-256 is not the one in manifest"),
        (lambda f: weights_file(f).write_bytes(weights_file(f).read_bytes()[:-1]), "is damaged"),
        (lambda f: weights_file(f).unlink(), "the weights of .* cannot be read: .*No such file"),
        (edit_manifest, "manifest.json was changed after it was written"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\x00"), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[1]"), r"is not a test file: .* \[1\]"),
        (lambda f: (f / "manifest.json").write_text('{"format": "x"}'), "its format is 'x'"),
        (lambda f: (f / "manifest.json").unlink(), "holds no manifest.json: nothing was saved"),
    ],
)
def test_damaged_and_foreign_files_are_refused(folder, damage, text):
    damage(folder)
    with pytest.raises(SimMIMError, match=text):
        storage.read_folder(folder, "test")


def test_every_truncation_of_the_manifest_is_refused(folder):
    path = folder / "manifest.json"
    whole = path.read_text()
    for length in range(0, len(whole) - 1, 7):
        path.write_text(whole[:length])
        with pytest.raises(SimMIMError, match=r"manifest.json"):
            storage.read_folder(folder, "test")


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SimMIMError, match=r"cannot write to .*file/x: .* choose another folder"):
        storage.write_folder(tmp_path / "file" / "x", {"a": torch.zeros(1)}, {"format": "test"})


def test_a_full_disk_is_a_clear_error_and_what_was_there_stays(folder):
    """A limit on the size of files stands in for the disk."""
    code = f"""
import resource, torch
from pathlib import Path
from simmim_ext import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
storage.write_folder(Path({str(folder)!r}), {{"a": torch.zeros(10_000)}}, {{"format": "test"}})
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 4096
    before = sorted(p.name for p in folder.iterdir())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "SimMIMError: cannot write to" in run.stderr
    assert "free some space there" in run.stderr
    assert sorted(p.name for p in folder.iterdir()) == before
    assert storage.read_folder(folder, "test")[1]["n"] == 1


def test_manifest_is_json_that_a_person_can_read(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {"format", "n", "weights", "sha256"}


def test_digest_tells_values_names_and_shapes_apart():
    base = {"a": torch.arange(6.0)}
    assert storage.digest(base) == storage.digest({"a": torch.arange(6.0)})
    others = [{"b": torch.arange(6.0)}, {"a": torch.arange(6.0).view(2, 3)}, {"a": torch.zeros(6)}]
    assert len({storage.digest(d) for d in (base, *others)}) == 4
