"""A trained model: encoder and fields in one file; predicts the code of a pair in one pass."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import decode
from ..errors import NephiError
from ..files.tensors import Bounded, check_tensors, read_tensors, write_tensors
from ..fitting.gauss_newton import refined
from ..maps.code import Code
from ..maps.maps import FieldMap, Map, make_fields
from ..maps.voxel import VoxelFields
from ..settings import FieldSettings
from .encoder import Encoder
from .matching import MatchingEncoder
from .pair_tensors import PairTensors
from .published import PublishedEncoder
from .settings import ENCODERS, EncoderSettings, ModelSettings, check
from .shipped import find_model

_FORMAT = "nephi-model-1"


class Model(nn.Module):
    """Encoder and fields with their settings. Raises NephiError for inconsistent settings.

    With a coarse stage (paper, section 4.2: multi-resolution), trained before and frozen, which predicts from the
    images at a lower resolution; the rest of the model predicts the residual.
    """

    def __init__(self, settings: ModelSettings, generator: torch.Generator | None = None):
        super().__init__()
        check(settings)
        self.settings = settings
        self.fields = make_fields(settings.field, settings.half_size_mm, settings.dimension, generator)
        self.encoder = make_encoder(settings.encoder, settings.field, settings.dimension)
        self.coarse = None if settings.coarse is None else Model(settings.coarse).requires_grad_(False)

    def rest(self, sample: PairTensors) -> PairTensors:
        """The pair warped by the coarse prediction; unchanged without a coarse stage.

        A voxel inverse is recomputed from the forward map, since its errors could not be corrected later.
        """
        if self.coarse is None:
            return sample
        settings = self.coarse.settings
        fine, coarse = (s.features.spacing_mm for s in (self.settings, settings))
        factor = max(1, round(coarse / (sample.spacing_mm or fine)))
        small = sample.downsampled(factor, settings.similarity, settings.features.dilation)
        outer = self.coarse.predict(small)
        if isinstance(outer, FieldMap) and isinstance(outer.fields, VoxelFields):
            outer = FieldMap(outer.fields, outer.fields.with_inverse(outer.code))
        return sample.through(outer)

    def codes(self, samples: list[PairTensors]) -> list[Code]:
        """The code of a batch after each of the encoder's rounds; the last is the prediction.

        ``samples`` as ``rest`` gives them. The matching encoder takes one pair at a time.
        """
        return self.encoder.codes(samples, self.fields)

    @torch.no_grad()
    def predict(self, sample: PairTensors) -> Map:
        self.eval()
        rest = self.rest(sample)
        maps: Map = FieldMap(self.fields, self.codes([rest])[-1])
        if self.settings.refinements:
            maps = refined(rest.volumes, maps, self.settings.refinements)
        return maps if rest.outer is None else rest.outer @ maps

    def begin_with(self, other: Model) -> None:
        """Copy the weights of another model's fields and encoder. Raises NephiError if the architectures differ.

        The coarse stage is kept, whatever that of the other model is.
        """
        for part in ("dimension", "field", "encoder"):
            mine, theirs = (getattr(model.settings, part) for model in (self, other))
            if mine != theirs:
                raise NephiError(
                    f"the model to start from has a different {part}: {theirs}; the settings ask for {mine}"
                )
        self.fields.load_state_dict(other.fields.state_dict())
        self.encoder.load_state_dict(other.encoder.state_dict())

    def save(self, path: str | Path, about: dict | None = None) -> None:
        """Weights with the settings in the metadata (safetensors); ``about``: facts of the training."""
        settings = json.dumps(dataclasses.asdict(self.settings))
        metadata = {"format": _FORMAT, "settings": settings, "about": json.dumps(about or {})}
        write_tensors(path, self.state_dict(), metadata)

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu") -> Model:
        """A shipped model by its name, or a model file; raises NephiError if it is missing, damaged or not a model."""
        path = find_model(name)
        metadata, tensors = _read(path)
        try:
            settings = decode(ModelSettings(), json.loads(metadata["settings"]))
            with Bounded(tensors, path):
                model = cls(settings)
        except (AttributeError, KeyError, ValueError, RecursionError, RuntimeError, NephiError) as error:
            raise NephiError(f"{path}: the model's settings cannot be read ({error})") from None
        check_tensors(tensors, model.state_dict(), path)
        model.load_state_dict(tensors)
        return model.eval().requires_grad_(False).to(device)


def about(name: str | Path) -> dict:
    """The facts of a model's training: version, settings, validation."""
    return json.loads(_read(find_model(name))[0].get("about", "{}"))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    metadata, tensors = read_tensors(path, "a NePhi model")
    if metadata.get("format") != _FORMAT:
        raise NephiError(f"{path} is not a trained NePhi model (format {metadata.get('format')!r})")
    return metadata, tensors


def make_encoder(settings: EncoderSettings, field: FieldSettings, dimension: int) -> Encoder:
    """The encoder named in the settings. Raises NephiError if it is unknown."""
    return ENCODERS.make(settings.kind, settings, field, dimension)


ENCODERS.add("published", PublishedEncoder)
ENCODERS.add("matching", MatchingEncoder)
