"""Files: what is written comes back, what is damaged is refused, what fails leaves nothing."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from simmim_ext import SimMIMError
from simmim_ext.folders import _sha256_json, read_folder, write_folder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "new" / "folder"
    write_folder(path, {"a": torch.arange(100)}, {"format": "test", "n": 1}, {"r.txt": "r"})
    return path


def test_folders_come_back_and_are_replaced_whole(folder):
    tensors, body = read_folder(folder, "test")
    assert torch.equal(tensors["a"], torch.arange(100))
    assert body == {"format": "test", "n": 1}
    assert (folder / "r.txt").read_text() == "r"
    write_folder(folder, {"a": torch.zeros(3)}, {"format": "test", "n": 2})
    tensors, body = read_folder(folder, "test")
    assert body["n"] == 2
    assert torch.equal(tensors["a"], torch.zeros(3))
    assert len(list(folder.glob("*.safetensors"))) == 1


def weights_file(folder):
    return next(folder.glob("*.safetensors"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"n": 1', '"n": 3'))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: flip(weights_file(f)), "is damaged: its SHA-256 is not the one in manifest"),
        (lambda f: weights_file(f).write_bytes(weights_file(f).read_bytes()[:-1]), "is damaged"),
        (
            lambda f: weights_file(f).unlink(),
            r"weights-.*s cannot be read: .*No such file",
        ),
        (lambda f: flip(f / "r.txt"), "r.txt is damaged: its SHA-256 is not the one in manifest"),
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
        read_folder(folder, "test")


def test_every_truncation_of_the_manifest_is_refused(folder):
    path = folder / "manifest.json"
    whole = path.read_text()
    for length in range(0, len(whole) - 1, 7):
        path.write_text(whole[:length])
        with pytest.raises(SimMIMError, match=r"manifest.json"):
            read_folder(folder, "test")


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SimMIMError, match=r"cannot write to .*file/x: .* choose another folder"):
        write_folder(tmp_path / "file" / "x", {"a": torch.zeros(1)}, {"format": "test"})


def test_a_full_disk_is_a_clear_error_and_what_was_there_stays(folder):
    """A limit on the size of files stands in for the disk."""
    code = f"""
import resource, torch
from pathlib import Path
from simmim_ext.folders import write_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_folder(Path({str(folder)!r}), {{"a": torch.zeros(10_000)}}, {{"format": "test"}})
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 4096
    before = sorted(p.name for p in folder.iterdir())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "SimMIMError: cannot write to" in run.stderr
    assert "free some space there" in run.stderr
    assert sorted(p.name for p in folder.iterdir()) == before
    assert read_folder(folder, "test")[1]["n"] == 1


def test_manifest_is_json_that_a_person_can_read(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {"format", "n", "weights", "texts", "sha256"}


def test_folders_of_before_texts_had_digests_can_be_read(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["texts"], manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": _sha256_json(manifest)}))
    flip(folder / "r.txt")
    assert read_folder(folder, "test")[1] == {"format": "test", "n": 1}
