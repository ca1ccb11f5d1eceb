"""A trained model: encoder and fields in one file; predicts the code of a pair in one pass."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .encoder import EncoderSettings, make_encoder, nodes
from .errors import NephiError
from .field import Code, NeuralFields, zero_code
from .sample import Sample
from .settings import FieldSettings, SimilaritySettings, decode, find_model

_FORMAT = "nephi-model-1"


@dataclass(frozen=True)
class ModelSettings:
    """What a model is made of, and how an image has to be prepared for it."""

    dimension: int = 3
    field: FieldSettings = FieldSettings()
    encoder: EncoderSettings = EncoderSettings()
    similarity: SimilaritySettings = SimilaritySettings()  # of its stages, the first: what the encoder looks at
    align: str = "auto"
    cube_margin_mm: float = 15.0
    half_size_mm: float = 150.0  # the cube's half side that the fields' wavelength is meant for


class Model(nn.Module):
    """Encoder and fields with their settings."""

    def __init__(self, settings: ModelSettings, generator: torch.Generator | None = None):
        super().__init__()
        self.settings = settings
        self.fields = NeuralFields(settings.field, settings.half_size_mm, settings.dimension, generator)
        self.encoder = make_encoder(settings.encoder, settings.field, settings.dimension)

    def codes(self, samples: list[Sample]) -> list[Code]:
        """The code of a batch after each of the encoder's rounds; the last is the prediction.

        The matching encoder takes one pair at a time.
        """
        if self.settings.encoder.kind == "published":
            images = torch.stack([sample.images(self.settings.encoder.size) for sample in samples])
            return [self.encoder(images, samples[0].upper_cube)]
        (sample,) = samples
        size = nodes(sample.upper_cube, self.settings.encoder.node_spacing)
        start = zero_code(self.settings.field, sample.upper_cube, size)
        return self.encoder(sample.volumes, self.fields, start)

    @torch.no_grad()
    def predict(self, sample: Sample) -> Code:
        self.eval()
        return self.codes([sample])[-1]

    def save(self, path: str | Path, about: dict | None = None) -> None:
        """Weights with the settings in the metadata (safetensors); ``about``: how they came to be."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        settings = json.dumps(dataclasses.asdict(self.settings))
        metadata = {"format": _FORMAT, "settings": settings, "about": json.dumps(about or {})}
        safetensors.torch.save_file(tensors, str(path), metadata)

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu") -> Model:
        """A shipped model by its name, or a model file; raises NephiError for one that is none or does not fit."""
        path = find_model(name)
        metadata, tensors = _read(path)
        try:
            settings = decode(ModelSettings(), json.loads(metadata["settings"]))
        except (KeyError, ValueError) as error:
            raise NephiError(f"{path}: the model's settings can't be read ({error})") from None
        model = cls(settings)
        wanted = model.state_dict()
        for name in [*wanted, *tensors]:
            have, want = (None if t is None else tuple(t.shape) for t in (tensors.get(name), wanted.get(name)))
            if have != want:
                raise NephiError(f"{path} does not fit its own settings: {name} is {have}, should be {want}")
        model.load_state_dict(tensors)
        return model.eval().requires_grad_(False).to(device)


def about(name: str | Path) -> dict:
    """How a model came to be, as its training wrote it down."""
    return json.loads(_read(find_model(name))[0].get("about", "{}"))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise NephiError(f"cannot read {path} as a NePhi model: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise NephiError(f"{path} is not a trained NePhi model (format {metadata.get('format')!r})")
    return metadata, tensors
