"""``simmim report``: the table again, a picture, and a page that needs nothing else."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from models import mlp
from test_report import CLASSES, UNITS, VECTORS, made

from simmim_ext import CompressConfig, prune, score

EVIL = "</style><script>alert(1)</script>&[red]{{ 7 * 7 }}"
TRAINING = [{"epoch": e, "loss": 1 / e, "lr": 0.1, "seconds": 1.0} for e in (1, 2)]
WORST = {"class": 6, "samples": 967, "agreement": 0.8945, "kl": 0.0449}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The page's elements, its text, and whether what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.links, self.text, self.ids = [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def saved(tmp_path):
    """Makes a folder with a report in it, as saving a result does."""

    def save(report):
        (tmp_path / "small").mkdir(exist_ok=True)
        (tmp_path / "small" / "report.json").write_text(json.dumps(report))
        return tmp_path / "small"

    return save


def page_of(run, folder):
    path = folder.parent / "page.html"
    code, _, error = run("report", folder, "--html", path)
    assert (code, error) == (0, f"Wrote {path}\n")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    # Nothing is loaded: no scripts, and links go to shapes inside the page.
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}
    assert not re.search(r"@import|url\((?!#)", text)
    return page


def full():
    report = made({**CLASSES, "worst_classes": [WORST]}, {**UNITS, "kept": [0, 1, 2, 5, 9]})
    report["layers"][0]["unit_information"] = [0.1] * 10
    return {
        **report,
        "training": TRAINING,
        "stages": [{"name": "score", "seconds": 1.25}],
        "constraints": {"units": 0.25, "per_layer": {"body.0": 5}},
        "config": {"bins": 16, "steps": 1, "amp": False, "device": None},
        "versions": {"torch": "9.8.7"},
    }


def test_the_table_and_the_dict_again(run, saved):
    folder = saved(full())
    code, out, error = run("report", folder)
    assert (code, error) == (0, "")
    assert "95%: 0.0050 to 0.0200" in out
    assert "At least 94.1% agreement" in out
    code, out, error = run("report", folder, "--json")
    assert (code, error) == (0, "")
    assert json.loads(out) == full()


def test_the_page_holds_the_figures_of_the_report(run, saved):
    page = page_of(run, saved(full()))
    for part in (
        *("small", "10.0x", "4.0x", "95.00%", "95%: 94.00% to 96.00%", "95%: 0.0050 to 0.0200"),
        *("91.00%", "90.00%", "-1.00 points", "on 1,000 samples (evaluate)", "967", "89.5%"),
        *("body.0", "75.0%", "0-2, 5, 9", "Seconds: score 1.2", "units 0.25, per_layer body.0 5"),
        *("Configuration", "bins", "16", "Versions", "9.8.7"),
    ):
        assert part in page.text, part
    assert page.tags.count("svg") == 2  # the layer's units, and the training
    assert "prefers-color-scheme: dark" in page.text
    assert "Nothing was trained" not in page.text
    for name, value in (("steps", "1"), ("amp", "no"), ("device", "none")):
        assert f"{name}{value}" in page.text


def test_the_page_of_values_and_weights_that_were_not_trained(run, saved):
    fidelity = {**VECTORS, "rank_correlation": 0.4321}
    report = made(fidelity, {"name": "0", "before": 1200, "after": 60}, accuracy=None)
    del report["layers"][0]["unit_information"]
    page = page_of(run, saved(report))
    for part in ("0.1234", "0.4321", "weights", "1,200", "5.0%", "Nothing was trained"):
        assert part in page.text, part
    assert "svg" not in page.tags
    code, out, error = run("report", saved(report), "--png", saved(report) / "x.png")
    assert (code, out) == (2, "")
    assert "the report has no unit's information to draw" in error


def test_what_was_pruned_without_data_has_a_report(run, tmp_path):
    model, rows = mlp(), torch.randn(50, 12)
    result = prune(
        model,
        {"0": torch.arange(10.0)},
        constraints={"units": 0.5},
        example_inputs=rows,
        config=CompressConfig(allocation="score"),
    )
    result.save(tmp_path / "pruned")
    code, out, error = run("report", tmp_path / "pruned")
    assert (code, error) == (0, "")
    assert "parameters" in out
    assert "latency" not in out
    page = page_of(run, tmp_path / "pruned")
    for part in ("fewer parameters", "The models were not compared", "50.0%"):
        assert part in page.text, part
    code, _, error = run("report", tmp_path / "pruned", "--png", tmp_path / "x.png")
    assert code == 2
    assert "no unit's information to draw: there is some where units were removed" in error


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_what_was_pruned_by_its_information_has_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    model, rows = mlp(), torch.randn(50, 12)
    prune(model, score(model, [rows]), constraints={"units": 0.5}).save(tmp_path / "pruned")
    code, _, _ = run("report", tmp_path / "pruned", "--png", tmp_path / "x.png")
    assert code == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_text_wherever_they_are_shown(run, saved):
    report = made(CLASSES, {**UNITS, "name": EVIL})
    report["config"] = {EVIL: EVIL}
    page = page_of(run, saved(report))
    assert page.text.count(EVIL) == 4  # table, panel, and both sides of the setting
    report["layers"][0]["name"] = "[red]x"
    code, out, _ = run("report", saved(report))
    assert code == 0
    assert "units of [red]x" in out


def test_a_picture_and_a_page_at_once(run, saved, tmp_path):
    files = tmp_path / "x.png", tmp_path / "x.html"
    code, out, error = run("report", saved(full()), "--png", files[0], "--html", files[1], "--json")
    assert (code, json.loads(out)) == (0, full())
    assert error == f"Wrote {files[0]}\nWrote {files[1]}\n"
    assert files[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "is no saved result: its report.json cannot be read (No such file or directory)"),
        ("{", "report.json is no JSON: "),
        ("[]", "report.json is no report: it needs teacher, student, fidelity, latency, layers"),
        ('{"teacher": {}}', "report.json is no report: it needs teacher, student"),
    ],
)
def test_a_folder_that_is_no_result(run, tmp_path, content, text):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    code, out, error = run("report", tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert text in error


def test_a_file_of_another_kind_or_that_cannot_be_written(run, saved):
    for option, suffix in (("--html", ".html"), ("--png", ".png")):
        code, _, error = run("report", saved(full()), option, "x.txt")
        assert code == 2
        assert f"argument {option}: must be a file name ending in {suffix}, got x.txt" in error
        code, _, error = run("report", saved(full()), option, f"/nowhere/x{suffix}")
        assert (code, error.count("\n")) == (2, 1)
        assert f"/nowhere/x{suffix}" in error


def test_a_page_without_its_packages_says_what_to_install(run, saved, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, error = run("report", saved(full()), "--html", tmp_path / "x.html")
    assert (code, out) == (2, "")
    assert "pages need jinja2: pip install 'simmim_ext[report]'" in error
