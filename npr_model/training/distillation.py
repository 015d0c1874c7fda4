"""Training a network to agree with a larger one (Hinton, Vinyals and Dean, 2015; Romero et al., ICLR 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels.trunk import cpu_bottleneck
from npr_model import checkpoints
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.inference.fused import InferenceDetector


def load_teacher(name_or_path: str) -> NPRDetector:
    """Return the network of a checkpoint to learn from. Raises InputError if it is no NPR detector."""
    teacher = checkpoints.load(name_or_path).model
    if not isinstance(teacher, NPRDetector):
        raise InputError(f"teacher {name_or_path} is a {teacher.detector} detector: only NPR detectors can teach")
    return teacher


class Distillation(nn.Module):
    """The loss of a student against its teacher, on the same crops.

    It is the cross entropy of the student's probability against the teacher's, plus the mean squared error of a linear
    map of the student's features, (N, S), against the teacher's features, (N, T), standardised by their running means
    and variances. The map is trained with the student and then forgotten.

    Args:
        student: The network to train. It gets the teacher's stem.
        teacher: The network to learn from, on the student's device.
    """

    def __init__(self, student: NPRDetector, teacher: NPRDetector) -> None:
        super().__init__()
        student.conv1.load_state_dict(teacher.conv1.state_dict())
        student.bn1.load_state_dict(teacher.bn1.state_dict())
        # In a list, as its weights are no state of the training.
        self.frozen = [InferenceDetector(teacher, dtype=_quickest(teacher))]
        self.head = [teacher.fc1]
        self.adapt = nn.Linear(student.fc1.in_features, teacher.fc1.in_features)
        self.standardise = nn.BatchNorm1d(teacher.fc1.in_features, affine=False)

    def forward(self, pixels: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Return the loss, a scalar, for crops (N, 3, H, W) and the student's features and logits (N, 1) of them."""
        with torch.no_grad():
            wanted = (
                self.frozen[0].features(pixels).clone()
            )  # no inference tensor, which could not be saved for gradients
            probability = self.head[0](wanted).sigmoid()
        error = F.mse_loss(self.adapt(features).float(), self.standardise(wanted))
        return F.binary_cross_entropy_with_logits(logits, probability) + error


def _quickest(teacher: NPRDetector) -> torch.dtype | None:
    """Return int8 where the processor and the checkpoint have it, else None: whatever is the default."""
    device = teacher.conv1.weight.device
    quantised = device.type == "cpu" and teacher.activation_steps
    return torch.int8 if quantised and cpu_bottleneck.unsupported_reason(torch.int8, 64) is None else None
