"""Quality of a sliding map at its border: gaps between both sides, folds and inverse errors near it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..maps.code import points_between, steps_between
from ..maps.jacobian import exact_determinants
from ..maps.sliding import Sliding

_POINTS = 4000  # most points on the border, and near it
_NEAR_MM = 20.0
_APART_MM = 0.5  # larger gaps are reported
_MISSED_MM = 0.5  # larger errors of the inverse are reported


@torch.no_grad()
def border_flaws(maps: Sliding, unit_mm: float, scale: float = 1.0) -> Iterator[str]:
    """In words: how far the sides part or overlap, folds near the border, and where the inverse is none.

    ``unit_mm``: what the cube's unit is; ``scale``: of lengths, where what is shown is no human.
    """
    border, generator = maps.border, torch.Generator().manual_seed(0)
    nodes_cube = points_between(border.half_extents_cube, border.size)
    distance = border.distance.flatten().to(nodes_cube).abs()

    def some(within_cube: float) -> torch.Tensor:
        rows = (distance < within_cube).nonzero()[:, 0]
        return nodes_cube[rows[torch.randperm(len(rows), generator=generator)[:_POINTS].to(rows.device)]]

    on_it = border.brought(some(border.between_nodes))
    on_it = on_it[border.at(on_it)[0][:, 0].abs() * unit_mm < 0.01 * scale]
    apart_mm = maps.between(on_it)[:, 0].abs() * unit_mm
    wide = apart_mm > _APART_MM * scale
    if wide.any():
        yield (
            f"At the border along which motion slides, the two sides part or overlap by up to {apart_mm.max():.1f} mm "
            f"({_percent(wide)} of it by more than {_APART_MM * scale:.2g} mm): the result is not reliable there."
        )
    near = some(_NEAR_MM * scale / unit_mm * 0.95)
    steps = steps_between(border.half_extents_cube, border.size)
    near = near + (torch.rand(near.shape, generator=generator).to(near) - 0.5) * steps
    folds = exact_determinants(maps.forward, near) <= 0
    if folds.any():
        yield f"Near the border along which motion slides, {_percent(folds)} of the volume folds."
    is_within = maps.is_within(near)[:, 0]
    missed_mm = torch.cat(
        [
            (side.inverse(side.forward(part)) - part).norm(dim=1) * unit_mm
            for side, part in ((maps.within, near[is_within]), (maps.around, near[~is_within]))
        ]
    )
    far = missed_mm > _MISSED_MM * scale
    if far.any():
        yield (
            f"Near the border along which motion slides, the inverse map misses by up to {missed_mm.max():.1f} mm "
            f"(in {_percent(far)} of the volume by more than {_MISSED_MM * scale:.2g} mm)."
        )


def _percent(which: torch.Tensor) -> str:
    return f"{100 * float(which.float().mean()):.2g} %"
