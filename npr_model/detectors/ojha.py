"""Ojha: Ojha et al., "Towards universal fake image detectors that generalize across generative models" (CVPR 2023)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors import encoder as encoders
from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.layers.nearest import NearestNeighbour
from npr_model.errors import InputError

INVERSE_PENALTY = 0.001  # scikit-learn's C, for standardised embeddings
CLASSIFIERS = ("linear", "nearest")
LEAST_COSINE = 0.95  # between two embeddings of one picture by one encoder on two machines


class Ojha(PixelNetwork):
    """A classifier on the embeddings of a frozen image encoder: a linear probe, or the nearest neighbour.

    With the encoder f, the embedding of an image x is e = f(x) / |f(x)|, or e holds tokens of the encoder's blocks,
    unscaled.

    - ``linear``: The logit is w . e + b. The pair (w, b) minimises the logistic loss plus |w'|^2 / (2 C), where w' are
      the weights of the standardised embeddings. scikit-learn fits it.
    - ``nearest``: The logit is 100 times the cosine distance from e to the nearest embedding of a real training crop,
      minus 100 times that to the nearest embedding of a generated one. Its sign is the authors' verdict with one
      neighbour. The checkpoint holds the embeddings (:class:`npr_model.detectors.layers.nearest.NearestNeighbour`).

    Departures from the authors: the embedding of the default encoder holds tokens of its middle blocks instead of its
    output, after Koutlis and Papadopoulos (:mod:`npr_model.detectors.encoder`); with ``nearest`` it is the output, as
    theirs. The encoder is CLIP ViT-B/16 in int8 instead of ViT-L/14 in float32. The whole image is resized to the
    encoder's 224 x 224 pixels, where the authors crop, because a large picture shows what it is only as a whole. The
    resizing is bilinear with antialiasing, as in the view ``resize:224``, which gives the same pixels. Both sides are
    scaled, so nothing is cut off. The penalty replaces the authors' early stopping. The authors published no code of
    their nearest neighbour; it was written from the paper's abstract and from knowledge of the method. They also
    voted among several neighbours, which is left out.

    Args:
        encoder: sha256 of the encoder's ONNX file. Default: the encoder that is found now, with its tokens and width
            (:func:`npr_model.detectors.encoder.default`).
        width: Number of values of an embedding.
        tokens: Where in the encoder the embedding is read off (:class:`npr_model.detectors.encoder.Encoder`). Default:
            its output, if ``encoder`` and ``width`` are given.
        classifier: One of CLASSIFIERS.
        stored: How many embeddings ``nearest`` holds, real and generated.

    Raises:
        ValueError: ``tokens`` is not a tuple of strings, or is given without ``encoder`` and ``width``; ``classifier``
            is unknown; ``stored`` is wrong, too large, or given with ``linear``.

    Attributes:
        reference: (width,) embedding of a fixed picture at the time of the fit. Another embedding of this picture
            means that ONNX Runtime computes something else on this machine. Zeros before the fit.
    """

    detector, paper_name, fitted = "ojha", "Ojha", True
    architecture = ("encoder", "width", "tokens", "classifier", "stored")

    reference: Tensor

    def __init__(
        self,
        encoder: str | None = None,
        width: int | None = None,
        tokens: tuple[str, ...] = (),
        classifier: str = "linear",
        stored: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        if not isinstance(tokens, tuple) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"tokens must be strings, got {tokens!r}")
        if tokens and (encoder is None or width is None):
            raise ValueError("tokens need the encoder and the width that they belong to")
        if classifier not in CLASSIFIERS:
            raise ValueError(f"classifier must be {' or '.join(CLASSIFIERS)}, got {classifier!r}")
        inside = classifier == "linear"
        found = encoders.default(inside) if encoder is None or width is None else (encoder, tokens, width)
        self.encoder, self.tokens, self.width = found
        self.classifier = classifier
        self.fc: nn.Linear | NearestNeighbour
        if classifier == "nearest":
            self.fc = NearestNeighbour(self.width, stored)
        elif stored != (0, 0):
            raise ValueError(f"the linear classifier stores no embeddings, got {stored!r}")
        else:
            self.fc = nn.Linear(self.width, 1).requires_grad_(False)
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
        self.register_buffer("reference", torch.zeros(self.width))

    @property
    def stored(self) -> tuple[int, int]:
        """How many embeddings the classifier holds, real and generated."""
        return self.fc.stored if isinstance(self.fc, NearestNeighbour) else (0, 0)

    def check_ready(self) -> None:
        """Raise InputError if the encoder is missing, is another one, or computes other embeddings here."""
        width = encoders.load(self.encoder, self.tokens).width
        if width != self.width:
            raise InputError(
                f"the encoder gives embeddings of {width} values, but the detector was fitted to {self.width}"
            )
        expected = self.reference.cpu().float()
        if not expected.any():
            return
        cosine = float(F.cosine_similarity(self.features(_picture())[0].cpu().float(), expected, dim=0))
        if not cosine >= LEAST_COSINE:
            raise InputError(
                f"ONNX Runtime gives other embeddings here than where the detector {self.detector} was fitted (cosine "
                f"{cosine:.2f}, at least {LEAST_COSINE} is needed): use another version of onnxruntime"
            )

    @property
    def side(self) -> int:
        """Height and width of the images that the encoder takes; others are resized. Raises InputError without it."""
        return encoders.load(self.encoder, self.tokens).side

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, width) embeddings."""
        encoder = encoders.load(self.encoder, self.tokens)
        with torch.autocast(images.device.type, enabled=False):
            pixels = self.unit_pixels(images)
            if pixels.shape[2:] != (encoder.side, encoder.side):
                size = (encoder.side, encoder.side)
                pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
            mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (encoders.MEAN, encoders.STD))
            normalised = ((pixels - mean) / std).float().cpu().numpy()
        return torch.from_numpy(encoder.embed(normalised)).to(images.device, self.pixel_mean.dtype)

    def fit(self, features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Set the classifier from (N, width) features and (N,) labels (1: generated). Both classes must occur.

        ``weights``: (N,) of the images, for the linear classifier. Default: all equal.
        """
        if isinstance(self.fc, NearestNeighbour):
            self.fc.store(features, labels)
        else:
            weight, bias = _logistic_regression(features, labels, weights)
            self.fc.weight.copy_(torch.from_numpy(weight)[None])
            self.fc.bias.copy_(torch.from_numpy(bias))
        self.reference.copy_(self.features(_picture())[0])

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.fc(self.features(images))


def _logistic_regression(
    features: np.ndarray, labels: np.ndarray, sample_weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights, (width,), and the bias, (1,), of a penalised logistic regression."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and scoring does without
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features, sample_weight=sample_weight)
    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=10_000)
    regression.fit(scaler.transform(features), labels, sample_weight=sample_weight)
    weight = regression.coef_[0] / scaler.scale_
    return weight, regression.intercept_ - weight @ scaler.mean_


def _picture() -> Tensor:
    """A picture of waves, (1, 3, 224, 224) uint8, for ``reference``."""
    row, column = torch.arange(224)[:, None], torch.arange(224)
    waves = [(row * (2 + c) // 3 + column * (4 - c) // 3) % 256 for c in range(3)]
    return torch.stack(waves).to(torch.uint8)[None]
