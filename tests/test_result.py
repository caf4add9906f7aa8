"""A saved result: what reads it, and what is refused."""

from dataclasses import replace

import pytest
import torch
from models import ROWS, mlp

from simmim_ext import CompressConfig, SimMIMError, compress, load
from simmim_ext.folders import read_folder, write_folder
from simmim_ext.nn import accelerate, strip
from simmim_ext.report import read_report
from simmim_ext.result import FORMAT

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    result = compress(
        mlp(),
        calibration=torch.randn(200, 12).split(50),
        constraints={"units": 0.5},
        config=CompressConfig(epochs=0),
    )
    result.save(tmp_path / "saved")
    return tmp_path / "saved", result


def test_an_instance_on_the_meta_device_will_do(saved):
    folder, result = saved
    with torch.device("meta"):
        model = mlp()
    loaded = load(folder, model)
    assert torch.equal(loaded(ROWS), result.model(ROWS))
    assert model[0].weight.is_meta


def test_a_report_that_was_changed_is_refused(saved):
    folder, result = saved
    path = folder / "report.json"
    kl = result.report["fidelity"]["kl"]
    path.write_text(path.read_text().replace(str(kl), "0.0"))
    for read in (lambda: load(folder, mlp()), lambda: read_report(folder)):
        with pytest.raises(
            SimMIMError, match=r"report\.json is damaged: its SHA-256 is not the one"
        ):
            read()
    path.unlink()
    load(folder, mlp())


@pytest.mark.parametrize("name", ["format_version", "original", "history", "state"])
def test_a_manifest_without_all_that_it_needs_is_refused(saved, name):
    folder, _ = saved
    tensors, body = read_folder(folder, FORMAT)
    del body[name]
    write_folder(folder, tensors, body)
    text = f"manifest.json must hold an? [a-z]+ '{name}', and holds None"
    with pytest.raises(SimMIMError, match=text):
        load(folder, mlp())


def test_a_history_without_all_that_it_needs_is_refused(saved):
    folder, _ = saved
    tensors, body = read_folder(folder, FORMAT)
    del body["history"][0]["size"]
    write_folder(folder, tensors, body)
    with pytest.raises(SimMIMError, match=r"^load: {'module': '0', .* is no step of a hist"):
        load(folder, mlp())


def test_an_accelerated_model_is_not_saved_as_a_result(tmp_path):
    model = mlp()
    data = torch.randn(200, 12).split(50)
    config = CompressConfig(epochs=0)
    result = compress(
        model, calibration=data, granularity="weight", constraints={"sparsity": 0.5}, config=config
    )
    with pytest.raises(SimMIMError, match=r"^save: model must not .* SparseLinear '0'; save it as"):
        replace(result, model=accelerate(result.model)).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for i, kept in enumerate((result.model, strip(result.model))):
        replace(result, model=kept).save(tmp_path / str(i))
        loaded = load(tmp_path / str(i), model)
        assert torch.equal(loaded(ROWS), kept(ROWS))


def test_errors_of_reading_and_writing_folders_begin_with_the_function(saved, tmp_path):
    with pytest.raises(SimMIMError, match=r"^load: .*nowhere holds no manifest.* give the folder"):
        load(tmp_path / "nowhere", mlp())
    write_folder(tmp_path / "other", {}, {"format": "another"})
    with pytest.raises(SimMIMError, match=r"^load: .* its format is 'another'"):
        load(tmp_path / "other", mlp())
    with pytest.raises(SimMIMError, match=r"^save: cannot write to /sys/simmim_ext: "):
        saved[1].save("/sys/simmim_ext")


def test_the_folder_is_called_dir_as_in_the_contract(saved, tmp_path):
    _, result = saved
    result.save(dir=tmp_path / "again")
    assert torch.equal(load(dir=tmp_path / "again", model=mlp())(ROWS), result.model(ROWS))
    for call in (lambda: load(3, mlp()), lambda: result.save(3)):
        with pytest.raises(TypeError, match=r"^(load|save): dir must be a path, got int"):
            call()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("made_outside", [True, False])
def test_what_is_loaded_in_inference_mode_can_be_trained(saved, device, made_outside):
    folder, result = saved
    with torch.device(device):
        outside = mlp()
    with torch.inference_mode():
        with torch.device(device):
            inside = mlp()
        loaded = load(folder, outside if made_outside else inside)
    assert torch.equal(loaded(ROWS), result.model(ROWS))
    loaded(ROWS).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
