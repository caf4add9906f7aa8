"""The table and the picture of a report."""

import io

import pytest

from simmim_ext import SimMIMError, report

MODEL = {
    "accuracy": 0.9,
    "predictive_information": 2.0,
    "params": 1000,
    "flops": 2000,
    "bytes": 4000,
    "latency_ms": 1.0,
}
UNITS = {"name": "body.0", "before": 3, "after": 1, "information": 0.75, "kept": [2]}
CLASSES = {
    "kl": 0.01,
    "kl_interval": [0.005, 0.02],
    "agreement": 0.95,
    "agreement_interval": [0.94, 0.96],
    "agreement_at_least": 0.941,
    "samples": 1000,
    "data": "evaluate",
}
VECTORS = {
    **CLASSES,
    "agreement": None,
    "relative_error": 0.1234,
    "cosine": 0.99,
    "cosine_interval": [0.98, 0.995],
}


def made(fidelity, layer, accuracy=0.9):
    student = {**MODEL, "accuracy": accuracy, "params": 100, "latency_ms": 0.25}
    return {
        "teacher": {**MODEL, "accuracy": accuracy and 0.91},
        "student": student,
        "fidelity": fidelity,
        "latency": {"batch": 8, "threads": 2, "device": "cpu"},
        "layers": [{**layer, "unit_information": [0.1, 0.3, 0.2]}],
    }


def shown(found):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=120)
    console.print(report.table(found))
    return console.file.getvalue()


def test_a_relative_error_that_there_is_none_of_is_left_out():
    assert "relative error" in shown(made(VECTORS, UNITS))
    assert "relative error" not in shown(made({**VECTORS, "relative_error": None}, UNITS))


def test_table_of_a_classifier():
    found = made(CLASSES, UNITS)
    text = shown(found)
    for part in (
        *("91.00%", "90.00%", "-1.00 points", "0.0100", "95%: 0.0050 to 0.0200"),
        *("95.00%", "95%: 94.00% to 96.00%", "10.0x smaller", "4.0x faster", "units of body.0"),
        "75.0% of information",
    ):
        assert part in text
    first, second = report.sentences(found)
    assert first.startswith(
        "At least 94.1% agreement with the original at 95% confidence, on 1,000"
    )
    assert "batch of 8, 2 threads, cpu" in second


def test_table_of_values_and_of_weights_without_labels():
    text = shown(made(VECTORS, {"name": "0", "before": 1200, "after": 60}, accuracy=None))
    assert "accuracy" not in text
    assert "agreement" not in text
    assert "0.1234" in text
    assert "weights of 0" in text
    assert "1,200" in text


def test_picture_has_a_panel_for_every_layer(tmp_path):
    pytest.importorskip("matplotlib")
    found = made(CLASSES, UNITS)
    found["layers"] *= 5
    report.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    del found["layers"][:]
    with pytest.raises(SimMIMError, match="the report has no unit's information to draw"):
        report.draw(found, tmp_path / "y.png")
