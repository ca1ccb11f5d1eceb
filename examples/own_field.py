"""Fields of one's own, by name in the settings: no network, the displacement is linear in the local code."""

from dataclasses import replace

import nephi
import numpy as np
import torch


class LinearFields(nephi.Fields):
    def __init__(self, settings, half_size_mm, dimension, generator=None):
        super().__init__(settings)
        self.weight = torch.nn.Parameter(0.1 * torch.randn(2, settings.local_code, dimension, generator=generator))

    def forward(self, points_cube, code):
        return torch.baddbmm(points_cube, code.at(points_cube, self.settings.code_degree), self.weight)


nephi.FIELDS.add("linear", LinearFields)
chest, settings = nephi.make_phantom(dimension=2), nephi.PRESETS["fast"]
settings = replace(settings, field=nephi.FieldSettings(kind="linear"))
result = nephi.register(chest.fixed, chest.moving, settings=settings)
error_mm = np.linalg.norm(result.forward(chest.fixed_landmarks_lps_mm) - chest.moving_landmarks_lps_mm, axis=1)
print(f"mean error {error_mm.mean():.2f} mm")
