"""An encoder of one's own, by name in the settings: the global code from the images' mean intensities alone."""

import nephi
import torch
from nephi.maps.code import zero_code


class MeanEncoder(nephi.Encoder):
    def __init__(self, settings, field, dimension):
        super().__init__()
        self.field, self.layer = field, torch.nn.Linear(2, field.global_code)

    def codes(self, samples, fields):
        means = torch.stack([torch.stack([image.mean() for image in sample.scaled]) for sample in samples])
        code = zero_code(self.field, samples[0].half_extents_cube, (4, 4), len(samples))
        return [nephi.Code(self.layer(means), code.local_code, code.half_extents_cube)]


nephi.ENCODERS.add("mean", MeanEncoder)
settings = nephi.ModelSettings(dimension=2, encoder=nephi.EncoderSettings(kind="mean"))
chest = nephi.make_phantom(dimension=2)
sample = nephi.tensors_of(chest.fixed, chest.moving, settings, chest.fixed_mask, chest.moving_mask)
nephi.Model(settings).save("model.safetensors")
maps = nephi.Model.load("model.safetensors").predict(sample)
print(f"{sum(p.numel() for p in maps.fields.parameters())} parameters in the fields")
