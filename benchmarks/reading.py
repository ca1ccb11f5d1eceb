"""``python -m benchmarks.reading``: seconds to read a DICOM folder by NePhi and by SimpleITK's series reader alone.

Without ``--folder`` a series of 512 x 512 x 400 voxels is made in the temporary folder. The files are read once before,
so that the disk does not count; each reader takes its turns, the best of which counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nephi
import numpy as np
import SimpleITK as sitk


def write_series(folder: Path, size: tuple[int, int, int], seed: int = 0) -> None:
    """CT slices of 16 bits, uncompressed, one file each."""
    rng = np.random.default_rng(seed)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(size[2]):
        image = sitk.GetImageFromArray(rng.integers(-1000, 1500, (1, *size[1::-1]), dtype=np.int16))[:, :, 0]
        image.SetSpacing((0.7, 0.7))
        for key, value in {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"1.2.3.4.{k + 1}",
            "0020|000d": "1.2.3", "0020|000e": "1.2.3.4", "0020|0013": str(k + 1), "0028|1052": "-1024", "0028|1053": "1",
            "0020|0032": f"-180\\-180\\{0.8 * k:.4f}", "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():  # fmt: skip
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{k:04d}.dcm"))
        writer.Execute(image)


def by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def measure(
    readers: dict[str, Callable[[Path], sitk.Image]], folder: Path, turns: int
) -> dict[str, tuple[float, float]]:
    """The least wall time and CPU time of each reader, in s."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for turn in range(turns + 1):
        for name, read in readers.items():
            started = time.perf_counter(), time.process_time()
            read(folder)
            if turn:  # the first fills the system's cache
                times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return {name: (min(wall for wall, _ in all_), min(cpu for _, cpu in all_)) for name, all_ in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="a DICOM folder with one series")
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400), metavar=("X", "Y", "Z"))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if options.folder is None:
            write_series(folder, tuple(options.size))
        found = measure({"NePhi": nephi.read_image, "SimpleITK": by_simpleitk}, folder, options.turns)
    for name, (wall, cpu) in found.items():
        print(f"{name:10} {wall:6.2f} s ({cpu:.2f} s of CPU time)")
    ratio = [a / b for a, b in zip(*found.values(), strict=True)]
    print(f"{'ratio':10} {ratio[0]:6.2f}   ({ratio[1]:.2f})")


if __name__ == "__main__":
    main()
