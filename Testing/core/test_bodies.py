"""Rigid bodies around a border that slides, where maps are made for them to be in each other's way."""

from __future__ import annotations

import nephi
import numpy as np
import pytest
import torch
from nephi.both import Both
from nephi.errors import NephiError
from nephi.files.tensors import read_tensors, write_tensors
from nephi.fitting import bodies as fitting
from nephi.fitting.sliding import border_of
from nephi.images.align import Alignment
from nephi.images.image_pair import ImagePair
from nephi.maps.bodies import Bodies, Held
from nephi.maps.border import Border
from nephi.maps.code import HybridCode, zero_code
from nephi.maps.jacobian import exact_determinants
from nephi.maps.maps import FieldMap
from nephi.maps.sliding import Sliding
from nephi.maps.voxel import VoxelFields
from nephi.measure.border import border_flaws
from nephi.settings import PRESETS, VoxelSettings
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.space.rigid import rigidly_moved

GRID = Grid((120, 120), (2.0, 2.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))


def disc(*discs: tuple[float, float, float]) -> np.ndarray:
    """(y, x) number of the disc (x, y, radius in mm) that a voxel lies in; 0: of none."""
    places, out = GRID.to_lps_mm(np.argwhere(np.ones(GRID.shape))[:, ::-1]), np.zeros(GRID.shape, np.uint8)
    for number, (x, y, radius_mm) in enumerate(discs, 1):
        out[(np.linalg.norm(places - (x, y), axis=1) < radius_mm).reshape(GRID.shape)] = number
    return out


@pytest.fixture(scope="module")
def pair():
    image = GRID.image(np.random.default_rng(0).random(GRID.shape).astype(np.float32))
    mask = GRID.image(disc((120, 120, 50)))
    return ImagePair.of(Both(image, image), Both(mask, mask), Affine.identity(2), PRESETS["fast"].similarity)


@pytest.fixture(scope="module")
def border(pair):
    return border_of(pair, pair.cube, torch.device("cpu"))


def waves(pair: ImagePair, height: float, seed: int = 0) -> FieldMap:
    settings = VoxelSettings(local_code=4)
    half_extents, fields = torch.tensor(pair.cube.half_extents_cube, dtype=torch.float32), VoxelFields(settings, 2)
    code = zero_code(settings, half_extents, (7, 7))
    generator = torch.Generator().manual_seed(seed)
    code.local_code[:, :2] = height * torch.randn(code.local_code[:, :2].shape, generator=generator)
    return FieldMap(fields, HybridCode(fields.with_inverse(code)).requires_grad_(False))


def near(border: Border) -> torch.Tensor:
    """Points (n, 2) in the cube, just around it."""
    points = (torch.rand(40_000, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1) * border.half_extents_cube
    distance = border.at(points)[0][:, 0]
    return points[(distance > 0) & (distance < 0.1)]


def around_the_mask(many: int) -> np.ndarray:
    """Discs 3 mm from its border; 22 of them nearly touch each other."""
    angles = np.arange(many) * 2 * np.pi / many
    return disc(*[(120 + 61 * np.cos(a), 120 + 61 * np.sin(a), 8.0) for a in angles])


BESIDE, APART = around_the_mask(22), around_the_mask(9)


def sliding_beside_bodies(pair: ImagePair, border: Border, height: float) -> Sliding:
    around = waves(pair, height)
    bodies = fitting.kept_rigid(GRID.image(BESIDE), around, border, pair)
    assert bodies is not None
    return Sliding(waves(pair, height / 2, seed=1), around, border, bodies)


def test_bodies_that_are_in_each_others_way_bend_before_the_map_folds(pair, border, monkeypatch):
    maps, points, least = waves(pair, 0.9), near(border), []
    assert exact_determinants(maps.forward, points).min() > 0.5
    for floor in (-np.inf, fitting._LEAST):
        monkeypatch.setattr(fitting, "_LEAST", floor)
        found = fitting.kept_rigid(GRID.image(BESIDE), maps, border, pair)
        least.append(float(exact_determinants(Held(maps).beside(found, border).forward, points).min()))
    assert least[0] < -1 and least[1] > 0


def test_places_where_bodies_no_longer_fold_the_map_are_not_looked_at_again(pair, border, monkeypatch):
    looks = []

    def counted(forward, points):
        looks.append(len(points))
        return exact_determinants(forward, points)

    monkeypatch.setattr(fitting, "exact_determinants", counted)
    fitting.kept_rigid(GRID.image(BESIDE), waves(pair, 0.9), border, pair)
    _, *rounds = looks
    assert len(rounds) > 3 and rounds[-1] < max(rounds) / 2


def test_bodies_that_a_map_does_not_move_leave_it_as_it_is(pair, border):
    maps = waves(pair, 0.0)
    found = fitting.kept_rigid(GRID.image(BESIDE), maps, border, pair)
    points = near(border)
    assert (Held(maps).beside(found, border).forward(points) - points).abs().max() < 1e-5


def test_what_is_wrong_near_a_border_is_told(pair, border):
    unit_mm = pair.cube.unit_mm
    apart = sliding_beside_bodies(pair, border, 0.3)
    told = " ".join(border_flaws(apart, unit_mm))
    assert "part or overlap by up to" in told and "folds" not in told and "inverse" not in told
    still = Sliding(waves(pair, 0.0), waves(pair, 0.0), border).meeting()
    assert not list(border_flaws(still, unit_mm))
    folded = Sliding(waves(pair, 0.0), waves(pair, 5.0), border)
    told = " ".join(border_flaws(folded, unit_mm))
    assert "% of the volume folds" in told and "the inverse map misses by up to" in told


@pytest.mark.parametrize("name", ["bodies", "border"])
@pytest.mark.parametrize("spoil", [lambda x: x[..., :1], lambda x: x[0], lambda x: x.float()])
def test_files_with_another_border_or_bodies_are_told_to_be_damaged(pair, border, tmp_path, name, spoil):
    path, identity = tmp_path / "registration.safetensors", Alignment(Affine.identity(2), "none")
    maps = sliding_beside_bodies(pair, border, 0.3).meeting()
    nephi.Registration(maps, pair.cube, identity, GRID, GRID, PRESETS["fast"]).save(path)
    loaded = nephi.Registration.load(path)
    points = near(border)
    torch.testing.assert_close(loaded.maps.forward(points), maps.forward(points), atol=1e-4, rtol=0)
    metadata, tensors = read_tensors(path, "a registration")
    write_tensors(path, tensors | {name: spoil(tensors[name]).contiguous()}, metadata)
    with pytest.raises(NephiError, match="registration.safetensors is damaged"):
        nephi.Registration.load(path)


def test_bodies_beside_a_map_that_is_composed_with_another_are_rigid(pair, border):
    around = waves(pair, 0.2, seed=2) @ waves(pair, 0.1)
    bodies = fitting.kept_rigid(GRID.image(APART), around, border, pair)
    assert isinstance(bodies, Bodies)
    maps = Sliding(waves(pair, 0.2, seed=2) @ waves(pair, 0.1, seed=1), around, border, bodies).meeting()

    def ends_lps_mm(points_lps_mm: np.ndarray, through) -> np.ndarray:
        points = torch.tensor(pair.cube.to_cube(points_lps_mm), dtype=torch.float32)
        return pair.cube.to_lps_mm(through(points).double().numpy())

    for through, most_mm in ((around.forward, None), (maps.forward, 0.02)):
        worst = 0.0
        for number in range(1, APART.max() + 1):
            voxels_lps_mm = GRID.to_lps_mm(np.argwhere(number == APART)[:, ::-1])
            start, end = (torch.tensor(x)[None] for x in (voxels_lps_mm, ends_lps_mm(voxels_lps_mm, through)))
            worst = max(worst, float((rigidly_moved(start, end) - end).norm(dim=-1).max()))
        assert worst > 0.3 if most_mm is None else worst < most_mm
