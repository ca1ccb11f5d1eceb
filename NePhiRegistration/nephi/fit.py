"""The one optimisation loop: chosen parameters, an objective that returns named terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .settings import FitSettings

_RECORDS = 200  # entries of the history, whatever the number of iterations


def rate_factor(step: int, settings: FitSettings) -> float:
    """Part of the learning rate at a step: linear warm-up, then a cosine down to zero, or constant."""
    warm = settings.warm_up * settings.iterations
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1.0, settings.iterations - warm)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(
    objective: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    parameters: Iterable[torch.nn.Parameter],
    settings: FitSettings,
    on_record: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Minimise ``objective(step)`` with Adam; returns the history: step, loss and each term.

    ``on_record`` sees each entry as it comes; an exception raised there ends the fit.
    """
    parameters = [p for p in parameters if p.requires_grad]
    # one kernel for all parameters: many small tensors, so that the number of calls decides
    optimiser = torch.optim.Adam(
        parameters, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=parameters[0].dtype == torch.float32
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, settings))
    every = max(1, settings.iterations // _RECORDS)
    history = []
    for step in range(settings.iterations):
        loss, terms = objective(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == settings.iterations - 1:
            names, values = list(terms), torch.stack([loss, *terms.values()]).tolist()
            history.append({"step": step + 1, "loss": values[0], **dict(zip(names, values[1:], strict=True))})
            if on_record is not None:
                on_record(history[-1])
    return history
