"""EfficientNet-B4 (Tan and Le, ICML 2019) with one output, which several detectors use."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from npr_model.detectors.layers.mirroring import mirrored
from npr_model.errors import InputError

# Of transformers.EfficientNetConfig. Its default momentum of batch norm, 0.99, is that of Keras, which weighs the old
# average with it; torch weighs the new value.
B4: dict[str, Any] = {
    "width_coefficient": 1.4,
    "depth_coefficient": 1.8,
    "hidden_dim": 1792,
    "batch_norm_momentum": 0.1,
}
_DROPOUT = 0.4
_STRIDE = 32  # side of the image behind one position of the last map


class EfficientNet(nn.Module):
    """EfficientNet-B4 of the package transformers, and a linear layer: 17,550,409 parameters.

    (N, 3, H, W) images, normalised by ImageNet's mean and standard deviation -> (N, 1) logits. Sides shorter than 32
    are extended by mirroring. Weights are random, drawn as torchvision draws them: with those of transformers, batch
    norm scales by about 0. transformers drops single values of a residual branch where the paper drops whole branches.

    Raises:
        InputError: transformers is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from transformers import EfficientNetConfig, EfficientNetModel  # slow to import
        except ImportError as error:
            raise InputError("EfficientNet-B4 needs transformers: pip install 'npr-kernels[detectors]'") from error
        self.body = EfficientNetModel(EfficientNetConfig(**B4))
        self.dropout = nn.Dropout(_DROPOUT)
        self.fc = nn.Linear(B4["hidden_dim"], 1)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(mirrored(images, _STRIDE)).last_hidden_state
        return self.fc(self.dropout(features.mean((2, 3))))
