"""The one optimisation loop: of one pair's code and fields, or of a model's weights over many pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from ..settings import FitSettings
from ..space.interpolate import constant
from .replay import Replayed

_WARM_UP = 10  # steps at least, where the learning rate rises at all
_RECORDS = 200  # entries of the history, whatever the number of iterations
_READ_EVERY_S = 0.05  # the entries on a GPU


def rate_factor(step: int, settings: FitSettings) -> float:
    """Part of the learning rate at a step: linear warm-up, then a cosine down to zero, or constant."""
    # with few steps all are shortened: Adam's first ones have the length of the rate, whatever the gradient
    warm = max(settings.warm_up * settings.iterations, _WARM_UP) if settings.warm_up else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1.0, settings.iterations - warm)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Adam:
    """Adam with its schedule, and how many steps it has made; its state is tensors by name, to resume later.

    On PyTorch's function, not its class: that imports the compiler, which takes a second.
    """

    _STATE = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, parameters: Iterable[torch.nn.Parameter], settings: FitSettings):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.settings, self.done = settings, 0
        self._state: dict[Tensor, tuple[Tensor, ...]] = {}
        self._rate: float | Tensor = settings.learning_rate
        self._rates: Tensor | None = None  # of all steps, on a GPU

    def step(self) -> None:
        """One step at the present rate, from the parameters' gradients, which are then cleared."""
        self.set_rate()
        self.update()
        self.done += 1

    def set_rate(self) -> None:
        """The learning rate of the current step; kept on the GPU for replayed steps."""
        device = self.parameters[0].device
        if device.type != "cuda":
            self._rate = self.settings.learning_rate * rate_factor(self.done, self.settings)
            return
        if self._rates is None:
            factors = [rate_factor(step, self.settings) for step in range(self.settings.iterations)]
            self._rates = self.settings.learning_rate * torch.tensor(factors, device=device)
            self._rate = torch.zeros((), device=device)
        assert isinstance(self._rate, Tensor)
        self._rate.copy_(self._rates[self.done])

    @torch.no_grad()
    def update(self) -> None:
        """What a step does on the device."""
        moved: list[Tensor] = [p for p in self.parameters if p.grad is not None]
        for p in moved:
            if p not in self._state:
                count = torch.zeros((), dtype=torch.float32, device=p.device)
                self._state[p] = (count, torch.zeros_like(p), torch.zeros_like(p))
        steps, means, squares = (list(kind) for kind in zip(*(self._state[p] for p in moved), strict=True))
        adam(
            moved,
            [p.grad for p in moved if p.grad is not None],
            means,
            squares,
            [],
            steps,
            # one kernel for all parameters: many small tensors, so that the number of calls decides
            fused=moved[0].dtype == torch.float32,
            amsgrad=False,
            beta1=0.9,
            beta2=self.settings.beta2,
            lr=self._rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        for p in moved:
            p.grad = None

    def replace(self, old: torch.nn.Parameter, new: torch.nn.Parameter) -> None:
        """Replace a parameter by another one; the optimiser's state of the old one is dropped."""
        self.parameters = [new if p is old else p for p in self.parameters]
        self._state.pop(old, None)

    def state(self) -> dict[str, Tensor]:
        known = ((k, self._state[p]) for k, p in enumerate(self.parameters) if p in self._state)
        return {f"{k}.{name}": v for k, values in known for name, v in zip(self._STATE, values, strict=True)}

    def expected(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the names and shapes that a state needs for those of the parameters that ``state`` knows."""
        known = [(k, p) for k, p in enumerate(self.parameters) if f"{k}.step" in state]
        return {f"{k}.{name}": p.new_zeros(()) if name == "step" else p for k, p in known for name in self._STATE}

    def resume(self, state: dict[str, Tensor], done: int) -> None:
        for k, p in enumerate(self.parameters):
            if f"{k}.step" in state:
                self._state[p] = tuple(state[f"{k}.{name}"].to(p.device) for name in self._STATE)
        self.done = done


def fit(
    objective: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    optimiser: Adam,
    on_record: Callable[[dict], None] | None = None,
    accumulate: int = 1,
    before_step: Callable[[], None] = lambda: None,
    after_step: Callable[[int], None] = lambda done: None,
    prepare: Callable[[int], Hashable] | None = None,
    end: int | None = None,
) -> list[dict]:
    """Minimise ``objective(step)``; returns the history: step, loss and each term.

    It goes on until the step ``end``, by default all of the optimiser's. The gradients of ``accumulate`` calls are
    averaged for one step. ``before_step`` may change the gradients.
    ``on_record`` sees each entry of the history as it comes; an exception raised in any of them ends the fit.

    ``prepare(step)`` does what a step needs from the host; ``objective`` is then the same work on the device at each
    step for which it returns the same key, and is replayed as a CUDA graph where there is such a device.
    """
    settings, step = optimiser.settings, optimiser.done
    end = settings.iterations if end is None else end

    def update() -> tuple[list[str], list[Tensor]]:
        for _ in range(accumulate):
            loss, terms = objective(step)
            (loss if share is None else loss * share).backward()  # a gradient passed to it makes torch import sympy
        before_step()
        optimiser.update()
        return ["loss", *terms], [value.detach() for value in (loss, *terms.values())]

    device = optimiser.parameters[0].device
    share = None if accumulate == 1 else constant(1 / accumulate, device, optimiser.parameters[0].dtype)
    replayed = Replayed(update, device) if prepare is not None and device.type == "cuda" else None
    every = max(1, settings.iterations // _RECORDS)
    history, unread, read = [], [], time.perf_counter()
    while step < end:
        key = None if prepare is None else prepare(step)
        optimiser.set_rate()
        names, values = update() if replayed is None else replayed(key)
        optimiser.done = step + 1
        last = step == end - 1
        if step % every == 0 or step == settings.iterations - 1:
            unread.append((step + 1, torch.stack(values)))
        # a GPU is not made to wait at every entry
        if unread and (device.type == "cpu" or last or time.perf_counter() - read > _READ_EVERY_S):
            rows = torch.stack([row for _, row in unread]).tolist()
            for (done, _), row in zip(unread, rows, strict=True):
                history.append({"step": done, **dict(zip(names, row, strict=True))})
                if on_record is not None:
                    on_record(history[-1])
            unread, read = [], time.perf_counter()
        after_step(step + 1)
        step += 1
    return history
