"""Models of the transformers library, end to end: compress, report, save, load elsewhere."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from models import snapshot

from simmim_ext import CompressConfig, SimMIMError, compress, distill, load
from simmim_ext.conversion import prepared
from simmim_ext.equivalence import check_mask_equivalence
from simmim_ext.fidelity import compare
from simmim_ext.forward import forward
from simmim_ext.graph import trace_units
from simmim_ext.removal import apply_history, remove_units

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")

SAMPLES = 160
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_CACHE = {"use_cache": False}


def llama(key_value_heads=2, tied=False, kind="Llama"):
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, intermediate_size=48, num_key_value_heads=key_value_heads,
        tie_word_embeddings=tied, **NO_CACHE,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0,
        eos_token_id=0, **NO_CACHE,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(**SIZES, intermediate_size=64)
    return transformers.BertModel(config, add_pooling_layer=False)


def phi():
    config = transformers.PhiConfig(**SIZES, intermediate_size=48, **NO_CACHE)
    return transformers.PhiForCausalLM(config)


def phi3():
    config = transformers.Phi3Config(
        **SIZES, intermediate_size=48, num_key_value_heads=2, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, **NO_CACHE,
    )  # fmt: skip
    return transformers.Phi3ForCausalLM(config)


def bloom():
    config = transformers.BloomConfig(
        vocab_size=60, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        **NO_CACHE,
    )  # fmt: skip
    return transformers.BloomForCausalLM(config)


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    )
    return transformers.DistilBertForSequenceClassification(config)


def vit():
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=7,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def text():
    """Dicts of keyword inputs, half of the samples padded."""
    tokens = torch.randint(60, (SAMPLES, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[SAMPLES // 2 :, 6:] = 0
    return [
        {"input_ids": ids, "attention_mask": m}
        for ids, m in zip(tokens.split(40), mask.split(40), strict=True)
    ]


def images():
    return list(
        torch.randn(SAMPLES, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(40)
    )


# Name -> what makes a fresh instance, its batches, and a budget.
MODELS = {
    "bert": (bert, text, {"units": 0.5}),
    "distilbert": (distilbert, text, {"params": 0.5}),
    "llama": (llama, text, {"params": 0.5}),
    "llama, tied": (lambda: llama(tied=True), text, {"params": 0.5}),
    "llama, four key/value heads": (lambda: llama(4), text, {"params": 0.5}),
    "llama, one key/value head": (lambda: llama(1), text, {"params": 0.5}),
    "llama in bf16": (lambda: llama().bfloat16(), text, {"params": 0.5}),
    "mistral": (lambda: llama(kind="Mistral"), text, {"params": 0.5}),
    "qwen2": (lambda: llama(kind="Qwen2"), text, {"params": 0.5}),
    "qwen3": (lambda: llama(kind="Qwen3"), text, {"params": 0.5}),
    "phi": (phi, text, {"params": 0.5}),
    "gpt2": (gpt2, text, {"params": 0.5}),
    "vit": (vit, images, {"params": 0.5}),
}
CONFIG = CompressConfig(epochs=1)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def made(name):
    """A model with weights that mean something to it, and its batches."""
    make, data, budget = MODELS[name]
    return strong(make), data(), budget


def strong(make):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


# A network with random weights has nothing that so few samples could teach its student.
@pytest.mark.filterwarnings("ignore:compress. distillation took the model further")
@pytest.mark.parametrize("name", MODELS)
def test_half(name, tmp_path):
    model, data, budget = made(name)
    model.train()
    before = snapshot(model)
    result = compress(model, calibration=data, constraints=budget, config=CONFIG, progress=False)
    assert snapshot(model) == before
    assert all(module.training for module in result.model.modules())
    assert {type(m) for m in result.model.modules()} == {type(m) for m in model.modules()}
    report = json.loads(json.dumps(result.report))
    assert report["output"] == ("embeddings" if name == "bert" else "classes")
    if "params" in budget:
        shares = [report[who]["params"] for who in ("student", "teacher")]
        assert 0.4 * shares[1] < shares[0] <= 0.5 * shares[1]

    result.save(tmp_path / "half")
    fresh = MODELS[name][0]()
    loaded = load(tmp_path / "half", fresh)
    with torch.no_grad():
        outputs = forward(result.model.eval(), data[0])
        assert torch.equal(forward(loaded.eval(), data[0]), outputs)


@pytest.mark.parametrize("name", MODELS)
def test_heads_go_whole_and_nothing_else_changes(name):
    model, data, _ = made(name)
    model, steps = prepared(model)
    groups = trace_units(model, data[0])
    heads = [group for group in groups if group.channels > 1]
    assert len(heads) == 2  # one attention in each of the two layers
    kept = {group.name: [group.units - 1] for group in heads}
    pruned, history = remove_units(model, heads, kept)
    check_mask_equivalence(model, pruned, history, data[0])
    # One channel of a head that is gone for one of the head that stays.
    step = next(step for step in history if step.get("axis") == "in")
    wrong = [{**s, "kept": [0, *s["kept"][1:]]} if s is step else s for s in history]
    with pytest.raises(SimMIMError, match="removed at the wrong place"):
        check_mask_equivalence(model, apply_history(model, wrong), history, data[0])


def test_a_gate_goes_with_its_value_in_a_fused_layer():
    # Phi-3's attention has the number of its heads from the config of them all: they stay.
    model, data, heads = strong(phi3), text(), ["*.qkv_proj"]
    groups = {g.name: g for g in trace_units(model, data[0], ignored_layers=heads)}
    gated = groups["model.layers.0.mlp"]
    assert (gated.units, gated.channels) == (48, 1)
    assert [m.module.rpartition(".")[2] for m in gated.members] == ["gate_up_proj", "down_proj"]
    assert gated.members[0].units == (*range(48), *range(48))
    result = compress(
        model, calibration=data, constraints={"params": 0.5}, ignored_layers=heads, config=CONFIG
    )
    layers = {layer["name"]: layer for layer in result.report["layers"]}
    assert set(layers) == {"model.embed_tokens", "model.layers.0.mlp", "model.layers.1.mlp"}
    assert all(layer["after"] < layer["before"] for layer in layers.values())


def test_a_residual_that_is_added_within_attention_is_followed():
    # BLOOM's position biases are made for the number of heads in the whole model: they stay.
    model, data, heads = strong(bloom), text(), ["*.query_key_value"]
    groups = {g.name: g for g in trace_units(model, data[0], ignored_layers=heads)}
    width = groups["transformer.word_embeddings"]
    assert {(f"transformer.h.{i}.self_attention.dense", "out") for i in range(2)} < {
        (m.module, m.axis) for m in width.members
    }
    result = compress(
        model, calibration=data, constraints={"params": 0.5}, ignored_layers=heads, config=CONFIG
    )
    assert result.report["student"]["params"] <= 0.5 * result.report["teacher"]["params"]


def test_key_value_groups_of_two_do_not_hang():
    # torch-pruning's own tracing never returns where query heads / key/value heads == 2.
    model, data, _ = made("llama")
    groups = {group.name: group for group in trace_units(model, data[0], time_limit=20)}
    heads = groups["model.layers.0.self_attn"]
    assert (heads.units, heads.channels) == (2, 16)
    sizes = {m.module.rpartition(".")[2]: len(m.indices) for m in heads.members}
    assert sizes == {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32}
    gated = groups["model.layers.0.mlp.gate_proj"]
    assert {m.module.rpartition(".")[2] for m in gated.members} == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_tied_embeddings_stay_tied(tmp_path):
    model, data, _ = made("llama, tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    result = compress(
        model,
        calibration=data,
        constraints={"params": 0.4},
        config=CompressConfig(epochs=1, allocation="uniform"),
        progress=False,
    )
    small = result.model
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.model.embed_tokens.weight.shape[1] < 32
    assert small.model.embed_tokens.embedding_dim == small.lm_head.in_features
    result.save(tmp_path / "tied")
    loaded = load(tmp_path / "tied", MODELS["llama, tied"][0]())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_generation_with_a_cache_after_heads_are_gone():
    model, data, _ = made("gpt2")
    result = compress(
        model,
        calibration=data,
        constraints={"params": 0.4},
        config=CompressConfig(epochs=0, allocation="uniform"),
        progress=False,
    )
    small, prompt = result.model.eval(), data[0]["input_ids"][:2, :4]
    assert small.transformer.h[0].attn.num_heads < 4
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = small.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, small.generate(prompt, use_cache=False, **options))


def test_conv1d_becomes_linear_and_back_exactly():
    model, data, _ = made("gpt2")
    worked_on, steps = prepared(model)
    assert {step["convert"] for step in steps} == {"Linear"}
    assert type(worked_on.transformer.h[0].mlp.c_fc) is torch.nn.Linear
    back = [{**step, "convert": "Conv1D"} for step in steps]
    again = apply_history(model, [*steps, *back])
    for (n, a), (m, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert n == m
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@pytest.mark.filterwarnings("ignore:.*loss_type=None.*")
def test_a_causal_language_model_is_as_accurate_as_it_is():
    torch.manual_seed(0)
    model = gpt2().eval()
    tokens = (torch.arange(12) + torch.randint(60, (64, 1))) % 60
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    batch = {"input_ids": tokens, "labels": tokens}
    assert compare(model, model, [batch]).teacher["accuracy"] > 0.9
    learnt = CompressConfig(epochs=1, label_weight=1.0)
    _, history = distill(model, model, [batch], config=learnt)
    assert history[0]["loss"] < 0.5


def test_distillation_checkpoints_gradients_as_asked(monkeypatch):
    torch.manual_seed(0)
    model, batch = llama().eval(), {"input_ids": torch.randint(60, (8, 12))}
    config, runs = CompressConfig(epochs=2), []
    mlp = type(model.model.layers[0].mlp)
    original = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda *args: runs.append(args) or original(*args))
    student = llama()
    plain, _ = distill(student, model, [batch], config=config)
    without = len(runs)
    with warnings.catch_warnings():  # newer versions have another name for it
        warnings.simplefilter("ignore")
        student.gradient_checkpointing_enable()
    found, _ = distill(student, model, [batch], config=config)
    assert len(runs) - without == without + 2 * 2  # each of two layers once more a step
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)


def test_unknown_attention_is_named_before_any_work_and_left_alone_on_demand():
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(config)
    head = torch.nn.Linear(32, 5)
    net = torch.nn.ModuleDict({"t5": model, "head": head})
    options = {"forward_fn": lambda m, b: m["head"](m["t5"](**b).last_hidden_state.mean(1))}
    with pytest.raises(
        SimMIMError, match=r"'t5.encoder.block.0.layer.0.SelfAttention', a T5Attent"
    ):
        trace_units(net, text()[0], **options)
    groups = trace_units(net, text()[0], ignored_layers=["*.SelfAttention"], **options)
    assert [g.name.rpartition(".")[2] for g in groups] == ["wi", "wi"]


@pytest.mark.parametrize(("kind", "hidden"), [("CodeGen", "fc_in"), ("GPTBigCode", "c_fc")])
def test_the_rest_shrinks_around_ignored_attention_that_cannot_be_followed(kind, hidden):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, n_embd=32, n_head=4, n_layer=2, n_positions=16, n_ctx=16, rotary_dim=4,
        n_inner=24, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    before = snapshot(model)
    result = compress(
        model,
        calibration=text(),
        constraints={"units": 0.5},
        ignored_layers=["*.attn"],
        config=CompressConfig(epochs=0),
    )
    changed = {
        name.rpartition(".")[2]
        for name, p in result.model.named_modules()
        if isinstance(p, torch.nn.Linear)
        and p.weight.shape != model.get_submodule(name).weight.shape
    }
    assert hidden in changed
    assert len(changed) == 2  # and what reads it
    assert snapshot(model) == before


SCRIPT = """
import json, sys
import torch, transformers
from simmim_ext import load
config, folder, inputs, outputs = sys.argv[1:]
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**json.loads(config)))
small = load(folder, model).eval()
with torch.no_grad():
    torch.save(small(**torch.load(inputs)).logits, outputs)
"""


def test_loads_in_a_process_that_has_only_the_models_class(tmp_path):
    model, data, _ = made("gpt2")
    result = compress(
        model, calibration=data, constraints={"params": 0.5}, config=CONFIG, progress=False
    )
    result.save(tmp_path / "small")
    torch.save(data[0], tmp_path / "inputs.pt")
    config = {
        k: v
        for k, v in model.config.to_dict().items()
        if k in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "use_cache")
    }
    paths = [str(tmp_path / name) for name in ("small", "inputs.pt", "outputs.pt")]
    subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(config), *paths],
        check=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    with torch.no_grad():
        expected = result.model.eval()(**data[0]).logits
    assert torch.equal(torch.load(tmp_path / "outputs.pt"), expected)
