"""What a model answers to a batch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .data import Batch, describe, inputs_of, map_tensors, token_mask
from .errors import SimMIMError
from .inputs import copies

ForwardFn = Callable[[nn.Module, Batch], Tensor]


def forward(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None = None) -> Tensor:
    """The model's outputs [samples, outputs] for a batch, in the mode that the model is in.

    Takes a tensor, ``.logits``, ``.last_hidden_state`` (mean over the tokens that the attention
    mask keeps), a mapping's items of these names, or the first item of a tuple or list. Outputs
    per token [batch, tokens, outputs] count every token that the mask keeps as a sample.
    ``forward_fn(model, batch)`` overrules all of it.

    Raises:
        SimMIMError: the model fails on the batch, or its outputs are none of these.
    """
    outputs, mask = _answer(model, batch, forward_fn)
    if isinstance(outputs, tuple | list) and not hasattr(outputs, "_fields") and outputs:
        outputs = outputs[0]
    if isinstance(logits := named_output(outputs, "logits"), Tensor):
        outputs = logits
    elif isinstance(hidden := named_output(outputs, "last_hidden_state"), Tensor):
        return _pool(hidden, mask)
    if not isinstance(outputs, Tensor):
        raise SimMIMError(
            f"the model returned {describe(outputs)}; expected a tensor, or an object or a dict "
            "with logits or last_hidden_state; pass forward_fn=lambda model, batch: ... that "
            "returns [samples, outputs]"
        )
    if not outputs.is_floating_point():
        raise SimMIMError(
            f"the model returned a tensor of {outputs.dtype}; expected floating-point outputs, as "
            "logits before any argmax; pass forward_fn=lambda model, batch: ... that returns them"
        )
    if outputs.dim() == 1:
        return outputs[:, None]
    if outputs.dim() == 3:
        return token_rows(outputs, mask)
    if outputs.dim() != 2:
        raise SimMIMError(
            f"the model returned a tensor of shape {list(outputs.shape)}; expected "
            "[samples, outputs]; pass forward_fn=lambda model, batch: ... that returns it"
        )
    return outputs


def mask_of(batch: Batch, forward_fn: ForwardFn | None) -> Tensor | None:
    """The attention mask that ``forward`` leaves padding out by, if there is one."""
    return token_mask(batch) if forward_fn is None else None


def token_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values [..., features] as rows; of [samples, tokens, features] those that the mask keeps."""
    rows = values.flatten(0, -2)
    if mask is None or values.dim() != 3:
        return rows
    return rows[_of_tokens(mask, values).flatten().bool()]


def named_output(outputs: Any, name: str) -> Any:
    """What a model's outputs hold under that name, as an attribute or an item; None if nothing."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _answer(
    model: nn.Module, batch: Batch, forward_fn: ForwardFn | None
) -> tuple[Any, Tensor | None]:
    """Whatever the model returns for the batch, and the batch's attention mask."""
    mask = mask_of(batch, forward_fn)
    given = copies()
    if given is not None:
        batch = map_tensors(batch, given.copy)
    args, kwargs = inputs_of(batch) if forward_fn is None else ((), {})
    try:
        answer = model(*args, **kwargs) if forward_fn is None else forward_fn(model, batch)
    except SimMIMError:
        raise
    except Exception as error:
        called = "forward_fn" if forward_fn is not None else "the model"
        first = forward_fn is None and isinstance(batch, list | tuple)
        raise SimMIMError(
            f"{called} failed on a batch, {describe(batch)} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); "
            + ("it was given the first item alone; " if first else "")
            + "check the data, or pass a forward_fn=lambda model, batch: ... that fits it"
        ) from error
    if given is not None:
        given.end(model)
    return answer, mask


def _pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(dim=1)
    weight = _of_tokens(mask, hidden).to(hidden.dtype)[..., None]
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _of_tokens(mask: Tensor, outputs: Tensor) -> Tensor:
    """The mask for outputs [samples, tokens, ...].

    Raises:
        SimMIMError: it is of other tokens.
    """
    try:
        return mask.expand(outputs.shape[:2])
    except RuntimeError as error:
        raise SimMIMError(
            f"the model returned {describe(outputs)} for an attention_mask of shape "
            f"{list(mask.shape)}, which does not tell tokens from padding in it; pass "
            "forward_fn=lambda model, batch: ... that returns [samples, outputs] of what counts"
        ) from error
