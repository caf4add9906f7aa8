"""Distillation: the student learns the teacher's predictive distribution (Hinton et al., 2015)."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import (
    check_device,
    check_gradients,
    check_model,
    check_options,
    check_trainable,
    copied,
    watched,
)
from .config import CompressConfig
from .data import Batch, batches, check_reiterable, samples_of
from .errors import SimMIMError, about
from .forward import ForwardFn, forward
from .inputs import inputs_kept
from .label_loss import label_loss
from .masters import Masters
from .modes import device_of, evaluating, seeded
from .outputs import kl_per_sample, noise_variance, resolve_output
from .progress import bar
from .similarity import gram_loss, last_input
from .step_scales import step_scales
from .storage import Json, restore_tensors, tensors_of
from .training_mode import learning

History = list[dict[str, Any]]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Iterable[Batch],
    *,
    config: CompressConfig | None = None,
    output: str = "auto",
    forward_fn: ForwardFn | None = None,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Trains a copy of the student to predict what the teacher predicts.

    The loss is T^2 KL(teacher || student) at temperature T, with Adam and a cosine schedule, whose
    learning rate is meant for weights no larger than the teacher's: those of a layer that are
    larger take larger steps, as in LARS (You et al., 2017). Weights of half precision are rounded
    from copies in float32, which take the steps. The student runs as in use, without dropout, but
    for the batch statistics of BatchNorm;
    ``config`` adds a label term and the similarity-preserving Gram term of Tung & Mori (2019),
    taken at the input of the linear layer that runs last. For "values" and "embeddings" the KL is
    that of Gaussian outputs.

    Args:
        student: the model to train; it is not changed.
        teacher: the model to imitate; it is not changed.
        data: re-iterable of batches; labels are needed only with ``config.label_weight``.
        config: epochs, lr, temperature, weights, seed, amp.
        output: "auto", "classes", "values" or "embeddings".
        forward_fn: ``forward_fn(model, batch) -> [samples, outputs]`` where the model's own
            forward does not give that.
        progress: show a progress bar where standard error is a terminal.

    Returns:
        The trained copy, in the student's modes, and for each epoch its mean loss in nats,
        learning rate at the end and seconds.

    Raises:
        SimMIMError: the data is empty or read-once, the loss stops being finite, nothing in the
            student can be trained, or it is float16 or gives sparse gradients.
    """
    for argument, model in (("student", student), ("teacher", teacher)):
        check_model("distill", model, argument)
    check_options("distill", config=config, forward_fn=forward_fn)
    config = config or CompressConfig()
    check_device("distill", student, config)
    check_trainable("distill", student, config.epochs)
    check_reiterable(data)
    with seeded(config.seed), inputs_kept(models=2):
        student, teacher = copied("distill", student), watched("distill", teacher)
        first = next(batches(data))
        resolved = resolve_output(output, teacher, first, forward_fn, name="data")
        noise = None
        if resolved != "classes":
            noise = noise_variance(teacher, data, forward_fn, name="data")
        check_gradients("distill", student, first, config.epochs, forward_fn)
        run = Distillation(
            student, teacher, data, config=config, noise=noise, forward_fn=forward_fn, name="data"
        )
        with bar("distil", config.epochs * run.steps, enabled=progress) as advance:
            while run.epoch < config.epochs:
                run.run_epoch(advance)
    return run.student, run.history


class Distillation:
    """A distillation that goes on epoch by epoch, so that its state can be kept in between.

    Every epoch is seeded from the seed and its number: it depends on the state it starts from
    and on nothing that happened earlier in the process.

    Args:
        student: changed in place.
        teacher: not changed.
        data: re-iterable of batches.
        config: as in ``distill``.
        noise: None for classes; for values and embeddings the Gaussian output noise's variance.
        forward_fn: as in ``distill``.
        state: what ``state`` gave, to go on from there.
        name: how errors name the data.

    Attributes:
        student: the model in training, changed in place.
        epoch: number of epochs done.
        history: one dict for each of them.
        steps: batches in an epoch.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data: Iterable[Batch],
        *,
        config: CompressConfig,
        noise: float | None = None,
        forward_fn: ForwardFn | None = None,
        state: tuple[dict[str, Tensor], Json] | None = None,
        name: str = "train",
    ) -> None:
        check_reiterable(data, name)
        self.student = student
        self.epoch = 0
        self.history: History = []
        self._teacher = teacher
        self._data, self._name = data, name
        self._config = config
        self._forward_fn = forward_fn
        self._device = device_of(student)
        self._noise = noise
        with seeded(config.seed):
            self.steps = _count_batches(data)
        if state is not None:
            # Before the optimizer, since a restored layer may be another object.
            weights = {n[8:]: t for n, t in state[0].items() if n.startswith("student.")}
            restore_tensors(student, weights, state[1]["student"])
        # Of the student as training began, wherever it is taken up again.
        self._scales = step_scales(student, teacher) if state is None else state[1]["scales"]
        trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self._masters = Masters(trained.values())
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            group = groups.setdefault(self._scales.get(name, 1.0), [])
            group.append(self._masters.of(parameter))
        self._optimizer = (
            torch.optim.Adam([{"params": group, "scale": s} for s, group in groups.items()])
            if groups
            else None
        )
        if state is not None:
            self._restore_progress(*state)

    def run_epoch(self, advance: Callable[[float], None] = lambda steps: None) -> None:
        """Trains for one epoch and adds it to the history."""
        config, begin = self._config, time.perf_counter()
        total, samples, lr = 0.0, 0, config.lr
        assert self._optimizer is not None
        # torch 2.11's Adam counts its steps on the default device.
        elsewhere = torch.get_default_device().type != "cpu"
        counting = torch.device("cpu") if elsewhere else nullcontext()
        with (
            seeded(config.seed, self.epoch + 1, device=self._device),
            evaluating(self._teacher, self.student),
            ExitStack() as modes,
        ):
            data = batches(self._data, device=self._device, name=self._name)
            for step, batch in enumerate(data):
                advance(1)
                if step == 0:
                    with about(self._name):
                        mode = learning(self.student, batch, self._forward_fn, config)
                        batch_norm = modes.enter_context(mode)
                if batch_norm and samples_of(batch) == 1:
                    continue  # One sample has no batch statistics.
                lr = self._learning_rate(step)
                for group in self._optimizer.param_groups:
                    group["lr"] = lr * group["scale"]
                loss, rows = self._loss(batch)
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise SimMIMError(
                        f"distill: the loss became {value} in epoch {self.epoch + 1}, step "
                        f"{step + 1}; lower config.lr ({config.lr}), or check the data for NaN"
                    )
                self._masters.take_gradients()
                with counting:
                    self._optimizer.step()
                self._masters.give_values()
                total += value * rows
                samples += rows
        # Left to the caller, these gradients would go into the first step of any further training.
        self._optimizer.zero_grad(set_to_none=True)
        if samples == 0:
            raise SimMIMError(
                f"distill: every batch of epoch {self.epoch + 1} has one sample, on which the "
                "student's BatchNorm layers cannot be trained; give batches of 2 samples or more, "
                "or set freeze_batch_norm=True or epochs=0"
            )
        self.epoch += 1
        self.history.append(
            {
                "epoch": self.epoch,
                "loss": total / samples,
                "lr": lr,
                "seconds": time.perf_counter() - begin,
            }
        )

    def state(self) -> tuple[dict[str, Tensor], Json]:
        """Everything that the next epoch depends on, as tensors and JSON."""
        weights, description = tensors_of(self.student)
        tensors = {f"student.{name}": value for name, value in weights.items()}
        if self._optimizer is not None:
            for i, slots in self._optimizer.state_dict()["state"].items():
                for key, value in slots.items():
                    tensors[f"adam.{i}.{key}"] = value.detach().cpu().clone()
        tensors |= {f"master.{name}": value for name, value in self._masters.state().items()}
        meta = {
            "student": description,
            "epoch": self.epoch,
            "history": self.history,
            "scales": self._scales,
        }
        return tensors, meta

    def _restore_progress(self, tensors: dict[str, Tensor], meta: Json) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                slots.setdefault(int(index), {})[key] = value
        if self._optimizer is not None:
            state = self._optimizer.state_dict()
            self._optimizer.load_state_dict({**state, "state": slots})
        self._masters.restore({n[7:]: t for n, t in tensors.items() if n.startswith("master.")})
        self.epoch, self.history = meta["epoch"], list(meta["history"])

    def _learning_rate(self, step: int) -> float:
        done = (self.epoch + min(step / self.steps, 1)) / self._config.epochs
        return self._config.lr * 0.5 * (1 + math.cos(math.pi * done))

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        """The loss of a batch, a scalar, and the number of its samples."""
        config = self._config
        compared = config.gram_weight > 0
        amp = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=config.amp)
        with amp, about(self._name):
            with torch.no_grad(), last_input(self._teacher, compared) as told:
                teacher = forward(self._teacher, batch, self._forward_fn)
            with last_input(self.student, compared) as learnt:
                student = forward(self.student, batch, self._forward_fn)
        if teacher.shape != student.shape:
            raise SimMIMError(
                "distill: student must have as many outputs as teacher, got "
                f"{list(student.shape)} and {list(teacher.shape)}; pass a forward_fn that makes "
                "them alike"
            )
        teacher, student = teacher.float(), student.float()
        if self._noise is None:
            # T^2 keeps the gradient's size whatever the temperature.
            kl = kl_per_sample(teacher, student, temperature=config.temperature)
            loss = config.temperature**2 * kl.mean()
        else:
            loss = kl_per_sample(teacher, student, noise=self._noise).mean()
        if config.label_weight > 0:
            loss = loss + config.label_weight * label_loss(
                student, batch, self._noise, config.label_weight
            )
        if compared:
            loss = loss + config.gram_weight * gram_loss(told, learnt)
        return loss, len(student)


def _count_batches(data: Iterable[Batch]) -> int:
    """Batches in a pass over the data, which the cosine needs and not every loader knows."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # Also from a DataLoader, of a dataset without a length.
        return sum(1 for _ in data)
