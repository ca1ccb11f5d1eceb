"""Work on a device: a step without the host, replayed steps, images resampled there; CUDA where there is a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from nephi import PRESETS, Guidance, register
from nephi import device as device_module
from nephi.device import choose_device, devices, release_freed_memory
from nephi.errors import NephiError
from nephi.fitting import fit
from nephi.fitting.optimise import Optimisation
from nephi.fitting.replay import Replayed
from nephi.images import image_pair
from nephi.images.resample import DeviceImage, DeviceSlices
from nephi.images.slices import Slices
from nephi.space import interpolate as interpolate_module
from nephi.space import rigid
from nephi.space.affine import Affine
from nephi.space.cube import Cube
from nephi.space.grid import Grid
from nephi.space.interpolate import interpolate
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]
NO_WORK = ("aten::_unsafe_view", "aten::detach", "aten::new_empty_strided", "aten::empty_like")
TO_THE_HOST = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")


class Operations(TorchDispatchMode):
    """Counts what is computed or copied; views are neither."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name
        if not function.is_view and name not in NO_WORK:
            self.counts[name] += 1
        return function(*arguments, **(keywords or {}))


def smooth_pair(d: int = 3, side: int = 40) -> list[sitk.Image]:
    generator = np.random.default_rng(0)
    images = []
    for _ in range(2):
        noise = sitk.GetImageFromArray(generator.normal(size=(side,) * d).astype(np.float32))
        noise.SetSpacing((4.0,) * d)
        images.append(sitk.SmoothingRecursiveGaussian(noise, 8.0))
    return images


def short(preset: str, iterations: int):
    settings = PRESETS[preset]
    return replace(settings, fit=replace(settings.fit, iterations=iterations))


def all_guides(fixed: sitk.Image, moving: sitk.Image) -> Guidance:
    """Every kind of guidance, for a pair of one grid."""
    grid = Grid.of(fixed)
    points = np.mean(grid.corners_lps_mm(), 0) + np.random.default_rng(0).uniform(-30, 30, (5, grid.dimension))
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:20, 10:20] = 1
    labels[20:30, 10:20] = 2
    labels = grid.image(labels)
    shift = sitk.TranslationTransform(grid.dimension, [2.0] * grid.dimension)
    return Guidance((points, points + 3), None, (labels, labels), (labels == 1, labels == 2), labels, labels, shift)


def operations_of_a_step(
    preset: str,
    monkeypatch,
    guide=lambda *images: None,
    mask: sitk.Image | None = None,
    kept: tuple[str, ...] = (),
) -> Counter[str]:
    """Of one late enough for every lazily made constant, in the middle of a stage.

    ``mask``: along which the maps slide; both sides are counted together.

    ``kept``: entries of the preset that stay, though the images are no CTs.
    """
    seen, step = Operations(), Optimisation._evaluate
    update = fit.Adam.update

    def counted_step(self, number):
        if number == 13:
            seen.__enter__()
        return step(self, number)

    def counted_update(self):
        update(self)
        if self.done == 13:
            seen.__exit__(None, None, None)

    monkeypatch.setattr(Optimisation, "_evaluate", counted_step)
    monkeypatch.setattr(fit.Adam, "update", counted_update)
    images = smooth_pair()
    settings, guidance = replace(short(preset, 15 if mask is None else 25), kept=kept), guide(*images)
    if guidance is None:
        settings = replace(settings, align="none")
    if mask is not None:
        settings = replace(settings, sliding=True)
    masks = {"fixed_mask": mask, "moving_mask": mask}
    register(*images, settings=settings, guidance=guidance, auto_mask=False, device="cpu", **masks)
    return seen.counts


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_neither_reads_from_nor_copies_to_the_host(preset, monkeypatch):
    counts = operations_of_a_step(preset, monkeypatch)
    assert counts["aten::_fused_adam_"] == 1  # a whole step was seen
    assert not [name for name in counts if name in TO_THE_HOST or name.startswith("aten::lift")]


def test_a_guided_step_neither_reads_from_nor_copies_to_the_host(monkeypatch):
    counts = operations_of_a_step("fast", monkeypatch, all_guides)
    assert counts["aten::_fused_adam_"] == 1
    assert counts.total() > operations_of_a_step("fast", monkeypatch).total() + 50
    assert not [name for name in counts if name in TO_THE_HOST or name.startswith("aten::lift")]


def test_a_sliding_step_neither_reads_from_nor_copies_to_the_host(monkeypatch):
    grid = Grid.of(smooth_pair()[0])
    inside = np.zeros(grid.shape, np.uint8)
    inside[8:32, 8:32, 8:32] = 1
    plain = operations_of_a_step("fast", monkeypatch).total()
    monkeypatch.undo()  # what it counts by
    counts = operations_of_a_step("fast", monkeypatch, mask=grid.image(inside))
    assert counts["aten::_fused_adam_"] == 2
    assert counts.total() > 2 * plain + 20
    assert not [name for name in counts if name in TO_THE_HOST or name.startswith("aten::lift")]


@pytest.mark.parametrize("preset", ["fast", "balanced", "accurate"])
def test_a_step_is_few_operations_with_bending_too(preset, monkeypatch):
    monkeypatch.setattr(interpolate_module, "_CACHED_POINTS", 10**6)  # sums in one piece, as on a GPU
    without = operations_of_a_step(preset, monkeypatch).total()
    assert 100 < without < operations_of_a_step(preset, monkeypatch, kept=("regularity.bending_mm",)).total() <= 200


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("size", [(5, 4), (5, 4, 3), (4, 1, 3)])
def test_slopes_of_an_interpolation_are_right_and_have_slopes(size, degree):
    """Against finite differences in double precision, inside and beyond the border."""
    generator = torch.Generator().manual_seed(0)
    kind = {"dtype": torch.double, "generator": generator}
    tables = [torch.randn(int(np.prod(size)), 3, **kind).requires_grad_() for _ in range(2)]
    position = (torch.rand(2, 20, len(size), **kind) * (max(size) + 2) - 1.5).requires_grad_()

    def values(position, *tables):
        return interpolate(tables, position, size, degree)

    assert torch.autograd.gradcheck(values, (position, *tables))
    assert torch.autograd.gradgradcheck(values, (position, *tables))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
@pytest.mark.parametrize("degree", [1, 2])
def test_places_that_are_no_numbers_have_no_values_and_leave_others_theirs(degree, kind, differentiated, device):
    """As a landmark that an image does not show."""
    size, generator = (9, 8, 7), torch.Generator().manual_seed(0)
    table = (torch.rand(9 * 8 * 7, 4, generator=generator) * 200).to(kind).to(device)
    position = (torch.rand(1, 50, 3, generator=generator) * 6).to(device)
    expected = interpolate([table], position, size, degree)[0]
    position[0, 3, 1], position[0, 7] = torch.nan, torch.nan
    there = torch.ones(50, dtype=torch.bool, device=device)
    there[[3, 7]] = False
    found = interpolate([table], position.requires_grad_(differentiated), size, degree)[0]
    assert found[~there].isnan().all()
    torch.testing.assert_close(found[there].detach(), expected[there])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", [2, 3])
def test_linear_interpolation_on_a_device_is_that_of_torch(d, device):
    generator = torch.Generator().manual_seed(0)
    size = (9, 8, 7)[:d]
    values = torch.rand(4, *reversed(size), generator=generator).to(device)
    unit = (torch.rand(50, d, generator=generator) * 2.4 - 1.2).to(device)
    position = (unit + 1) / 2 * (torch.tensor(size, device=device) - 1)
    found = interpolate([values.flatten(1).T.contiguous()], position[None], size)[0]
    expected = F.grid_sample(
        values[None], unit.reshape(1, -1, *[1] * (d - 1), d), padding_mode="border", align_corners=True
    )
    torch.testing.assert_close(found, expected.reshape(4, 50).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pixel", [np.int16, np.uint8, np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("spacing_mm", [1.3, 2.0, 4.4, 9.0])
def test_an_image_resampled_on_a_device_is_that_of_simpleitk(spacing_mm, pixel, device):
    """To a thousandth of a grey value, through an oblique alignment, averaged where the grid is coarser."""
    generator = np.random.default_rng(0)
    values = generator.normal(100, 40, (23, 27, 31)).clip(0, 255).astype(pixel)
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    frame = Grid((31, 27, 23), (1.1, 1.6, 2.1), (10.0, -20.0, 30.0), tuple(turn.ravel()))
    image = frame.image(values)
    cube = Cube.around(frame.corners_lps_mm(), frame.direction, 4.0)
    affine = Affine(np.eye(3) + generator.normal(0, 0.05, (3, 3)), generator.normal(0, 3, 3))
    grid = cube.grid(spacing_mm)
    expected = Slices(image, grid, affine.transform(), -7.0)
    found = DeviceSlices(DeviceImage(image, torch.device(device)), grid, affine, -7.0)
    for rows in (slice(0, grid.shape[0]), slice(1, 3)):
        np.testing.assert_allclose(found[rows].cpu().numpy(), expected[rows], atol=1e-3, rtol=0)


@cuda
def test_steps_on_cuda_do_not_wait_for_the_host():
    def quietly(step):
        def run(self, number):
            # constants of a stage are sent at its first step
            torch.cuda.set_sync_debug_mode("default" if number == self.begin or number < 3 else "error")
            try:
                return step(self, number)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimisation, "_evaluate", quietly(Optimisation._evaluate))
        for preset in PRESETS:
            register(*smooth_pair(), settings=short(preset, 30), auto_mask=False, device="cuda")


@cuda
@pytest.mark.parametrize("preset", PRESETS)
def test_replayed_steps_on_cuda_are_those_of_plain_ones(preset, monkeypatch, caplog):
    """Over all stages of a short run. Plain runs differ among themselves: a GPU adds up in any order."""
    points = np.random.default_rng(0).uniform(20, 140, (200, 3))
    found, captured = [], []
    capture = Replayed._capture
    monkeypatch.setattr(Replayed, "_capture", lambda self: captured.append(1) or capture(self))
    for plain in (False, True, True, True):
        if plain:
            monkeypatch.setattr(Replayed, "__call__", lambda self, key: self._function())
        result = register(*smooth_pair(), settings=short(preset, 40), auto_mask=False, device="cuda")
        found.append(result.forward(points))
    assert len(captured) == len(PRESETS[preset].levels) and not caplog.records
    replayed, *plain = found
    assert np.abs(replayed - points).max() > 0.1
    spread = max(np.abs(a - b).mean() for a, b in combinations(plain, 2))
    assert min(np.abs(replayed - p).mean() for p in plain) < 4 * spread + 1e-3


@cuda
def test_cuda_and_the_cpu_agree():
    points = np.random.default_rng(0).uniform(20, 140, (200, 3))
    found = [
        register(*smooth_pair(), settings=PRESETS["fast"], auto_mask=False, device=device) for device in ("cuda", "cpu")
    ]
    last = [result.history[-1]["similarity"] for result in found]
    assert last[0] == pytest.approx(last[1], rel=0.1)
    assert all(np.isfinite(result.forward(points)).all() for result in found)


# ---- devices that are seldom at hand ----------------------------------------------------------------------


def kernels() -> dict[str, dict]:
    """PyTorch's own table of its operations."""
    folder = Path(pytest.importorskip("torchgen").__file__).parent
    table = yaml.safe_load((folder / "packaged/ATen/native/native_functions.yaml").read_text(encoding="utf-8"))
    return {entry["func"].partition("(")[0]: entry for entry in table}


def has_kernel(table: dict[str, dict], name: str, kind: str) -> bool:
    entry = table[name]
    if "structured_delegate" in entry:
        return has_kernel(table, entry["structured_delegate"], kind)
    kinds = {part.strip() for key in entry.get("dispatch", {}) for part in key.split(",")}
    # without a table of kernels it is made of other operations
    return not kinds or kind in kinds or any(part.startswith("Composite") for part in kinds)


class Kinds(TorchDispatchMode):
    """The operations by their names in PyTorch's table, and those whose results are in double precision."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()
        self.double: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        name = str(function).removeprefix("aten.").removesuffix(".default")
        self.names.add(name)
        if isinstance(result, torch.Tensor) and result.dtype == torch.double:
            self.double.add(name)
        return result


def test_the_table_tells_what_apple_gpus_lack():
    table = kernels()
    assert has_kernel(table, "mm", "MPS") and has_kernel(table, "_fused_adam_", "MPS")
    assert not has_kernel(table, "_linalg_eigh", "XLA") and not has_kernel(table, "_fft_c2c", "MkldnnCPU")


@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_every_operation_of_a_registration_has_a_kernel_for_apple_gpus(preset):
    images, seen = smooth_pair(), Kinds()
    with seen:
        result = register(*images, settings=short(preset, 15), guidance=all_guides(*images), device="cpu")
        result.dense_jacobian(result.fixed_grid.coarsened(20.0), None)
    table = kernels()
    assert "_fused_adam_" in seen.names and len(seen.names) > 60
    assert not [name for name in seen.names if not has_kernel(table, name, "MPS")]


@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_no_step_computes_in_double_precision_where_a_device_has_none(preset, monkeypatch):
    monkeypatch.setattr(rigid, "has_doubles", lambda device: False)
    monkeypatch.setattr(image_pair, "has_doubles", lambda device: False)
    images, seen, step = smooth_pair(), Kinds(), Optimisation._evaluate

    def watched(self, number):
        with seen:
            loss, terms = step(self, number)
            loss.backward(retain_graph=True)
        return loss, terms

    monkeypatch.setattr(Optimisation, "_evaluate", watched)
    register(*images, settings=short(preset, 5), guidance=all_guides(*images), device="cpu")
    assert len(seen.names) > 30 and not seen.double


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_further_devices_are_known_by_their_names(kind, monkeypatch):
    assert kind not in str(devices())
    with pytest.raises(NephiError, match=f"'{kind}' is not available"):
        choose_device(kind)
    monkeypatch.setattr(device_module, "_count", lambda name: int(name == kind))
    assert choose_device(kind).type == kind
    assert choose_device("auto").type == "cpu"  # nothing has been measured there
    with pytest.raises(NephiError, match="unknown device 'tpu'"):
        choose_device("tpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_worked_on_in_threads_come_in_order_by_one_thread_each(two_threads):
    both_at_work = Barrier(2, timeout=30)

    def work(part):
        if part in (1, 2):
            both_at_work.wait()  # raises where one would come after the other
        return part, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        found = list(device_module.in_threads(work, range(6)))
    assert found == [(part, 1, False) for part in range(6)]
    assert torch.get_num_threads() == 2


def test_threads_are_as_before_where_a_part_fails_or_the_rest_is_not_wanted(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(device_module.in_threads(lambda part: 1 / part, [1, 2, 0, 3]))
    assert torch.get_num_threads() == 2
    parts = device_module.in_threads(lambda part: part, range(100))
    assert [next(parts) for _ in range(3)] == [0, 1, 2]
    parts.close()
    assert torch.get_num_threads() == 2


def test_a_result_does_not_depend_on_the_number_of_threads(two_threads, monkeypatch):
    monkeypatch.setattr("nephi.result._CHUNK", 100)
    result = register(*smooth_pair(), settings=short("fast", 3), auto_mask=False, device="cpu")
    points = np.random.default_rng(0).uniform(-40, 40, (950, 3)) + np.mean(result.fixed_grid.corners_lps_mm(), 0)

    def found():
        again = replace(result, maps=result.maps.to("cpu"))  # nothing is held yet
        return [way(points) for way in (again.forward, again.inverse, again.jacobian_determinant)]

    by_two = found()
    torch.set_num_threads(1)
    for one, two in zip(found(), by_two, strict=True):
        assert len(one) == len(points)
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)
    for way in (result.forward, result.inverse, result.jacobian_determinant):
        assert len(way(points[:0])) == 0


glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not glibc, reason="the C library keeps no freed memory")
@pytest.mark.parametrize("little", [False, True])
def test_freed_memory_below_what_is_held_goes_back_to_the_system_unless_it_is_little(monkeypatch, little):
    if little and not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the C library does not tell how much is held")
    monkeypatch.setattr("nephi.device._LITTLE_BYTES", 2**40 if little else 0)

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    blocks = [np.ones(60_000, np.uint8) for _ in range(2000)]
    last = blocks[-1]  # above the others
    full = resident_mb()
    del blocks
    release_freed_memory()
    assert (resident_mb() < full - 80) != little and last[0] == 1
