"""Batches of any shape: their inputs, labels and rows.

A batch is a tensor, a tuple or list whose first item is the input, or a mapping of keyword
inputs; a tuple's second item and a mapping's "labels" or "label" are its labels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import SimMIMError, about

Batch = Any

_LABEL_KEYS = ("labels", "label")
_HELD_OUT_EVERY = 5


def inputs_of(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's forward for this batch."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k not in _LABEL_KEYS}
    if isinstance(batch, list | tuple) and len(batch) > 0:
        return inputs_of(batch[0])
    raise SimMIMError(
        "a batch must be a tensor, a tuple whose first item is the input, or a dict of keyword "
        f"inputs, got {describe(batch)}; change the loader or its collate_fn"
    )


def labels_of(batch: Batch) -> Tensor | None:
    """The batch's labels [samples, ...] as they come, or None where it carries none.

    ``labels.class_labels`` and ``labels.value_labels`` arrange them as the outputs are.
    """
    if isinstance(batch, Mapping):
        found = [batch[key] for key in _LABEL_KEYS if key in batch]
    elif isinstance(batch, list | tuple):
        found = list(batch[1:2]) or ([labels_of(batch[0])] if batch else [])
    else:
        found = []
    return found[0] if found and isinstance(found[0], Tensor) else None


def token_mask(batch: Batch) -> Tensor | None:
    """The batch's attention mask [samples, tokens], which tells tokens from padding, or None."""
    mask = inputs_of(batch)[1].get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def samples_of(batch: Batch) -> int:
    """Number of samples: the length of the first input tensor."""
    args, kwargs = inputs_of(batch)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    raise SimMIMError(f"a batch must hold an input tensor [samples, ...], got {describe(batch)}")


def rows_of_samples(outputs: Tensor, batch: Batch) -> Tensor:
    """How many rows of ``outputs`` [rows, outputs] are of each sample of the batch, [samples].

    One, or as many as it has tokens; where neither can be, each row counts as a sample.
    """
    rows, samples, mask = len(outputs), samples_of(batch), token_mask(batch)
    if rows != samples and mask is not None:
        kept = (mask != 0).sum(dim=1).cpu()
        if int(kept.sum()) == rows:
            return kept[kept > 0]
    each = rows // samples if rows >= samples > 0 and rows % samples == 0 else 1
    return torch.full((rows // each,), each, device="cpu")


def take(batch: Batch, rows: Tensor | slice) -> Batch:
    """The given rows of every tensor (and list) of the batch that has one row per sample."""
    samples = samples_of(batch)

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dim() == 0 or len(value) != samples:
                return value
            if value.layout != torch.strided:
                raise SimMIMError(
                    f"a batch holds a {value.layout} {describe(value)}, of which samples cannot be "
                    "taken; give it dense, as x.to_dense() does"
                )
            return value[rows]
        if isinstance(value, Mapping):
            return {key: pick(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return _like(value, [pick(item) for item in value])
        return value

    return pick(batch)


def to_device(batch: Batch, device: torch.device | str | None) -> Batch:
    """The batch with every tensor on the device; None leaves it where it is.

    Tensors that were made under ``torch.inference_mode`` are copied: autograd refuses them. Those
    that require a gradient are detached: several passes cannot go back through one graph.

    Raises:
        SimMIMError: a tensor has no values.
    """

    def move(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            raise SimMIMError(
                f"a batch holds a {describe(tensor)} on the meta device, where tensors have no "
                "values; give its data"
            )
        tensor = tensor.detach()
        if tensor.is_inference():
            with torch.inference_mode(False):
                tensor = tensor.clone()
        return tensor if device is None else tensor.to(device, non_blocking=True)

    return map_tensors(batch, move)


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return _like(batch, [map_tensors(value, change) for value in batch])
    return batch


def batches(
    data: Iterable[Batch],
    *,
    device: torch.device | str | None = None,
    limit: int | None = None,
    name: str = "data",
) -> Iterator[Batch]:
    """Iterates over the data's batches, on the device, until ``limit`` samples have come.

    The last batch is cut to the limit and empty batches are left out.

    Raises:
        SimMIMError: the data can be read only once, holds no sample, or is no set of batches.
    """
    check_reiterable(data, name)
    seen = 0
    for batch in data:
        with about(name):
            samples = samples_of(batch)
            if samples == 0:
                continue
            if limit is not None and seen + samples > limit:
                batch = take(batch, slice(0, limit - seen))
                samples = limit - seen
            batch = to_device(batch, device)
        seen += samples
        yield batch
        if seen == limit:
            return
    if seen == 0:
        raise SimMIMError(
            f"{name}: no sample came out of {describe(data)}; give samples, and batches that can "
            "be iterated over again (a DataLoader or a list), for several passes are made"
        )


def check_reiterable(data: Any, name: str = "data") -> None:
    """Raises SimMIMError unless ``data`` can be iterated over more than once, by batches."""
    if isinstance(data, Tensor):
        raise SimMIMError(
            f"{name}: expected an iterable of batches, got one {describe(data)}; "
            "give its batches, for example x.split(256)"
        )
    if isinstance(data, Mapping) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise SimMIMError(
            f"{name}: expected an iterable of batches (a DataLoader or a list), got "
            f"{describe(data)}"
        )
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(
        data, torch.utils.data.IterableDataset
    ):
        raise SimMIMError(
            f"{name}: expected an iterable of batches, got {describe(data)}, which gives single "
            "samples; wrap it in a torch.utils.data.DataLoader"
        )
    if isinstance(data, Iterator):
        raise SimMIMError(
            f"{name}: got {describe(data)}, which can be read only once, and several passes are "
            "made; give a DataLoader or a list of batches"
        )


def gather(data: Iterable[Batch], limit: int, *, name: str = "calibration") -> list[Batch]:
    """At most ``limit`` samples as a list of batches, kept in memory where they are.

    Several stages read the calibration samples, and a shuffling loader would give each of them
    others: held-out samples would not stay held out.
    """
    return list(batches(data, limit=limit, name=name))


def split(data: Sequence[Batch], *, name: str = "calibration") -> tuple[list[Batch], list[Batch]]:
    """Splits gathered batches into four fifths to fit on and the held-out fifth.

    Every fifth sample is held out, so that data sorted by class split evenly.

    Raises:
        SimMIMError: fewer than five samples.
    """
    fit: list[Batch] = []
    held_out: list[Batch] = []
    start = 0
    for batch in data:
        index = torch.arange(start, start + samples_of(batch), device="cpu")
        start += len(index)
        out = index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        for part, chosen in ((fit, ~out), (held_out, out)):
            if chosen.any():
                part.append(take(batch, chosen.nonzero().flatten()))
    if start < _HELD_OUT_EVERY:
        raise SimMIMError(
            f"{name}: at least {_HELD_OUT_EVERY} samples are needed to hold a fifth of them out, "
            f"got {start}; give more, or give evaluate="
        )
    return fit, held_out


class Shuffled:
    """Batches of at most ``size`` samples in an order drawn from torch's global generator.

    Rows are shuffled within the batches given, and those among each other: tensors of unlike
    lengths (padded text) need no joining.
    """

    def __init__(self, data: Sequence[Batch], size: int = 128) -> None:
        self._data = data
        self._size = size

    def __len__(self) -> int:
        return sum(-(-samples_of(batch) // self._size) for batch in self._data)

    def __iter__(self) -> Iterator[Batch]:
        pieces = [
            (i, rows)
            for i, batch in enumerate(self._data)
            for rows in torch.split(torch.randperm(samples_of(batch), device="cpu"), self._size)
        ]
        for j in torch.randperm(len(pieces), device="cpu").tolist():
            i, rows = pieces[j]
            yield take(self._data[i], rows)


def _like(original: Any, items: list[Any]) -> Any:
    """The items in the type of the list, tuple or named tuple that they came from."""
    if hasattr(original, "_fields"):
        return type(original)(*items)
    return type(original)(items)


def describe(value: Any) -> str:
    """What a value is, for errors."""
    if isinstance(value, Tensor):
        return f"tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return "a dict of " + ", ".join(f"{key!r}: {describe(value[key])}" for key in value)
    if isinstance(value, list | tuple) and len(value) == 0:
        return f"an empty {type(value).__name__}"
    if isinstance(value, tuple):
        return f"a tuple that begins with {describe(value[0])}"
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiouAEIOU" or kind == "ndarray" else f"a {kind}"
