"""The one optimisation loop: of one pair's code and fields, or of a model's weights over many pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .settings import FitSettings

_WARM_UP = 10  # steps at least, where the learning rate rises at all
_RECORDS = 200  # entries of the history, whatever the number of iterations


def rate_factor(step: int, settings: FitSettings) -> float:
    """Part of the learning rate at a step: linear warm-up, then a cosine down to zero, or constant."""
    # of a few steps none is a full one: Adam's first ones are as long as the rate, whatever the gradient
    warm = max(settings.warm_up * settings.iterations, _WARM_UP) if settings.warm_up else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1.0, settings.iterations - warm)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Adam:
    """Adam with its schedule, and how many steps it has made; its state is tensors by name, to go on later."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], settings: FitSettings):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.settings, self.done = settings, 0
        # one kernel for all parameters: many small tensors, so that the number of calls decides
        fused = self.parameters[0].dtype == torch.float32
        self._adam = torch.optim.Adam(self.parameters, betas=(0.9, settings.beta2), fused=fused)

    def step(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self.settings.learning_rate * rate_factor(self.done, self.settings)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.done += 1

    def replace(self, old: torch.nn.Parameter, new: torch.nn.Parameter) -> None:
        """Go on with another parameter in the place of one; what was known of that is forgotten."""
        for group in self._adam.param_groups:
            group["params"] = self.parameters = [new if p is old else p for p in group["params"]]
        self._adam.state.pop(old, None)

    def state(self) -> dict[str, Tensor]:
        entries = self._adam.state_dict()["state"]
        return {f"{k}.{name}": value for k, entry in entries.items() for name, value in entry.items()}

    def resume(self, state: dict[str, Tensor], done: int) -> None:
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            k, _, name = key.partition(".")
            entries.setdefault(int(k), {})[name] = value
        self._adam.load_state_dict({"state": entries, "param_groups": self._adam.state_dict()["param_groups"]})
        self.done = done


def fit(
    objective: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    optimiser: Adam,
    on_record: Callable[[dict], None] | None = None,
    accumulate: int = 1,
    before_step: Callable[[], None] = lambda: None,
    after_step: Callable[[int], None] = lambda done: None,
) -> list[dict]:
    """Minimise ``objective(step)``; returns the history: step, loss and each term.

    The gradients of ``accumulate`` calls are averaged for one step. ``before_step`` may change the gradients.
    ``on_record`` sees each entry of the history as it comes; an exception raised in any of them ends the fit.
    """
    settings = optimiser.settings
    every = max(1, settings.iterations // _RECORDS)
    history = []
    for step in range(optimiser.done, settings.iterations):
        for _ in range(accumulate):
            loss, terms = objective(step)
            (loss / accumulate).backward()
        before_step()
        optimiser.step()
        if step % every == 0 or step == settings.iterations - 1:
            names, values = list(terms), torch.stack([loss, *terms.values()]).tolist()
            history.append({"step": step + 1, "loss": values[0], **dict(zip(names, values[1:], strict=True))})
            if on_record is not None:
                on_record(history[-1])
        after_step(step + 1)
    return history
