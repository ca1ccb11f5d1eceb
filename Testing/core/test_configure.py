"""Settings that follow the pair: what is measured, what is decided, and that what a user sets stays."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.fitting.configure import Character, configured
from nephi.fitting.similarity import Similarity
from nephi.images.image_pair import ImagePair
from nephi.registration import register
from nephi.settings import EVERY_ENTRY, PRESETS, Features, Sampling, from_dict
from nephi.space.affine import Affine

N = 52  # along each axis: fine voxels for a body of this size


def image(values: np.ndarray, spacing_mm: float = 4.0) -> sitk.Image:
    out = sitk.GetImageFromArray(values.astype(np.float32))
    out.SetSpacing([spacing_mm] * values.ndim)
    return out


def like(of: sitk.Image, values: np.ndarray) -> sitk.Image:
    out = sitk.GetImageFromArray(values.astype(np.float32))
    out.CopyInformation(of)
    return out


def organ(shape: tuple[int, ...] = (N, N, N), seed: int = 0) -> np.ndarray:
    """Smooth structures of 0.2 to 1 in a ball, 0 around it."""
    noise = sitk.GetImageFromArray(np.random.default_rng(seed).standard_normal(shape))
    values = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 4.0))
    ranks = values.ravel().argsort().argsort().reshape(shape) / values.size
    away = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")), axis=0)
    return np.where(away < 0.8, 0.2 + 0.8 * ranks, 0.0)


def pair(moving, fixed=None, spacing_mm: float = 2.0) -> ImagePair:
    images = Both(image(organ() if fixed is None else fixed, spacing_mm), image(moving, spacing_mm))
    return ImagePair.of(
        images, Both(None, None), Affine.identity(images.fixed.GetDimension()), PRESETS["balanced"].similarity
    )


CHANGES = {
    "none": lambda v: v,
    "gain": lambda v: 300 * v + 20 * (v > 0),
    "inverted": lambda v: np.where(v > 0, 1.4 - v, 0),
    "bent": lambda v: 900 * v**4,  # as by shading, which is no other contrast
    "folded": lambda v: np.where(v > 0, 0.3 + np.abs(v - 0.6), 0),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_contrasts_differ_where_no_rising_line_relates_them(kind):
    is_ = Character.of(pair(CHANGES[kind](organ())))
    assert is_.contrasts_differ == (kind in ("inverted", "folded"))
    assert 0 <= is_.linear <= is_.rising <= 1 and is_.linear <= is_.curved <= 1 and is_.curved > 0.15


def test_images_that_have_nothing_in_common_are_of_no_other_contrast():
    assert not Character.of(pair(organ(seed=1))).contrasts_differ
    assert not Character.of(pair(np.ones((N, N, N)))).contrasts_differ


def test_what_was_set_by_hand_stays():
    flat = organ((48, 48))
    for fixed, moving, name in (
        (flat, CHANGES["folded"](flat), "mi"),
        (organ(), CHANGES["folded"](organ()), "mind"),
        (organ(), CHANGES["gain"](organ()), "ncc"),
    ):
        free, said = configured(pair(moving, fixed=fixed), PRESETS["balanced"])
        assert free.similarity.name == name and f"similarity {name}" in said[0]
    moving = CHANGES["gain"](organ())
    by_file = {
        "similarity": {"name": "mind", "points": 1000},
        "levels": [{}],
        "field": {"code_spacing_mm": 12.0},
        "regularity": {"weight": 0.5, "points": 64, "bending_mm": 1.2},
        "fit": {"iterations": 500},
        "smooth": 1.0,
    }
    for settings in (from_dict(by_file), replace(PRESETS["balanced"], kept=(EVERY_ENTRY,))):
        got, _ = configured(pair(moving), settings)
        assert got == settings
    b = PRESETS["balanced"]
    changed = replace(b, similarity=replace(b.similarity, noise=0.1, points=Sampling.of_number(77)))
    assert configured(pair(moving), changed)[0].similarity == changed.similarity


def test_more_points_a_step_take_fewer_steps():
    noise = sitk.GetImageFromArray(np.random.default_rng(0).standard_normal((84, 84, 84)))
    tissue = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 4.0))
    full = pair(300 * tissue + 900, fixed=300 * tissue + 900)
    for name in ("fast", "balanced", "accurate"):
        s, (got, said) = PRESETS[name], configured(full, PRESETS[name])
        points, usual = got.similarity.points.most, s.similarity.points.most
        assert got.fit.iterations == round(s.fit.iterations * usual / points)
        assert points == 1500 and any(f"{got.fit.iterations} steps" in one for one in said) == (usual < points)
        for kept in ("fit", "similarity.points"):
            assert configured(full, replace(s, kept=(kept,)))[0].fit == s.fit


def test_written_settings_leave_free_what_was_free():
    """What is written of settings holds every entry, and is read by the engines of batches and of the panel."""
    moving = CHANGES["gain"](organ())
    for settings in (PRESETS["balanced"], from_dict({"levels": [{}], "similarity": {"points": 1000}})):
        again = from_dict(json.loads(settings.to_json()))
        assert again == settings and again.kept == settings.kept
        assert configured(pair(moving), again) == configured(pair(moving), settings)
    assert set(again.kept) == {"levels", "similarity.points"}


def test_cts_without_lungs_are_compared_in_a_window_of_soft_tissue(phantom_3d):
    """The lower part of a phantom's abdomen, with air beside it; set by hand the window stays."""
    body = sitk.GetArrayFromImage(phantom_3d.fixed)
    body = np.where((body > -950) & (body < -500), 40.0, body)  # no lungs
    images = Both(phantom_3d.fixed, phantom_3d.moving).map(lambda one: like(one, body))
    settings = PRESETS["fast"]
    pair = ImagePair.of(images, Both(None, None), Affine.identity(3), settings.similarity)
    used, said = configured(pair, settings)
    assert used.similarity.name == "ncc" and used.similarity.window == (-200.0, 250.0)
    assert "without lungs" in said[0] and "-200 to 250 HU" in said[1]
    assert pair.compared_by(used.similarity).windows == Both((-200.0, 250.0), (-200.0, 250.0))
    by_hand = replace(settings, similarity=replace(settings.similarity, window=(-500.0, 500.0)))
    assert configured(pair, by_hand)[0].similarity == by_hand.similarity


def test_padding_hides_no_lungs(phantom_3d):
    """Lungs are little of a large canvas of one value."""
    images = Both(phantom_3d.fixed, phantom_3d.moving).map(lambda one: sitk.ConstantPad(one, [60] * 3, [60] * 3, 0.0))
    settings = PRESETS["fast"]
    pair = ImagePair.of(images, Both(None, None), Affine.identity(3), settings.similarity)
    assert configured(pair, settings)[0] == settings


@pytest.mark.parametrize("preset", ["fast", "balanced", "accurate", "paper"])
def test_cts_keep_the_presets_values(preset, phantom_3d):
    images = Both(phantom_3d.fixed, phantom_3d.moving)
    settings = PRESETS[preset]
    for masks in (Both(None, None), Both(phantom_3d.fixed_mask, phantom_3d.moving_mask)):
        assert configured(ImagePair.of(images, masks, Affine.identity(3), settings.similarity), settings)[0] == settings


def test_small_bodies_are_configured_as_large_ones():
    one, small = (configured(pair(organ(), spacing_mm=mm), PRESETS["balanced"])[0] for mm in (2.4, 0.24))
    assert one.levels == small.levels and one.field.code_spacing_mm == pytest.approx(
        small.field.code_spacing_mm, rel=0.05
    )


def test_a_run_follows_the_pair_and_says_so():
    fixed, moving = organ((48, 48)), np.roll(CHANGES["inverted"](organ((48, 48))), 1, axis=1)
    settings = replace(PRESETS["fast"], align="none", fit=replace(PRESETS["fast"].fit, iterations=40))
    result = register(image(fixed), image(moving), settings=settings)
    assert "similarity mi" in result.configured[0] and result.settings == settings  # those that were asked for
    points = np.argwhere(fixed > 0)[:, ::-1] * 4.0
    error = np.linalg.norm(result.forward(points) - points - [4.0, 0.0], axis=1)
    assert error.mean() < 2.0


def test_points_are_drawn_around_what_a_scan_without_background_shows():
    """And from everywhere where the background is no single value."""
    noisy = organ() + np.random.default_rng(0).uniform(0, 0.05, (N, N, N))
    for values, alone in ((organ(), True), (noisy, False)):
        fixed, _ = pair(values, fixed=values).volumes(Features(4.0), Similarity().prepare, "cpu")
        drawn = fixed.dense_mask().numpy()
        assert (drawn.mean() < 0.6) == alone
        assert drawn[(fixed.volume[..., 0] > 0.2).numpy().ravel()].all()  # all of the organ


def test_organs_of_other_contrast_are_refined_by_a_curve_where_neither_is_a_ct():
    def curved(fixed: np.ndarray, moving: np.ndarray) -> bool:
        dense = configured(pair(moving, fixed=fixed), PRESETS["fast"])[0].dense
        assert dense.curve <= (dense.fine_rounds > 0)
        return dense.curve

    plain, flat = organ(), organ((48, 48))
    noise = np.random.default_rng(0).uniform(0, 0.05, plain.shape)
    assert curved(plain, CHANGES["folded"](plain)) and not curved(plain, CHANGES["gain"](plain))
    assert not curved(flat, CHANGES["folded"](flat))
    assert not curved(plain + noise, CHANGES["folded"](plain) + noise)  # something around it, as a head
    ct = np.where(plain > 0, 1000 * plain - 600, -1024)
    assert not curved(plain, ct)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_voxels_are_nodes_at_last_where_they_are_coarse(noise):
    """Of organs alone and of heads, whose steps before are then fewer; not where the contrasts differ."""
    around = np.random.default_rng(0).uniform(0, noise, (2, N, N, N)) if noise else np.zeros((2, 1, 1, 1))
    coarse = pair(CHANGES["gain"](organ()) + 300 * around[0], fixed=organ() + around[1], spacing_mm=2.4)
    settings, said = configured(coarse, PRESETS["fast"])
    assert settings.dense.fine_rounds > 0 and settings.dense.voxel_rounds > 0
    assert settings.fit.iterations < PRESETS["fast"].fit.iterations
    assert f"{settings.fit.iterations} steps before the refinement" in said
    by_hand = replace(PRESETS["fast"], fit=replace(PRESETS["fast"].fit, iterations=300))
    assert configured(coarse, by_hand)[0].fit == by_hand.fit
    folded = pair(CHANGES["folded"](organ()), spacing_mm=2.4)
    assert configured(folded, PRESETS["fast"])[0].dense.voxel_rounds == 0
    assert configured(folded, PRESETS["fast"])[0].fit == PRESETS["fast"].fit


def test_heads_are_refined_but_no_trunks_thick_slices_or_masked_images():
    """``detailed``: as small as a head, in voxels that are fine along each axis, with air around all sides but one."""

    def of(spacing_mm: float, slices_mm: float, long: int = N, masked: bool = False, cut: int = 0) -> ImagePair:
        shape = (N, N, long)
        noise = np.random.default_rng(0).uniform(0, 0.05, shape)
        part = slice(N // 4 if cut > 0 else 0, 3 * N // 4 if cut > 1 else N)  # sides that cut the ball
        both = organ(shape) + noise, CHANGES["gain"](organ(shape)) + 300 * noise[::-1]
        images = Both(*(image(values[part]) for values in both))
        mask = image(np.ones(shape)[part]) > 0
        for one in (*images, mask):
            one.SetSpacing([spacing_mm, spacing_mm, slices_mm])
        masks = Both(mask, mask) if masked else Both(None, None)
        return ImagePair.of(images, masks, Affine.identity(3), PRESETS["balanced"].similarity)

    cases = {
        "head": of(2.4, 2.4),
        "head and neck": of(2.4, 2.4, cut=1),
        "part of a trunk": of(2.4, 2.4, cut=2),
        "slices": of(1.2, 5.0),
        "trunk": of(2.4, 2.4, 130),
        "masked": of(2.4, 2.4, N, True),
    }
    for name, one in cases.items():
        settings, said = configured(one, PRESETS["fast"])
        refined = any(settings.dense.all_rounds)
        assert settings.similarity.name == "mind" and refined == name.startswith("head"), name
        assert any("refinement" in line for line in said) == name.startswith("head")
    by_hand = replace(PRESETS["fast"], similarity=replace(PRESETS["fast"].similarity, noise=0.1))
    assert configured(cases["head"], by_hand)[0].dense == by_hand.dense


def test_a_mask_of_little_of_what_is_shown_makes_no_organ_alone_of_it():
    """As lungs in a chest whose room air was clipped to one value."""
    values = organ((72, 72, 72))
    whole = pair(values, values)
    shown = [sitk.GetArrayFromImage(one) > 0 for one in whole.images]
    little = [part & (np.indices(part.shape)[0] < 30) for part in shown]
    for parts, alone in ((shown, True), (little, False)):
        masks = Both(*(image(part, 2.0) for part in parts)).map(lambda mask: sitk.Cast(mask, sitk.sitkUInt8))
        masked = ImagePair.of(whole.images, masks, Affine.identity(3), PRESETS["balanced"].similarity)
        assert Character.of(masked).alone == alone
