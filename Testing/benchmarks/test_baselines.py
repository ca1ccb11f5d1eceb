"""The baselines in miniature: on a small phantom, through the benchmark's own preparation, runner and evaluation."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi.settings import PRESETS
from nephi.space.cube import Cube
from nephi.synthetic.phantom import make_phantom

from benchmarks import environment, pairs, peers
from benchmarks.baselines import lapirn, networks
from benchmarks.baselines.bspline_tv import BSpline
from benchmarks.baselines.harness import FINE, read_pair
from benchmarks.runners import METHODS, Job
from benchmarks.scoring import evaluate
from benchmarks.train_baselines import BUILD, train
from benchmarks.voxel_maps import VoxelMaps

ICON = "the package icon-registration is not installed (it comes with benchmarks/requirements.txt)"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A phantom pair as the benchmark prepares one."""
    folder = tmp_path_factory.mktemp("pair")
    make_phantom(size=(64, 56, 56), spacing_mm=5.0).write(folder)
    roles = ("fixed", "moving")
    files = {role: f"{role}.nii.gz" for role in roles} | {f"{role}_mask": f"{role}_mask.nii.gz" for role in roles}
    files |= {f"{role}_landmarks": f"{role}_landmarks.csv" for role in roles}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEPHI_DATA", str(folder))
        patch.setitem(pairs.PAIRS, "phantom", pairs.PairFiles(**files))
        pairs.prepare("phantom", folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="module")
def before_mm(prepared) -> float:
    """Mean error after the alignment only."""
    points = [
        np.loadtxt(prepared / f"{name}_landmarks.csv", delimiter=",", skiprows=1) for name in ("fixed", "aligned")
    ]
    return float(np.linalg.norm(points[0] - points[1], axis=1).mean())


def _run(method: str, prepared: Path, out: Path, **options) -> dict:
    METHODS[method](Job(prepared, out, threads=2, seed=1, quick=False, **options))
    return evaluate(prepared, out)


@pytest.mark.parametrize(("method", "inverse"), [("voxel", True), ("bspline_tv", False), ("idir", False)])
def test_optimisation_removes_most_of_the_error(method, inverse, prepared, before_mm, tmp_path, monkeypatch):
    module = import_module(f"benchmarks.baselines.{method}")
    fewer = [replace(level, iterations=60, spacing_mm=max(level.spacing_mm, 15.0)) for level in module.LEVELS]
    fewer = [level for level in fewer if level.features != FINE]
    monkeypatch.setattr(module, "LEVELS", fewer)
    for name in ("POINTS", "WIDTH"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, getattr(module, name) // 2)
    found = _run(method, prepared, tmp_path)
    assert found["tre_mean"] < 0.5 * before_mm
    assert (found["inverse_consistency"] is not None) == inverse
    if inverse:
        assert found["inverse_consistency"] < 1.0


@pytest.mark.parametrize(("method", "package"), [("fireants", "fireants"), ("regix", "regix")])
def test_a_peers_field_leads_from_fixed_to_moving_points(method, package, prepared, before_mm, tmp_path):
    """A few iterations of the real package: its field has our sign, axes and unit."""
    pytest.importorskip(package, reason=f"the package {package} is not installed (benchmarks/requirements.txt)")
    METHODS[method](Job(prepared, tmp_path, threads=1, seed=1, quick=True))
    assert evaluate(prepared, tmp_path)["tre_mean"] < before_mm


def _options(*methods: str) -> Namespace:
    own = {"methods": methods, "presets": ["fast"], "threads": 1, "limit_s": 0}
    return Namespace(**own, quick=False, networks=None, peer_python=sys.executable, keep=True)


def test_nephi_is_compared_with_the_given_masks_and_with_lungs_that_it_finds(prepared, before_mm, tmp_path):
    lines, options = peers.commands(_options(*peers.OWN), masked=True), _options()
    given, alone = (lines[f"{name}-fast"] for name in peers.OWN)
    assert set(given) - set(alone) == {part for part in given if "mask" in part} and len(given) == len(alone) + 4
    for name, command in lines.items():
        found = peers.run([*command, "--no-report", "--iterations", "40"], prepared, tmp_path / name, options, seed=1)
        assert "error" not in found and found["tre_mean"] < 0.7 * before_mm and found["dice"] > 0.9
    assert list(peers.commands(_options(*peers.OWN), masked=False)) == ["nephi-fast"]


@pytest.fixture(scope="module")
def cube() -> Cube:
    return Cube((10.0, -20.0, 5.0), (60.0, 50.0, 40.0), tuple(np.eye(3).ravel()))


def _points(count: int = 200) -> torch.Tensor:
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * _upper()


def _upper() -> torch.Tensor:
    return torch.tensor([1.0, 50 / 60, 40 / 60])


def _linear_control(spline: BSpline, slope: torch.Tensor) -> torch.Tensor:
    """Control values (3, z, y, x) of the displacement slope @ x."""
    axes = [(torch.arange(n + 3) - 1) * 2 * u / n - u for n, u in zip(spline.cells.tolist(), _upper(), strict=True)]
    nodes = torch.stack(torch.meshgrid(*axes[::-1], indexing="ij")[::-1])
    return torch.einsum("ij,jzyx->izyx", slope, nodes)


def test_a_spline_gives_a_linear_displacement_exactly_and_the_variation_is_its_norm(cube):
    spline, slope = BSpline(cube, 20.0, _upper()), torch.tensor([[0.3, 0.1, 0.0], [0.0, -0.2, 0.4], [0.5, 0.0, 0.1]])
    spline.control.data = _linear_control(spline, slope)
    points = _points()
    torch.testing.assert_close(spline.displacement(points), points @ slope.T, atol=1e-5, rtol=0)
    assert spline.total_variation().item() == pytest.approx(float(slope.norm()), abs=0.02)


def test_a_refined_spline_is_the_same(cube):
    spline = BSpline(cube, 40.0, _upper())
    spline.control.data = torch.randn(spline.control.shape, generator=torch.Generator().manual_seed(1))
    points = _points()
    coarse, nodes = spline.displacement(points), spline.control.numel()
    spline.refine(10.0)
    assert spline.control.numel() > 10 * nodes
    torch.testing.assert_close(spline.displacement(points), coarse, atol=1e-5, rtol=0)


class _Known(torch.nn.Module):
    """In the place of a trained network: moves by another part of the half side along each axis."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def displacement(self, moving, fixed):
        return self.shift[:, None, None, None].expand(1, 3, *fixed.shape[2:])


def test_a_prediction_is_written_in_millimetres(prepared, tmp_path):
    networks.save(_Known(), tmp_path / "known.safetensors", 16)
    job = Job(prepared, tmp_path, threads=2, seed=1, quick=False, networks=tmp_path)
    networks.predict(lambda size: _Known(), "known", job)
    pair = read_pair(prepared, PRESETS["paper"].similarity, networks.SEEN.cube_margin_mm)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "displacement.mha")))
    expected = np.array([0.1, -0.2, 0.3]) * pair.cube.half_sides_mm
    np.testing.assert_allclose(written.reshape(-1, 3), np.broadcast_to(expected, (written.size // 3, 3)), atol=1e-3)


def test_a_voxel_field_reads_each_axis_along_its_own_side():
    maps = VoxelMaps((5, 9, 7), _upper())
    axes = [torch.linspace(-float(u), float(u), n) for u, n in zip(_upper(), (7, 9, 5), strict=True)]
    nodes = torch.stack(torch.meshgrid(*axes[::-1], indexing="ij")[::-1])  # (3, z, y, x), x first
    maps.displacement.data = torch.stack([0.1 * nodes, -0.2 * nodes])
    points = torch.stack([_points(), _points()])
    expected = points * torch.tensor([1.1, 0.8])[:, None, None]
    torch.testing.assert_close(maps(points), expected, atol=1e-5, rtol=0)


def _learned(method: str, size: int, prepared: Path, folder: Path) -> dict:
    """Two training steps on the phantom, then a prediction from the file of weights."""
    pair = read_pair(prepared, PRESETS["paper"].similarity, networks.SEEN.cube_margin_mm)
    seen = networks.images(networks.PairTensors.of(pair, networks.SEEN.features), size)
    network, history = train(method, [seen], size, steps=2, rate=1e-3, seed=1)
    assert all(np.isfinite(entry["loss"]) for entry in history) and len(history) == 2
    networks.save(network, folder / "weights" / f"{method}.safetensors", size)
    return _run(method, prepared, folder, networks=folder / "weights")


def test_lapirn_trains_and_predicts(prepared, tmp_path):
    found = _learned("lapirn", 24, prepared, tmp_path)
    assert np.isfinite(found["tre_mean"]) and found["inverse_consistency"] is None


def test_lapirns_warp_moves_by_parts_of_the_half_side():
    image = torch.rand((1, 1, 8, 8, 9), generator=torch.Generator().manual_seed(0))
    by = torch.tensor([2 / 8, 0.0, 2 / 7])[None, :, None, None, None].expand(1, 3, 8, 8, 9)  # a voxel along x and z
    torch.testing.assert_close(lapirn.warp(image, by)[..., :-1, :, :-1], image[..., 1:, :, 1:], atol=1e-5, rtol=0)


def test_lapirns_correlation_is_local_and_knows_no_contrast():
    image = torch.rand((1, 1, 12, 12, 12), generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(1, 2, 12)  # another contrast at every place
    assert lapirn.local_ncc(image, 3 * image - 1, 5) > 0.98
    assert lapirn.local_ncc(image, image * ramp, 3) > 0.9
    assert lapirn.local_ncc(image, image.flip(-1), 5) < 0.2


@pytest.mark.parametrize(("method", "size"), [("gradicon", 24), ("gradicon_multi", 72)])
def test_gradicon_trains_and_predicts_both_ways(method, size, prepared, tmp_path):
    pytest.importorskip("icon_registration", reason=ICON)
    found = _learned(method, size, prepared, tmp_path)
    assert np.isfinite(found["tre_mean"]) and np.isfinite(found["inverse_consistency"])


class _Shift(torch.nn.Module):
    """In the place of the package's network, whose coordinates are z first, from 0 to 1."""

    def forward(self, moving, fixed):
        return lambda points: points + torch.tensor([0.05, -0.1, 0.15])[:, None, None, None]


def test_gradicons_axes_are_turned_round():
    pytest.importorskip("icon_registration", reason=ICON)
    network = BUILD["gradicon"](24)
    network.net.regis_net = _Shift()
    expected = torch.tensor([0.3, -0.2, 0.1])[:, None, None, None].expand(2, 3, 24, 24, 24)
    torch.testing.assert_close(network.displacement(None, None), expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (partial(lapirn.build, 20), "multiple of 8"),
        (partial(networks.load, lapirn.build, Path("nowhere") / "lapirn.safetensors"), "train_baselines.py lapirn"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(call, said):
    with pytest.raises(SystemExit, match=said):
        call()


def test_training_memory_grows_with_the_image(tmp_path):
    options = ["--sizes", "65", "96", "--methods", "nephi", "--out", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.training_memory", *options],
        env=environment(),
        check=True,
        capture_output=True,
    )
    with open(tmp_path / "training_memory.csv", encoding="utf-8") as file:
        small, large = (float(row["peak_mb"]) for row in csv.DictReader(file))
    images_mb = 2 * 4 * (96**3 - 65**3) / 1e6
    assert large > small + images_mb
    assert (tmp_path / "training_memory.png").stat().st_size > 5000


def test_the_dense_field_of_a_large_ct_is_measured():
    """In miniature: all that ``memory.py --dense`` does, in a process whose memory nothing else has raised."""
    line = "import json; from benchmarks.memory import run_dense; print(json.dumps(run_dense((40, 40, 30))))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["voxels"] == 48_000 and 0 < found["in_mask"] < 48_000
    assert found["field_and_jacobian_mb"] == pytest.approx(48_000 * 16 / 1e6)
    assert found["peak_beyond_images_mb"]["dense"] > 0
