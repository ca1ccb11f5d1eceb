"""Regularisers against values worked out by hand; similarities at the truth and away from it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from nephi.config import of_kind
from nephi.fitting.objective import Objective
from nephi.fitting.regularity import fitted, make_regulariser
from nephi.fitting.similarity import make_similarity
from nephi.images.volume import Volume, VolumePair
from nephi.maps.code import Code, HybridCode, zero_code
from nephi.maps.fields import NeuralFields
from nephi.maps.jacobian import exact_jacobian, finite_jacobian
from nephi.maps.maps import FieldMap, Map
from nephi.settings import (
    SIMILARITIES,
    IntensitySettings,
    NeuralSettings,
    RegularitySettings,
    Sampling,
    SimilaritySettings,
)
from torch.nn import functional as F


def small_fields(d: int):
    """Fields in double precision with a random last layer, far from the identity and each other's inverse."""
    generator = torch.Generator().manual_seed(5)
    settings = NeuralSettings(linear=False, width=12, frequencies=6, wavelength_mm=300.0, modulation="sine", omega=2.0,
                             global_code=3, local_code=2)  # fmt: skip
    fields = NeuralFields(settings, 150.0, d, generator).double()
    # one cell of code: linear interpolation has no kinks inside it
    code = HybridCode(zero_code(settings, torch.ones(d), (2,) * d)).double()
    with torch.no_grad():
        for p in (fields.out, code.global_code, code.local_code):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return lambda x: fields(x, code)


def value_of(fields, name: str, d: int, step: float = 0.01, exact: bool = False, n: int = 40) -> torch.Tensor:
    """The regulariser of maps given as a function (2, n, d) -> (2, n, d), in double precision."""
    generator = torch.Generator().manual_seed(2)
    points = (torch.rand(n, d, generator=generator, dtype=torch.double) * 2 - 1) * 0.5
    regulariser = make_regulariser(RegularitySettings(name, exact=exact))
    points = points[:, None] + regulariser.stencil(d, step).double()
    points = torch.stack([points, points]).requires_grad_(exact)
    values = fields(points.reshape(2, -1, d)).reshape(points.shape)
    return regulariser.penalty(fields, points, values, step)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", ["gradicon", "diffusion"])
def test_finite_differences_tend_to_the_exact_value(name, d):
    fields = small_fields(d)
    exact = float(value_of(fields, name, d, exact=True).detach())
    gaps = [abs(float(value_of(fields, name, d, step).detach()) - exact) for step in (1e-2, 1e-3, 1e-4)]
    assert exact > 1e-3
    assert gaps[0] < 0.1 * exact and gaps[1] < 0.02 * exact
    assert gaps[2] < 1e-3 * exact  # first order: a tenth of the step, a tenth of the gap
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.parametrize("d", [2, 3])
def test_finite_and_exact_gradients_agree(d):
    generator = torch.Generator().manual_seed(1)
    weight = (torch.eye(d) + 0.2 * torch.randn(d, d, generator=generator)).double().requires_grad_()

    def fields(x):
        return torch.stack([torch.sin(x[0] @ weight), x[1] @ weight.T])

    grads = [torch.autograd.grad(value_of(fields, "gradicon", d, 1e-5, exact), weight)[0] for exact in (False, True)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def affine_pair(d: int, inverse_error: float = 0.0):
    a = torch.eye(d, dtype=torch.double) + 0.2 * torch.randn(
        d, d, generator=torch.Generator().manual_seed(4), dtype=torch.double
    )
    b = torch.linalg.inv(a) + inverse_error * torch.eye(d, dtype=torch.double)
    return a, lambda x: torch.stack([x[0] @ a.T + 0.3, (x[1] - 0.3) @ b.T])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_gradicon_is_zero_for_inverse_maps_only(d, exact):
    assert float(value_of(affine_pair(d)[1], "gradicon", d, exact=exact).detach()) < 1e-10
    a, broken = affine_pair(d, 0.1)
    b = torch.linalg.inv(a) + 0.1 * torch.eye(d)
    eye = torch.eye(d, dtype=torch.double)
    expected = ((a @ b - eye).square().sum() + (b @ a - eye).square().sum()) / 2
    assert float(value_of(broken, "gradicon", d, exact=exact).detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_diffusion_of_an_affine_map_is_its_gradient_squared(exact):
    a, fields = affine_pair(3)
    eye = torch.eye(3, dtype=torch.double)
    expected = ((a - eye).square().sum() + (torch.linalg.inv(a) - eye).square().sum()) / 2
    assert float(value_of(fields, "diffusion", 3, exact=exact).detach()) == pytest.approx(float(expected), rel=1e-6)


def test_bending_of_affine_and_quadratic_maps():
    for d in (2, 3):
        assert float(value_of(affine_pair(d)[1], "bending", d)) < 1e-8

    def quadratic(x):  # forward: u = (0.5 x^2 + 2 x y, 3 y^2); backward: the identity
        u = torch.stack([0.5 * x[0, :, 0] ** 2 + 2 * x[0, :, 0] * x[0, :, 1], 3 * x[0, :, 1] ** 2], -1)
        return torch.stack([x[0] + u, x[1]])

    # second derivatives: xx 1, xy 2 (counted twice), yy 6; half of it, as the backward map bends nothing
    assert float(value_of(quadratic, "bending", 2)) == pytest.approx((1**2 + 2 * 2**2 + 6**2) / 2, rel=1e-6)

    def mixed(x):  # each pair of axes in 3D has its own mixed derivative: 1, 2, 3
        a, b, c = x[0].unbind(-1)
        return torch.stack([x[0] + torch.stack([a * b, 2 * a * c, 3 * b * c], -1), x[1]])

    assert float(value_of(mixed, "bending", 3)) == pytest.approx(2 * (1 + 4 + 9) / 2, rel=1e-6)


def test_none_is_zero_and_needs_one_point():
    assert float(value_of(small_fields(2), "none", 2).detach()) == 0
    assert make_regulariser(RegularitySettings("none")).stencil(3, 0.1).shape == (1, 3)


def test_jacobians_have_outputs_in_rows():
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.double)
    x = torch.rand(5, 1, 2, dtype=torch.double)
    points = x + make_regulariser(RegularitySettings("diffusion")).stencil(2, 0.1).double()
    torch.testing.assert_close(finite_jacobian(points @ a.T, 0.1), a.expand(5, 2, 2))
    x = x[:, 0].requires_grad_()
    torch.testing.assert_close(exact_jacobian(x @ a.T, x), a.expand(5, 2, 2))


# ---- similarity --------------------------------------------------------------------------------------


def texture(d: int, n: int = 40) -> torch.Tensor:
    noise = torch.rand((1, 1, *[n] * d), generator=torch.Generator().manual_seed(0))
    pool = F.avg_pool3d if d == 3 else F.avg_pool2d
    smooth = pool(pool(noise, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)[0, 0]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarity_is_best_at_the_truth(name, d):
    settings = of_kind(SimilaritySettings(), name)
    chosen = make_similarity(settings)
    image = texture(d)
    volume = Volume(chosen.prepare(image, 1), -torch.ones(d), 2 / (image.shape[0] - 1), None)
    points, index = volume.draw(800, torch.Generator().manual_seed(1))
    weight = torch.ones(800, 1)
    offsets = chosen.offsets(d)
    reference = volume.at_voxels(index, offsets)

    def loss(shift_voxels: float) -> float:
        return float(chosen.compare(volume.at(points + shift_voxels * volume.spacing, offsets), reference, weight))

    assert loss(0.0) == pytest.approx(0, abs=5e-3)
    assert loss(0.0) < loss(0.5) < loss(1.5)
    assert loss(0.0) < loss(-1.0)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_points_of_no_weight_do_not_count(name):
    compare, channels = (
        make_similarity(of_kind(SimilaritySettings(), name)).compare,
        {"mind": 12, "lncc": 27}.get(name, 1),
    )
    a, b = (torch.rand(60, channels, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    weight = torch.ones(60, 1)
    weight[40:] = 0
    spoilt = b.clone()
    spoilt[40:] = 100.0
    expected = compare(a[:40], b[:40], torch.ones(40, 1))
    torch.testing.assert_close(compare(a, spoilt, weight), expected, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(compare(a, b, torch.zeros(60, 1)))


def test_ncc_and_lncc_do_not_see_brightness_and_contrast():
    a = torch.rand(100, 1, generator=torch.Generator().manual_seed(0))
    ncc = make_similarity(IntensitySettings("ncc")).compare
    assert float(ncc(a, 3 * a + 0.4, torch.ones(100, 1))) == pytest.approx(0, abs=1e-4)
    assert float(ncc(a, -a, torch.ones(100, 1))) == pytest.approx(2, abs=1e-4)
    both = torch.cat([a, a.flip(0)], 1)  # each channel has a mean and a contrast of its own
    gains = torch.tensor([3.0, 0.2])
    assert float(ncc(both, both * gains + gains, torch.ones(100, 1))) == pytest.approx(0, abs=1e-4)
    patches = torch.rand(50, 27, generator=torch.Generator().manual_seed(0))
    gains = torch.linspace(0.5, 2, 50)[:, None]
    lncc = make_similarity(SimilaritySettings("lncc")).compare
    assert float(lncc(patches, gains * patches + gains, torch.ones(50, 1))) == pytest.approx(0, abs=1e-4)


def test_blurs_let_thin_lines_attract_each_other():
    """Lines ten voxels apart: a step nearer changes nothing in the images' correlation, but in the blurred ones'."""
    lines = torch.zeros(2, 40, 40)
    lines[0, :, 20] = lines[1, :, 30] = lines[1, :, 28] = 1

    def gain(blurs) -> float:
        measure = make_similarity(IntensitySettings("ncc", blurs=blurs))
        at, far = (measure.prepare(line, 1, None).reshape(1600, -1) for line in lines)
        near = measure.prepare(lines[1].roll(-1, 1), 1, None).reshape(1600, -1)
        assert at.shape == (1600, len(blurs))
        return float(measure.compare(at, far, torch.ones(1600, 1)) - measure.compare(at, near, torch.ones(1600, 1)))

    assert gain((0.0,)) == pytest.approx(0, abs=1e-3)
    assert gain((5.0,)) > 0.02


# ---- the whole objective -------------------------------------------------------------------------------


class OnePair:
    """The objective of one pair of textures, called without arguments."""

    def __init__(self, d: int = 2, regular=None, similar=None, view=None, batch: int = 1):
        settings = replace(NeuralSettings(), width=16, frequencies=8)
        self.fields = NeuralFields(settings, 100.0, d, torch.Generator().manual_seed(0))
        self.code = HybridCode(zero_code(settings, torch.ones(d), (3,) * d, batch))
        similar = similar or IntensitySettings("mse", Sampling(0.0, 200, 200))
        regular = regular or RegularitySettings()
        self.objective = Objective(similar, regular, 100.0, torch.Generator().manual_seed(0))
        image = texture(d)
        self.pairs = [
            VolumePair(
                *(Volume(i[..., None], -torch.ones(d), 2 / 39, None, view) for i in (image, image.roll(2 + k, -1)))
            )
            for k in range(batch)
        ]

    def __call__(self):
        return self.objective(FieldMap(self.fields, self.code), self.pairs)


def test_terms_are_named_weighted_and_summed():
    objective = OnePair(regular=RegularitySettings(weight=3.0, code_prior=0.5))
    with torch.no_grad():
        objective.fields.out.normal_(0, 0.05)
        objective.code.global_code.fill_(0.1)
    total, terms = objective()
    assert set(terms) == {"similarity", "regularity", "code_prior"}
    expected = terms["similarity"] + 3 * terms["regularity"] + 0.5 * terms["code_prior"]
    torch.testing.assert_close(total, expected)
    assert min(float(t.detach()) for t in terms.values()) > 0
    total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.fields.parameters())


@pytest.mark.parametrize("name", ["gradicon", "diffusion", "bending"])
def test_regularity_is_zero_at_the_start(name):
    _, terms = OnePair(regular=RegularitySettings(name))()
    assert float(terms["regularity"].detach()) == pytest.approx(0, abs=1e-3 if name == "bending" else 1e-6)


def test_points_outside_the_other_field_of_view_do_not_count():
    nowhere = (torch.eye(2), torch.full((2,), -1e3), torch.tensor([40, 40]))
    assert float(OnePair()()[1]["similarity"].detach()) > 1e-3
    assert float(OnePair(view=nowhere)()[1]["similarity"].detach()) == 0


def test_same_generator_draws_the_same_points():
    first, second = OnePair(), OnePair()
    assert float(first()[0].detach()) == float(second()[0].detach())
    assert math.isfinite(float(first()[0].detach()))


def test_a_batch_is_the_mean_of_its_pairs():
    """With the same points for each: the terms of a batch are the means, its codes stay apart."""
    many = OnePair(batch=3, regular=RegularitySettings(points=Sampling(0.0, 8, 8)))
    with torch.no_grad():
        many.fields.out.normal_(0, 0.05)
        many.code.global_code.normal_(0, 0.5)
        many.code.local_code.normal_(0, 0.5)
    drawn = many.objective.draw(many.pairs, many.code.half_extents_cube).step(0)
    together = many.objective(FieldMap(many.fields, many.code), many.pairs, drawn=drawn)[1]
    one_by_one = []
    for k, pair in enumerate(many.pairs):
        own = replace(drawn, points=drawn.points[:, k : k + 1], reference=drawn.reference[:, k : k + 1])
        code = Code(many.code.global_code[k : k + 1], many.code.local_code[k : k + 1], many.code.half_extents_cube)
        one_by_one.append(many.objective(FieldMap(many.fields, code), [pair], drawn=own)[1])
    for name, value in together.items():
        torch.testing.assert_close(value, sum(terms[name] for terms in one_by_one) / 3)
    assert len({round(float(terms["similarity"].detach()), 6) for terms in one_by_one}) == 3


@pytest.mark.parametrize("unit_mm", [40.0, 100.0, 170.0])
def test_the_differences_of_the_regulariser_are_taken_a_step_in_mm_apart(unit_mm):
    """Whatever one unit of the cube is: the points it asks the maps for lie ``step_mm`` from each other."""
    asked = []

    class Identity(Map):
        half_extents_cube = torch.ones(2)

        def __call__(self, points):
            asked.append(points)
            return points

        def forward(self, points):
            return points

        inverse = to = forward

    volume = Volume(torch.rand(12, 12, 1), -torch.ones(2), 2 / 11, None)
    similarity_settings = IntensitySettings(name="mse", points=Sampling(0.0, 30, 30))
    settings = RegularitySettings("gradicon", points=Sampling(0.0, 8, 8), step_mm=1.5)
    objective = Objective(similarity_settings, settings, unit_mm, torch.Generator().manual_seed(0))
    objective(Identity(), [VolumePair(volume, volume)])
    stencils = asked[0][0, 30:].reshape(8, -1, 2)
    apart_mm = (stencils[:, 1:] - stencils[:, :1]).norm(dim=-1) * unit_mm
    torch.testing.assert_close(apart_mm, torch.full_like(apart_mm, 1.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dimension", [2, 3])
def test_bending_is_added_to_gradicon_by_its_length(exact, dimension):
    """A map that bends by b across the axes and its inverse: GradICON finds nothing, bending counts (length x b)^2."""
    b, length_mm, settings = 0.3, 6.0, RegularitySettings(exact=exact, step_mm=1.5)
    step = 0.02  # in the cube

    def maps(points):
        forward, back = points.unbind(0)
        along, across = (torch.zeros(points.shape[-1]).to(points) for _ in range(2))
        along[:2], across[:2] = torch.tensor([0.8, -0.6]), torch.tensor([0.6, 0.8])
        moved = [b / 2 * (end @ across)[:, None] ** 2 * along for end in (forward, back)]
        return torch.stack([forward + moved[0], back - moved[1]])

    def penalty(bending_mm):
        regulariser = make_regulariser(replace(settings, bending_mm=bending_mm))
        at = regulariser.around(torch.rand(24, dimension, dtype=torch.double), step)
        points = at.expand(2, *at.shape).clone().requires_grad_(exact)
        values = maps(points.flatten(1, 2)).reshape(points.shape)
        return float(regulariser.penalty(maps, points, values, step).detach())

    length_cube = length_mm / settings.step_mm * step
    assert penalty(0.0) == pytest.approx(0, abs=1e-9)
    # of both maps, whose energy is averaged
    assert penalty(length_mm) == pytest.approx((length_cube * b) ** 2, rel=1e-3)


def test_maps_bend_less_in_coarse_voxels_and_freely_in_fine_ones():
    settings = RegularitySettings(bending_mm=1.0, step_mm=1.5)
    lengths = [fitted(settings, voxel_mm, 1.0).bending_mm for voxel_mm in (0.7, 1.5, 2.0, 2.5, 5.0, 8.0)]
    assert lengths[0] == 0 and lengths[2] == pytest.approx(1)
    assert lengths[1] < lengths[2] < lengths[3] < lengths[4] == lengths[5]
    small = fitted(settings, 0.2, 0.1)
    assert small.bending_mm == pytest.approx(0.1 * lengths[2]) and small.step_mm == pytest.approx(0.15)
    assert fitted(replace(settings, bending_mm=0.0), 5.0, 1.0).bending_mm == 0
