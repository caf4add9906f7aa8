"""The stages of a compression, and the state that they leave behind."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .budget import PER_LAYER
from .checkpoint import Checkpoint
from .config import CompressConfig
from .data import Batch, Shuffled, take
from .distillation import Distillation
from .errors import warn
from .forward import ForwardFn
from .granularity import Granularity
from .graph import trace_units
from .measure import count_bytes, count_flops, count_params
from .nn import MaskedLinear
from .outputs import divergence
from .plan import check_reachable, own_values
from .progress import bar, stage
from .pruning import prune_units
from .reconstruction import reconstruct
from .removal import apply_history
from .schedule import budgets, composed, epochs_of_steps, sparsities, without_singles
from .scoring import score_groups
from .storage import Json, set_submodule
from .trials import measured
from .units import UnitGroup
from .weights import prune_weights

Constraints = Mapping[str, Any]

# A distillation is warned of that ends with so many times the divergence, and so much more of it.
_WORSE, _NATS = 1.2, 0.01


@dataclass
class State:
    """What a run has done so far; JSON as it stands."""

    steps: int = 0
    history: list[Json] = field(default_factory=list)
    layers: list[Json] = field(default_factory=list)
    stages: list[Json] = field(default_factory=list)
    training: list[Json] = field(default_factory=list)
    divergence: float | None = None  # of the student of this step before it was distilled


@dataclass(frozen=True)
class Run:
    """The stages of one call of ``compress``."""

    teacher: nn.Module
    fit: list[Batch]
    train: Iterable[Batch]
    example: Batch
    constraints: Constraints
    granularity: Granularity
    ignored: frozenset[str]
    round_to: int
    noise: float | None
    forward_fn: ForwardFn | None
    config: CompressConfig
    progress: bool

    def go(self, checkpoint: Checkpoint) -> tuple[nn.Module, State]:
        """All steps of the schedule, from where the checkpoint left them."""
        config, state, student = self.config, State(), self.teacher
        steps = self._budgets()
        epochs = epochs_of_steps(config.epochs, config.steps)
        kept = checkpoint.load()
        if kept is not None:
            state = State(**kept[1]["run"])
            student = apply_history(self.teacher, state.history)
        # A kept state is that of the distillation of the step pruned last.
        for step in range(max(state.steps - 1, 0), config.steps):
            if state.steps == step:
                student = self._prune(student, steps[step], state, untrained=epochs[step] == 0)
                state.steps += 1
            settings = dataclasses.replace(
                config, epochs=epochs[step], seed=config.seed + step, schedule="one-shot", steps=1
            )
            distillation = Distillation(
                student,
                self.teacher,
                self.train,
                config=settings,
                noise=self.noise,
                forward_fn=self.forward_fn,
                state=None if kept is None else (kept[0], kept[1]["distillation"]),
                name="calibration" if isinstance(self.train, Shuffled) else "train",
            )
            kept = None
            self._distil(distillation, epochs[step], checkpoint, state)
            student = distillation.student
        return student, state

    def _distil(
        self, distillation: Distillation, epochs: int, checkpoint: Checkpoint, state: State
    ) -> None:
        def keep() -> None:
            tensors, progress = distillation.state()
            run = dataclasses.asdict(state)
            checkpoint.save(tensors, {"run": run, "distillation": progress})

        if epochs and distillation.epoch == 0:
            state.divergence = self._divergence(distillation.student)
        keep()
        with bar("distil", epochs * distillation.steps, enabled=self.progress) as advance:
            advance(distillation.epoch * distillation.steps)
            while distillation.epoch < epochs:
                distillation.run_epoch(advance)
                keep()
        if epochs:
            seconds = sum(row["seconds"] for row in distillation.history)
            state.stages.append({"name": "distil", "seconds": seconds})
            state.training += distillation.history
            self._compare(distillation.student, state)

    def _divergence(self, student: nn.Module) -> float:
        return divergence(self.teacher, student, self.fit, self.noise, self.forward_fn)

    def _compare(self, student: nn.Module, state: State) -> None:
        """Warns of a distillation that took the student away from the model, and clearly so."""
        before, after = state.divergence, self._divergence(student)
        # Labels and a Gram term may have been worth it.
        aims_at_more = self.config.label_weight > 0 or self.config.gram_weight > 0
        if before is None or after <= max(_WORSE * before, before + _NATS) or aims_at_more:
            return
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in student.modules())
        freezes = batch_norm and not self.config.freeze_batch_norm
        warn(
            f"compress: distillation took the model further from the original, from KL {before:.3g}"
            f" to {after:.3g} nats on calibration samples; give more training data or epochs, lower"
            f" config.lr ({self.config.lr:g}), "
            + ("set freeze_batch_norm=True, " if freezes else "")
            + "or set epochs=0 to leave it as it was reconstructed"
        )

    def _prune(
        self, model: nn.Module, constraints: Constraints, state: State, *, untrained: bool
    ) -> nn.Module:
        if self.granularity.name == "unit":
            return self._prune_units(model, constraints, state, untrained)
        sparsity = constraints.get("sparsity")
        with stage(state.stages, "prune", self.progress):
            student, state.layers = prune_weights(
                _unmasked(model, state.layers),
                self.fit,
                sparsity=sparsity,
                granularity=self.granularity.at(sparsity),
                per_layer=constraints.get(PER_LAYER),
                largest_of=self.teacher,
                samples=self.config.calibration_samples,
                seed=self.config.seed,
                ignored_layers=self.ignored,
                refit_outputs=untrained and self.noise is None,
                forward_fn=self.forward_fn,
            )
        return student

    def _prune_units(
        self, model: nn.Module, constraints: Constraints, state: State, untrained: bool
    ) -> nn.Module:
        """Removes units down to the constraints and refits what is left."""
        config, after = self.config, {layer["name"]: layer["after"] for layer in state.layers}
        # The last unit of a layer, where it is several channels, would come apart into them.
        groups = tuple(g for g in self._groups(model) if after.get(g.name, g.units) == g.units)
        constraints = without_singles(constraints, state.layers, {group.name for group in groups})
        if state.layers and not groups:  # nothing is left to remove
            return model
        with stage(state.stages, "score", self.progress):
            scores = score_groups(
                model,
                groups,
                self.fit,
                criterion=config.criterion,
                config=config,
                example=self.example,
                noise=self.noise,
                forward_fn=self.forward_fn,
            )
        divided = len(scores.divergence) > 1 and set(constraints) - {PER_LAYER}
        if config.allocation == "information" and divided:
            with stage(state.stages, "measure", False):
                scores = measured(
                    scores,
                    model,
                    self.fit,
                    reconstructed=config.reconstruct,
                    noise=self.noise,
                    seed=config.seed,
                    forward_fn=self.forward_fn,
                    progress=self.progress,
                )
        with stage(state.stages, "prune", self.progress):
            plan, student, history = prune_units(
                model,
                scores,
                constraints,
                allocation=config.allocation,
                round_to=self.round_to,
                trained=config.epochs > 0,
                forward_fn=self.forward_fn,
            )
        if config.reconstruct:
            with stage(state.stages, "reconstruct", self.progress):
                student = reconstruct(
                    student,
                    model,
                    self.fit,
                    history,
                    samples=config.calibration_samples,
                    seed=config.seed,
                    refit_outputs=untrained and self.noise is None,
                    forward_fn=self.forward_fn,
                )
        state.history += history
        state.layers = composed(state.layers, plan.layers)
        return student

    def _budgets(self) -> list[dict[str, Any]]:
        """The constraints of every step.

        Raises SimMIMError where they can't be met, while nothing was spent on it.
        """
        schedule, steps, constraints = self.config.schedule, self.config.steps, self.constraints
        if self.granularity.name != "unit":
            return sparsities(constraints, schedule, steps, self.granularity.sparsity)
        groups, constraints = self._groups(self.teacher), dict(constraints)
        if not groups:
            return [constraints] * steps  # which score will refuse
        check_reachable(
            self.teacher,
            groups,
            constraints,
            self.example,
            round_to=self.round_to,
            forward_fn=self.forward_fn,
        )
        units = {group.name: group.units for group in groups}
        count: dict[str, Callable[[], Any]] = {
            "units": lambda: sum(units.values()),
            "params": lambda: count_params(self.teacher),
            "flops": lambda: count_flops(self.teacher, self.example, self.forward_fn),
            "bytes": lambda: count_bytes(self.teacher),
            PER_LAYER: lambda: units,
        }
        if PER_LAYER in constraints:
            constraints[PER_LAYER] = own_values(groups, constraints[PER_LAYER])
        originals = {name: count[name]() for name in constraints if steps > 1 and name in count}
        return budgets(constraints, originals, schedule, steps)

    def _groups(self, model: nn.Module) -> tuple[UnitGroup, ...]:
        return trace_units(
            model,
            take(self.example, slice(0, 1)),
            ignored_layers=self.ignored,
            forward_fn=self.forward_fn,
        )


def _unmasked(model: nn.Module, layers: list[Json]) -> nn.Module:
    """The model with the layers that a step before made sparse as plain ones, for the next."""
    masked = [layer["name"] for layer in layers if not layer["dense"]]
    if not masked:
        return model
    model = deepcopy(model)
    for name in masked:
        layer = model.get_submodule(name)
        assert isinstance(layer, MaskedLinear)
        set_submodule(model, name, layer.to_dense())
    return model
