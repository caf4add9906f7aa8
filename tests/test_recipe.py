"""Recipes: what they may name, and every mistake in one line."""

import re
import sys
from pathlib import Path

import pytest
from recipes import CODE

from simmim_ext.recipe import read_recipe


def test_scores_need_no_constraints(project, run):
    path = project / "small.toml"
    path.write_text(path.read_text().replace("[constraints]\nunits = 0.25", ""))
    assert run("score", path)[0] == 0
    code, _, error = run("compress", path)
    assert code == 2
    assert "constraints must be a dict with at least one of units" in error


def test_a_module_of_a_package_and_a_method_by_name(project, run):
    (project / "package").mkdir()
    (project / "package" / "nets.py").write_text(
        "from net import build\n\nclass Nets:\n    small = staticmethod(build)\n"
    )
    path = project / "small.toml"
    text = path.read_text().replace('call = "net.py:build"', 'call = "package.nets:Nets.small"')
    path.write_text(text)
    code, _, error = run("score", path)
    assert code == 0, error


def test_files_of_one_name_are_two_modules(project, run):
    (project / "other").mkdir()
    (project / "other" / "net.py").write_text(CODE.replace("samples=1300", "samples=1000"))
    path = project / "small.toml"
    path.write_text(path.read_text().replace('"net.py:images"', '"other/net.py:images"'))
    assert run("score", path)[0] == 0
    names = [
        name
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", None)).startswith(str(project))
    ]
    assert sorted(names) == sorted(["net", str(project / "other" / "net.py")])


def test_the_readme_shows_a_recipe(tmp_path):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "small.toml").write_text(example)
    found = read_recipe(tmp_path / "small.toml")
    found.check_budget()
    assert found.model.reference.text == "net.py:build"
    assert found.weights == tmp_path / "trained.safetensors"
    assert found.data["train"].arguments == {"size": 64}
    assert found.settings == {"constraints": {"params": 0.25}}


def changed(old, new):
    return lambda text: text.replace(old, new)


CALLED = 'calibration = "net.py:images"'


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda text: "a = ", "is no TOML: "),
        (lambda text: "a = 1\n" + text, "the recipe has the unknown key 'a'; known are model, "),
        (lambda text: "round_to = true\n" + text, "'round_to' must be an integer, got True"),
        (lambda text: "round_to = 0\n" + text, "round_to must be an integer of at least 1, got 0"),
        (lambda text: 'granularity = "row"\n' + text, "granularity must be one of"),
        (lambda text: 'output = "labels"\n' + text, "output must be one of auto, classes"),
        (lambda text: 'ignored_layers = "body"\n' + text, "'ignored_layers' must be an array, got"),
        (lambda text: 'ignored_layers = ["bodi"]\n' + text, "ignored_layers holds 'bodi', which"),
        (lambda text: "[model]\ncall = 'a:b'", "the recipe needs 'data', which is missing"),
        (changed('call = "net.py:build"', ""), "model needs 'call', which is missing"),
        (changed(CALLED, ""), "data needs 'calibration', which is missing"),
        (changed(CALLED, f'{CALLED}\ntest = "a:b"'), "data has the unknown key 'test'; known are"),
        (changed('"net.py:build"', "3"), "model: 'call' must be a string, got 3"),
        (changed("units = 0.25", "units = 1.5"), "units must be a fraction kept in (0, 1] or an"),
        (changed("units = 0.25", "unit = 0.25"), "constraints: 'unit' is none of units, params"),
        (changed("epochs = 2", "epoch = 2"), "config has the unknown key 'epoch'; known are"),
        (changed("epochs = 2", "epochs = 2.5"), "CompressConfig: epochs must be an integer, got"),
        (changed("epochs = 2", 'device = "xpu:99"'), "config.device is 'xpu:99', which cannot be"),
        (changed('"net.py:build"', '"net.py"'), 'a callable is named "package.module:callable" or'),
        (changed('"net.py:build"', '"nets.py:build"'), "model: there is no file "),
        (changed('"net.py:build"', '"nets:build"'), "ModuleNotFoundError: No module named 'nets'"),
        (changed('"net.py:build"', '"net.py:built"'), "model: net.py has no 'built'"),
        (changed('"net.py:build"', '"net.py:numbers"'), "net.py:numbers is a list, which cannot"),
        (changed('"net.py:build"', '"net.py:images"'), "what it returns must be a torch.nn.Module"),
        (changed('"net.py:build"', '"net.py:broken"'), "raised KeyError: 'nothing' (net.py, line "),
        (changed('"net.py:build"', '"net.py:leaves"'), "net.py:leaves raised SystemExit: 3 (net."),
        (changed('"net.py:images"', '"bad.py:images"'), "importing bad.py raised SyntaxError: "),
        (changed('"net.py:images"', '"net.py:once"'), "calibration: got a tuple_iterator, which"),
        (
            changed(CALLED, 'calibration = { call = "net.py:images", arguments = { n = 1 } }'),
            "data.calibration: net.py:images raised TypeError: images() got an unexpected keyword",
        ),
        (changed("trained.", "nothing."), "nothing.safetensors cannot be read: No such file"),
        (changed('"trained.safetensors"', '"net.py"'), "net.py is no safetensors file ("),
        (
            changed('weights = "tr', 'arguments = { hidden = 9 }\nweights = "tr'),
            "trained.safetensors does not fit the model: Error(s) in loading state_dict for Net",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(project, run, change, text):
    (project / "bad.py").write_text("def images(:\n")
    path = project / "small.toml"
    path.write_text(change(path.read_text()))
    code, out, error = run("compress", path)
    assert (code, out) == (2, "")
    *before, last = error.splitlines()
    assert last.startswith("simmim compress: error: ")
    assert "small.toml" in last or "ignored_layers holds" in last
    assert text in last
    assert all("print" in line or "goes on" in line for line in before)
    assert not (project / "small").exists() or not list((project / "small").iterdir())


def test_no_recipe_an_occupied_folder_and_a_folder_as_a_recipe(project, run):
    code, _, error = run("compress", "nowhere.toml")
    assert (code, error.count("\n")) == (2, 1)
    assert "nowhere.toml cannot be read: No such file or directory" in error
    assert "cannot be read: Is a directory" in run("score", project)[2]
    code, _, error = run("compress", project / "small.toml", "--output", project)
    assert code == 2
    assert f"--output {project} is not an empty folder; name a new one" in error
    code, _, error = run("score", project / "small.toml", "--criterion", "beauty")
    assert code == 2
    assert "argument --criterion: invalid choice: 'beauty'" in error
