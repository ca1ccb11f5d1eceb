"""Training on data of one's own: anything with a length and pairs by their number."""

from pathlib import Path

import nephi
import torch
from nephi.settings import FitSettings


class Phantoms:
    def __len__(self):
        return 4

    def __getitem__(self, k):
        chest = nephi.make_phantom(size=(64, 56), spacing_mm=6, dimension=2, seed=k)
        masks = chest.fixed_mask, chest.moving_mask
        return nephi.tensors_of(chest.fixed, chest.moving, model, *masks, name=f"phantom {k}")


encoder = {"size": 32, "channels": (8, 16), "hidden": 16, "local_level": 1}
model = nephi.ModelSettings(dimension=2, encoder=nephi.PublishedSettings(**encoder))
settings = nephi.TrainSettings(model=model, fit=FitSettings(iterations=4), validate_every=4)
best = nephi.train(settings, Path("trained"), torch.device("cpu"), data=Phantoms())
print(f"Dice {best['dice']:.2f} after step {best['step']}")
