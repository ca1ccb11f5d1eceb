"""How far a result is smoothed: over what the fields follow beyond the images, and not where the images show it."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi.both import Both
from nephi.fitting.smoothing import smoothed
from nephi.images.image_pair import ImagePair
from nephi.maps.consensus import Consensus
from nephi.maps.held import HeldShift
from nephi.maps.maps import Map
from nephi.settings import MindSettings
from nephi.space.affine import Affine
from nephi.space.grid import Grid

NODES_CUBE = 0.16
SIZE = 60


class Wavy(Map):
    """Moves points along z by waves in x, as high as given in the cube; the inverse takes them back."""

    half_extents_cube = torch.ones(3)

    def __init__(self, height: float, length: float):
        self.height, self.length = height, length

    def _shift(self, x):
        wave = self.height * torch.sin(2 * torch.pi * x[:, :1] / self.length)
        return torch.cat([torch.zeros_like(x[:, :2]), wave], 1)

    def forward(self, points_cube):
        return points_cube + self._shift(points_cube)

    def inverse(self, points_cube):
        return points_cube - self._shift(points_cube)

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def texture() -> sitk.Image:
    noise = np.random.default_rng(0).normal(0, 1, (SIZE,) * 3).astype(np.float32)
    return sitk.RescaleIntensity(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.0), -1000, 200)


def chosen(fixed: sitk.Image, moving: sitk.Image, maps: Map) -> Consensus:
    mask = fixed > -5000
    pair = ImagePair.of(Both(fixed, moving), Both(mask, mask), Affine.identity(3), MindSettings())
    return smoothed(pair, Consensus(maps), NODES_CUBE, 1.0, torch.device("cpu"))


def warped(image: sitk.Image, maps: Map) -> sitk.Image:
    """The image seen through the maps, which are then right."""
    grid = Grid.of(image)
    pair = ImagePair.of(Both(image, image), Both(None, None), Affine.identity(3), MindSettings())
    points = pair.cube.to_cube(grid.slab_lps_mm(0, SIZE))
    there = grid.to_index(pair.cube.to_lps_mm(maps.forward(torch.tensor(points, dtype=torch.float32)).numpy()))
    read = torch.nn.functional.grid_sample(
        torch.from_numpy(sitk.GetArrayFromImage(image))[None, None],
        torch.tensor(2 * there / (SIZE - 1) - 1, dtype=torch.float32)[None, None, None],
        align_corners=True,
        padding_mode="border",
    )
    return grid.image(read.reshape(grid.shape).numpy())


def test_what_the_images_do_not_show_is_smoothed_away(texture):
    rough = Wavy(0.004, 1.5 * NODES_CUBE)
    found = chosen(texture, texture, rough)
    x = torch.rand(500, 3) * 1.4 - 0.7
    assert min(found.smooth) > 0.5 * NODES_CUBE
    assert (found.forward(x) - x).norm(dim=1).mean() < 0.6 * (rough.forward(x) - x).norm(dim=1).mean()
    assert (found.inverse(found.forward(x)) - x).abs().max() < 1e-4


def test_what_the_images_show_stays(texture):
    rough = Wavy(0.08, 1.5 * NODES_CUBE)
    fixed = warped(texture, rough)
    found, x = chosen(fixed, texture, rough), torch.rand(500, 3) * 1.4 - 0.7
    torch.testing.assert_close(found.forward(x), Consensus(rough).forward(x), atol=2e-3, rtol=0)


def test_an_axis_along_which_the_images_tell_nothing_is_smoothed_alone():
    """Images that are the same all along z show where a point lies across it, and not where along it."""
    noise = np.random.default_rng(0).normal(0, 1, (SIZE, SIZE)).astype(np.float32)
    plane = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.0))
    pillars = sitk.RescaleIntensity(sitk.GetImageFromArray(np.repeat(plane[None], SIZE, 0)), -1000, 200)
    length, height = 1.5 * NODES_CUBE, 0.03

    class Bent(Wavy):
        """Moves points along x by waves in x, which the images show, and along z by waves in z, which they do not."""

        def _shift(self, x):
            waves = self.height * torch.sin(2 * torch.pi * x / self.length)
            return waves * torch.tensor([1.0, 0.0, 1.0])

    rough = Bent(height, length)
    found = chosen(warped(pillars, rough), pillars, rough)
    assert found.smooth[0] == found.smooth[1] == 0 < found.smooth[2]


@pytest.mark.parametrize("dimension", [2, 3])
def test_smoothing_keeps_polynomials_and_takes_the_noise(dimension):
    half, size = torch.ones(dimension), (17,) * dimension
    x = torch.rand(200, dimension) * 1.2 - 0.6

    def curve(points):
        return 0.1 * points**3 - 0.2 * points**2 + 0.05 * points.flip(1)

    held = HeldShift(curve, half, size)
    torch.testing.assert_close(held.smoothed([1.0] * dimension)(x), held(x), atol=1e-4, rtol=0)
    noise = HeldShift(lambda points: torch.randn(points.shape), half, size)
    assert noise.smoothed([1.0] * dimension)(x).std() < 0.6 * noise(x).std()
