"""The result of a registration: a pair of maps in LPS mm, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import SimpleITK as sitk
import torch

from .align import Affine
from .errors import NephiError
from .field import FORWARD, INVERSE, HybridCode, Maps, composed, make_fields, zero_code
from .objective import exact_jacobian
from .settings import FieldSettings, Settings, from_dict
from .space import Cube, Grid
from .tensorfile import read_tensors

_CHUNK = 8192  # points evaluated at a time
_FORMAT = "nephi-registration-2"


@dataclass
class Registration:
    """Forward map (fixed -> moving points) and inverse map (moving -> fixed), alignment included."""

    maps: Maps  # in the cube
    cube: Cube
    affine: Affine
    fixed_grid: Grid
    moving_grid: Grid
    settings: Settings
    length_scale: float = 1.0
    alignment: str = "none"
    history: list[dict] = field(default_factory=list)
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None
    found_masks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a user should know of how it came about
    device: str = "cpu"
    seconds: float = 0.0

    def forward(self, points_lps_mm) -> np.ndarray:
        """Fixed points (n, d) in LPS mm -> the same anatomy in the moving image."""
        return self.affine(self.cube.to_lps_mm(self._evaluate(self.cube.to_cube(points_lps_mm), FORWARD)))

    def inverse(self, points_lps_mm) -> np.ndarray:
        """Moving points (n, d) in LPS mm -> the same anatomy in the fixed image (the second field)."""
        aligned = self.affine.inverse()(points_lps_mm)
        return self.cube.to_lps_mm(self._evaluate(self.cube.to_cube(aligned), INVERSE))

    def jacobian_determinant(self, points_lps_mm) -> np.ndarray:
        """Exact Jacobian determinant (n,) of the forward map at fixed points, alignment included."""
        points_cube = self.cube.to_cube(points_lps_mm)
        out = np.empty(len(points_cube), np.float32)
        for start in range(0, len(points_cube), _CHUNK):
            x = self._tensor(points_cube[start : start + _CHUNK]).requires_grad_()
            jacobian = exact_jacobian(self.maps.one(x, FORWARD), x, create_graph=False)
            out[start : start + _CHUNK] = torch.linalg.det(jacobian).cpu().numpy()
        return out * np.float32(np.linalg.det(self.affine.matrix))

    def _tensor(self, points_cube: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(points_cube, dtype=torch.float32, device=self.maps.code.global_code.device)

    @torch.no_grad()
    def _evaluate(self, points_cube: np.ndarray, way: int) -> np.ndarray:
        flat = np.reshape(points_cube, (-1, points_cube.shape[-1]))
        out = np.empty_like(flat)
        for start in range(0, len(flat), _CHUNK):
            x = self._tensor(flat[start : start + _CHUNK])
            # only the displacement comes in single precision, so that the map keeps the points' own
            moved = self.maps.one(x, way) - x
            out[start : start + _CHUNK] = flat[start : start + _CHUNK] + moved.double().cpu().numpy()
        return out.reshape(np.shape(points_cube))

    def displacement(self, grid: Grid, inverse: bool = False) -> np.ndarray:
        """Displacement (z, y, x, d) float32 in LPS mm at a grid's voxel centres, slice by slice."""
        out = np.empty((*grid.shape, grid.dimension), np.float32)
        way = self.inverse if inverse else self.forward
        depth = max(1, _CHUNK // int(np.prod(grid.shape[1:])))
        for start in range(0, grid.shape[0], depth):
            stop = min(start + depth, grid.shape[0])
            points = grid.slab_lps_mm(start, stop)
            out[start:stop] = (way(points) - points).reshape(out[start:stop].shape)
        return out

    def jacobian_image(self, displacement: np.ndarray, grid: Grid, mask: sitk.Image | None) -> np.ndarray:
        """Jacobian determinant (z, y, x) float32 on the fixed grid.

        Exact at every voxel centre of the mask; elsewhere by central differences of the displacement
        (on its own, coarser grid), which is quick and only looked at.
        """
        from .quality import displacement_jacobian

        coarse = grid.image(displacement_jacobian(displacement, grid))
        out = sitk.GetArrayFromImage(self.fixed_grid.resample(coarse, outside=1.0))
        return out if mask is None else self.dense_jacobian(self.fixed_grid, mask, out)

    def dense_jacobian(self, grid: Grid, mask: sitk.Image | None, out: np.ndarray | None = None) -> np.ndarray:
        """Exact Jacobian determinant (z, y, x) float32 at every voxel centre of a grid, or of a mask on it.

        Outside the mask ``out`` keeps what it holds; by default that is 1.
        """
        out = np.ones(grid.shape, np.float32) if out is None else out
        inside = None if mask is None else sitk.GetArrayViewFromImage(mask) != 0
        for start in range(grid.shape[0]):
            points = grid.slab_lps_mm(start, start + 1)
            chosen = np.ones(len(points), bool) if inside is None else inside[start].reshape(-1)
            if chosen.any():
                out[start].reshape(-1)[chosen] = self.jacobian_determinant(points[chosen])
        return out

    # ---- the model file --------------------------------------------------------------------------------

    def save_model(self, path: str | Path) -> None:
        """Network, code, geometry and settings, to be evaluated again at any resolution (safetensors)."""
        parts = {"": self.maps} if self.maps.outer is None else {"": self.maps, "outer.": self.maps.outer}
        tensors = {}
        for prefix, maps in parts.items():
            for name, module in (("fields", maps.fields), ("code", HybridCode(maps.code))):
                tensors |= {f"{prefix}{name}.{k}": v for k, v in module.state_dict().items()}
        geometry = {
            "cube": vars(self.cube),
            "affine": {"matrix": self.affine.matrix.tolist(), "offset_mm": self.affine.offset_mm.tolist()},
            "fixed_grid": _plain(self.fixed_grid),
            "moving_grid": _plain(self.moving_grid),
            "maps": {p: {"code_size": m.code.size, "field": vars(m.fields.settings)} for p, m in parts.items()},
            "length_scale": self.length_scale,
            "alignment": self.alignment,
        }
        metadata = {"format": _FORMAT, "settings": self.settings.to_json(), "geometry": json.dumps(geometry)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        safetensors.torch.save_file(tensors, str(path), metadata)

    @classmethod
    def load_model(cls, path: str | Path, device: str = "cpu") -> Registration:
        """The maps of a model file; raises NephiError for a file that is not one."""
        try:
            metadata, tensors = read_tensors(path)
        except FileNotFoundError:
            raise NephiError(f"no such model file: {path}") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise NephiError(f"cannot read {path} as a NePhi model: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise NephiError(f"{path} is not a NePhi registration (format {metadata.get('format')!r})")
        geometry = json.loads(metadata["geometry"])
        cube = Cube(*(tuple(geometry["cube"][k]) for k in ("centre_lps_mm", "half_sides_mm", "direction")))
        parts = {}
        for prefix, made in geometry["maps"].items():
            settings = FieldSettings(**made["field"])
            upper = torch.tensor(cube.upper_cube, dtype=torch.float32)
            fields = make_fields(settings, cube.unit_mm, cube.dimension)
            code = HybridCode(zero_code(settings, upper, tuple(made["code_size"])))
            for module, name in ((fields, f"{prefix}fields."), (code, f"{prefix}code.")):
                own = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
                try:
                    module.load_state_dict(own)
                except RuntimeError as error:
                    raise NephiError(f"{path} does not fit its own settings: {error}") from None
                module.requires_grad_(False).to(device)
            parts[prefix] = Maps(fields, code)
        affine = geometry["affine"]
        return cls(
            maps=composed(parts[""], parts.get("outer.")),
            cube=cube,
            affine=Affine(np.array(affine["matrix"]), np.array(affine["offset_mm"])),
            fixed_grid=_grid(geometry["fixed_grid"]),
            moving_grid=_grid(geometry["moving_grid"]),
            settings=from_dict(json.loads(metadata["settings"])),
            length_scale=geometry["length_scale"],
            alignment=geometry["alignment"],
            device=device,
        )


def _plain(grid: Grid) -> dict:
    return {k: getattr(grid, k) for k in ("size", "spacing_mm", "origin_lps_mm", "direction")}


def _grid(data: dict) -> Grid:
    return Grid(*(tuple(data[k]) for k in ("size", "spacing_mm", "origin_lps_mm", "direction")))
