"""CNNDetection: Wang et al., "CNN-generated images are surprisingly easy to spot... for now" (CVPR 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.layers.resnet import resnet_stage


class CNNDetection(PixelNetwork):
    """A whole ResNet-50 on pixels: 23,510,081 parameters, with the state-dict names of torchvision and the authors.

    The authors start from ImageNet weights: see ``start`` of :class:`npr_model.training.config.TrainConfig`. Theirs are
    these fields of it: ``blur_sigma`` (0, 3), ``jpeg_quality`` (30, 100), ``blur_probability`` and ``jpeg_probability``
    0.5 or 0.1, ``crop_size`` 224 and ``learning_rate`` 1e-4. They divide the learning rate by 10 whenever the accuracy
    on validation images stops growing, where ``decay`` follows a fixed plan, and encode JPEG with OpenCV or Pillow, at
    random.
    """

    detector, paper_name = "cnndetection", "CNNDetection"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = resnet_stage(64, 64, blocks=3, stride=1)
        self.layer2 = resnet_stage(256, 128, blocks=4, stride=2)
        self.layer3 = resnet_stage(512, 256, blocks=6, stride=2)
        self.layer4 = resnet_stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalised(images)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))
