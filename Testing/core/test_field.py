"""The fields, the latent code, the composition of maps, and the model file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from geometry import points_of
from hypothesis import given, settings
from hypothesis import strategies as st
from nephi.errors import NephiError
from nephi.images.align import Alignment
from nephi.maps.code import FORWARD, INVERSE, LINEAR_CUBE, Code, HybridCode, zero_code
from nephi.maps.fields import NeuralFields
from nephi.maps.jacobian import exact_jacobian
from nephi.maps.maps import Composed, FieldMap, make_fields
from nephi.maps.voxel import VoxelFields
from nephi.result import Registration
from nephi.settings import PRESETS, NeuralSettings, VoxelSettings
from nephi.space.affine import Affine
from nephi.space.cube import Cube
from nephi.space.grid import Grid


def make(settings: NeuralSettings, d: int, seed: int = 0, random_end: bool = False):
    generator = torch.Generator().manual_seed(seed)
    fields = NeuralFields(settings, 150.0, d, generator)
    code = HybridCode(zero_code(settings, torch.tensor([1.0, 0.8, 0.6][:d]), (6, 5, 4)[:d]))
    if random_end:
        with torch.no_grad():
            for p in (fields.out, fields.out_bias, code.global_code, code.local_code):
                p.normal_(0, 0.05, generator=generator)
    return fields, code


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_both_fields_start_at_the_identity(preset, d):
    fields, code = make(PRESETS[preset].field, d)
    x = points_of(d)
    assert torch.equal(fields(torch.stack([x, x]), code), torch.stack([x, x]))
    assert torch.equal(fields.one(x, code, INVERSE), x)


@pytest.mark.parametrize("d", [2, 3])
def test_no_points_are_mapped_to_none(d):
    fields, code = make(PRESETS["balanced"].field, d)
    field_map, none = FieldMap(fields, code), torch.zeros(0, d)
    assert field_map.forward(none).shape == field_map.inverse(none).shape == none.shape


def test_paper_fields_have_the_papers_size():
    fields, _ = make(PRESETS["paper"].field, 3)
    n = sum(p.numel() for p in fields.parameters())
    assert 275_000 < n < 285_000  # Table 1: 0.28 M


@pytest.mark.parametrize(
    "voxels, similarity, regularity", [(50_000, 1_000, 10), (2_000_000, 40_000, 200), (80_000_000, 100_000, 500)]
)
def test_paper_draws_two_percent_and_a_hundredth_of_a_percent(voxels, similarity, regularity):
    paper = PRESETS["paper"]
    assert paper.similarity.points.count(voxels) == similarity
    assert paper.regularity.points.count(voxels) == regularity


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_one_field_agrees_with_the_batched_pair(preset, d):
    fields, code = make(PRESETS[preset].field, d, random_end=True)
    x = torch.stack([points_of(d, seed=1), points_of(d, seed=2)])
    both = fields(x, code)
    assert (both - x).abs().max() > 1e-3
    for way in (FORWARD, INVERSE):
        torch.testing.assert_close(fields.one(x[way], code, way), both[way], atol=1e-6, rtol=1e-5)
    assert (fields.one(x[0], code, INVERSE) - both[0]).abs().max() > 1e-3  # weights of their own


def test_the_maps_depend_on_both_codes():
    fields, code = make(PRESETS["balanced"].field, 3, random_end=True)
    x = points_of(3)
    before = fields.one(x, code, FORWARD)
    for part in (code.global_code, code.local_code):
        with torch.no_grad():
            part += 0.5
            after = fields.one(x, code, FORWARD)
            part -= 0.5
        assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("d", [2, 3])
def test_code_interpolates_a_ramp_exactly_and_holds_its_border(d):
    settings = replace(NeuralSettings(), local_code=d)
    upper, size = torch.tensor([1.0, 0.8, 0.6][:d]), (6, 5, 4)[:d]
    code = HybridCode(zero_code(settings, upper, size))
    axes = [torch.linspace(-float(u), float(u), n) for u, n in zip(upper, size, strict=True)]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (channel, x, y[, z])
    with torch.no_grad():
        code.local_code.copy_(nodes.permute(0, *range(d, 0, -1))[None])
    x = points_of(d) * upper
    torch.testing.assert_close(code.at(x[None])[0], x, atol=1e-5, rtol=0)
    pair = torch.stack([x, -x])
    torch.testing.assert_close(code.at(pair), pair, atol=1e-5, rtol=0)
    torch.testing.assert_close(code.at(upper[None, None] * 3), upper[None, None], atol=1e-5, rtol=0)


def test_code_prior_is_the_mean_of_norms():
    code = HybridCode(zero_code(replace(NeuralSettings(), global_code=2, local_code=2), torch.ones(2), (2, 2)))
    assert float(code.prior().detach()) < 1e-5
    with torch.no_grad():
        code.global_code.copy_(torch.tensor([3.0, 4.0]))
        code.local_code[0, :, 0, 0] = torch.tensor([6.0, 8.0])  # one node of four with norm 10
    assert float(code.prior().detach()) == pytest.approx(5 + 2.5, abs=1e-4)
    code.prior().backward()
    assert torch.isfinite(code.local_code.grad).all()


# ---- voxel fields --------------------------------------------------------------------------------------


def voxel(d: int, degree: int = 2) -> VoxelSettings:
    return VoxelSettings(local_code=2 * d, global_code=1, code_degree=degree)


def voxel_maps(d: int, values: torch.Tensor | None = None, batch: int = 1, degree: int = 2) -> FieldMap:
    """Voxel fields with a random code, or with ``values`` (2 d,) at every node."""
    upper, size = torch.tensor([1.0, 0.8, 0.6][:d]), (6, 5, 4)[:d]
    code = zero_code(voxel(d, degree), upper, size, batch)
    noise = torch.rand(code.local_code.shape, generator=torch.Generator().manual_seed(4)) - 0.5
    local = noise if values is None else code.local_code + values.reshape(1, -1, *[1] * d)
    return FieldMap(make_fields(voxel(d, degree), 150.0, d), Code(code.global_code, local, upper))


@pytest.mark.parametrize("d", [2, 3])
def test_voxel_fields_move_points_by_the_code_and_nothing_else(d):
    x = torch.stack([points_of(d, seed=1), points_of(d, seed=2)]) * 1.5  # some beyond the cube: the border holds
    still = voxel_maps(d, torch.zeros(2 * d))
    assert torch.equal(still(x), x) and not list(still.fields.parameters())
    values = torch.arange(1.0, 2 * d + 1) / 3
    moved = voxel_maps(d, values)(x) - x
    for way in (FORWARD, INVERSE):
        expected = LINEAR_CUBE * values[way * d : (way + 1) * d]
        torch.testing.assert_close(moved[way], expected.expand_as(moved[way]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("d", [2, 3])
def test_one_voxel_field_agrees_with_the_batched_pair(d, degree):
    maps = voxel_maps(d, degree=degree, batch=2)
    x = torch.stack([points_of(d, seed=1), points_of(d, seed=2)])
    both = maps(x)
    for way in (FORWARD, INVERSE):
        torch.testing.assert_close((maps.forward, maps.inverse)[way](x[way]), both[way], atol=1e-6, rtol=0)
    half = x.shape[1] // 2
    for k, part in enumerate((slice(0, half), slice(half, None))):  # pair after pair, each with its code
        code = Code(maps.code.global_code[k : k + 1], maps.code.local_code[k : k + 1], maps.code.half_extents_cube)
        torch.testing.assert_close(FieldMap(maps.fields, code)(x[:, part]), both[:, part], atol=1e-6, rtol=0)
    assert (both - x).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("d", [2, 3])
def test_the_inverse_part_of_a_voxel_code_can_be_made_to_undo_the_forward_one(d):
    maps = voxel_maps(d)
    repaired = FieldMap(maps.fields, maps.fields.with_inverse(maps.code))
    x = points_of(d) * 0.7

    def gap(of: FieldMap) -> float:
        there, back = (
            (of.forward, of.inverse)[b]((of.forward, of.inverse)[a](x)) - x
            for a, b in ((FORWARD, INVERSE), (INVERSE, FORWARD))
        )
        return max(float(there.abs().max()), float(back.abs().max()))

    assert gap(repaired) < 0.1 * gap(maps) and gap(maps) > 0.02
    assert torch.equal(repaired.forward(x), maps.forward(x))


@pytest.mark.parametrize("d", [2, 3])
def test_fields_whose_code_moves_points_need_its_channels(d):
    assert isinstance(make_fields(voxel(d), 150.0, d), VoxelFields)
    for count in (2 * d - 1, 2 * d + 1):
        with pytest.raises(NephiError, match=f"field.local_code is {count}, must be {2 * d} for voxel"):
            make_fields(replace(voxel(d), local_code=count), 150.0, d)
    with pytest.raises(NephiError, match=f"local_code is {2 * d - 1}, must be {2 * d} or more in {d}D.*field.linear"):
        make_fields(NeuralSettings(linear=True, local_code=2 * d - 1), 150.0, d)


# ---- composition ---------------------------------------------------------------------------------------


def affine_maps(matrix: np.ndarray, offset: np.ndarray) -> FieldMap:
    """Voxel fields that are ``matrix @ x + offset`` and its inverse; exact within the cube, for both are ramps."""
    d = len(offset)
    upper, size = torch.tensor([1.5, 1.2, 0.9][:d]), (3, 4, 5)[:d]
    axes = [np.linspace(-float(u), float(u), n) for u, n in zip(upper, size, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1)  # (x, y(, z), d)
    back = np.linalg.inv(matrix)
    moved = np.concatenate([nodes @ matrix.T + offset - nodes, (nodes - offset) @ back.T - nodes], -1)
    local = torch.tensor(moved / LINEAR_CUBE, dtype=torch.float32).permute(*range(d, -1, -1))[None]
    return FieldMap(VoxelFields(voxel(d, 1), d), Code(torch.zeros(1, 1), local, upper))


@st.composite
def affine_pairs(draw) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Two affine maps that stay close to the identity; they do not commute."""
    d = draw(st.sampled_from([2, 3]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.floats(0.0, 0.12))
    return tuple((np.eye(d) + size * random.uniform(-1, 1, (d, d)), 0.1 * random.uniform(-1, 1, d)) for _ in range(2))


@given(affine_pairs())
@settings(deadline=None, max_examples=60)
def test_the_inverse_of_a_composite_of_inverses_inverts_it(both):
    (a, b), (c, e) = both
    maps, d = (affine_maps(c, e) @ affine_maps(a, b)), len(b)
    x = points_of(d) * 0.4
    y = maps.forward(x)
    expected = torch.tensor((x.double().numpy() @ a.T + b) @ c.T + e, dtype=torch.float32)
    torch.testing.assert_close(y, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(maps.inverse(y), x, atol=2e-6, rtol=0)
    torch.testing.assert_close(maps.forward(maps.inverse(x)), x, atol=2e-6, rtol=0)
    point = x.clone().requires_grad_()
    jacobian = exact_jacobian(maps.forward(point), point, create_graph=False)
    expected = torch.tensor(c @ a, dtype=torch.float32).expand_as(jacobian)
    torch.testing.assert_close(jacobian, expected, atol=1e-5, rtol=0)


@given(st.sampled_from([2, 3]), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_shifts_of_either_kind_are_undone(d, seed):
    """The neural one by its last bias, the voxel one by its code; beyond the cube as well."""
    generator = torch.Generator().manual_seed(seed)
    near, far = (torch.rand(d, generator=generator) - 0.5 for _ in range(2))
    fields, code = make(PRESETS["balanced"].field, d)
    with torch.no_grad():
        fields.out_bias.copy_(torch.stack([near, -near])[:, None])
    maps = voxel_maps(d, torch.cat([far, -far]) / LINEAR_CUBE) @ FieldMap(fields, code)
    x = points_of(d, seed=seed) * 1.5
    y = maps.forward(x)
    torch.testing.assert_close(y, x + near + far, atol=1e-6, rtol=0)
    torch.testing.assert_close(maps.inverse(y), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(maps.solve(y), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("swap", [False, True], ids=["neural after voxel", "voxel after neural"])
@pytest.mark.parametrize("d", [2, 3])
def test_a_composite_is_one_map_after_the_other_and_the_way_back(d, swap):
    """Any two maps; the exact Jacobian is the product of theirs."""
    neural = FieldMap(*make(PRESETS["balanced"].field, d, random_end=True))
    inner, outer = (voxel_maps(d), neural) if swap else (neural, voxel_maps(d))
    maps = outer @ inner
    assert isinstance(maps, Composed) and maps.outer is outer and maps.inner is inner
    x = torch.stack([points_of(d, seed=1), points_of(d, seed=2)])
    forward = outer.forward(inner.forward(x[FORWARD]))
    inverse = inner.inverse(outer.inverse(x[INVERSE]))
    for way, expected in ((FORWARD, forward), (INVERSE, inverse)):
        torch.testing.assert_close((maps.forward, maps.inverse)[way](x[way]), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(maps(x)[way], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            (maps.to("cpu").forward, maps.to("cpu").inverse)[way](x[way]), expected, atol=1e-6, rtol=0
        )
    other = (inner @ outer).forward(x[FORWARD])
    assert (other - forward).abs().max() > 1e-3  # so that the order counts

    def jacobian(of: FieldMap, at: torch.Tensor) -> torch.Tensor:
        at = at.detach().clone().requires_grad_()
        return exact_jacobian(of.forward(at), at, create_graph=False)

    chain = jacobian(outer, inner.forward(x[FORWARD])) @ jacobian(inner, x[FORWARD])
    torch.testing.assert_close(jacobian(maps, x[FORWARD]), chain, atol=1e-5, rtol=0)


def test_the_inverse_of_the_inverse_is_the_map_itself():
    maps = voxel_maps(2)
    x = torch.stack([points_of(2, seed=1), points_of(2, seed=2)])
    torch.testing.assert_close(maps.inverted()(x), maps(x.flip(0)).flip(0), atol=1e-6, rtol=0)
    assert maps.inverted().inverted() is maps


@pytest.mark.parametrize("d", [2, 3])
def test_solve_finds_where_the_forward_map_comes_from(d):
    """Also where the inverse map is none: it only begins there."""
    with_inverse = affine_maps(np.eye(d) + 0.1 * np.ones((d, d)), np.full(d, 0.05))
    for maps in (with_inverse, voxel_maps(d), (with_inverse @ voxel_maps(d))):
        y = points_of(d) * 0.5
        with torch.no_grad():
            found = maps.solve(y, rounds=12)
            left, before = (maps.forward(x) - y for x in (found, maps.inverse(y)))
            few = maps.forward(maps.solve(y)) - y
        assert left.abs().max() < 1e-5
        if maps is not with_inverse:
            assert few.abs().max() < 0.1 * before.abs().max()


# ---- the model file --------------------------------------------------------------------------------------


def registration(d: int, preset: str = "balanced") -> Registration:
    settings = PRESETS[preset]
    fixed = Grid((20, 18, 16)[:d], (2.0, 2.5, 3.0)[:d], (5.0, -7.0, 11.0)[:d], tuple(np.eye(d).ravel()))
    moving = Grid((22, 18, 16)[:d], (2.0, 2.5, 3.0)[:d], (1.0, 0.0, 0.0)[:d], tuple(np.eye(d).ravel()))
    cube = Cube.around(fixed.corners_lps_mm(), fixed.direction)
    generator = torch.Generator().manual_seed(3)
    fields = NeuralFields(settings.field, cube.unit_mm, d, generator)
    code = HybridCode(
        zero_code(settings.field, torch.tensor(cube.half_extents_cube, dtype=torch.float32), (4, 3, 3)[:d])
    )
    with torch.no_grad():
        for p in (fields.out, code.global_code, code.local_code):
            p.copy_(0.02 * torch.randn(p.shape, generator=generator))
    affine = Affine(np.diag([1.1, 0.9, 1.05][:d]), np.array([3.0, -2.0, 1.0][:d]))
    return Registration(FieldMap(fields, code), cube, Alignment(affine, "given"), fixed, moving, settings)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_model_file_gives_the_same_maps(d, preset, tmp_path):
    before = registration(d, preset)
    before.save(tmp_path / "model.safetensors")
    after = Registration.load(tmp_path / "model.safetensors")
    points = before.fixed_grid.slab_lps_mm(2, 5)
    assert np.abs(before.forward(points) - before.affine(points)).max() > 0.01
    for name in ("forward", "inverse", "jacobian_determinant"):
        values = (getattr(result, name)(points) for result in (after, before))
        np.testing.assert_allclose(*values, rtol=0, atol=1e-5)  # the order of sums may differ
    for name in ("cube", "fixed_grid", "moving_grid", "settings", "length_scale"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.alignment.method == before.alignment.method
    np.testing.assert_array_equal(after.affine.matrix, before.affine.matrix)
    np.testing.assert_array_equal(after.affine.offset_mm, before.affine.offset_mm)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(NephiError, match="no such registration"):
        Registration.load(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 50)
    with pytest.raises(NephiError, match="cannot read"):
        Registration.load(tmp_path / "junk.safetensors")


@pytest.mark.parametrize("d", [2, 3])
def test_exact_jacobian_determinant_agrees_with_differences(d):
    r = registration(d)
    # not on the cube's border, where the slope of its inner side holds
    points = (
        r.fixed_grid.slab_lps_mm(4, 5).reshape(*r.fixed_grid.shape[1:], d)[(slice(1, -1),) * (d - 1)].reshape(-1, d)
    )
    # the fields work in single precision: a step of 0.5 mm keeps rounding and curvature small
    steps = 0.5 * np.eye(d)
    columns = [(r.forward(points + h) - r.forward(points - h)) for h in steps]
    expected = np.linalg.det(np.stack(columns, -1))
    np.testing.assert_allclose(r.jacobian_determinant(points), expected, atol=0.02)


def test_displacement_lies_on_the_grid():
    r = registration(3)
    u = r.displacement(r.fixed_grid)
    points = r.fixed_grid.slab_lps_mm(0, r.fixed_grid.shape[0])
    np.testing.assert_allclose(u.reshape(-1, 3), r.forward(points) - points, atol=1e-4)
    transform = sitk.DisplacementFieldTransform(r.fixed_grid.image(u.astype(float), vector=True))
    moved = transform.TransformPoint(points[100].tolist())
    np.testing.assert_allclose(moved, r.forward(points[100:101])[0], atol=1e-4)
