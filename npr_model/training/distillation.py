"""Training a network to agree with a larger one (Hinton, Vinyals and Dean, 2015; Romero et al., ICLR 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels.trunk import cpu_bottleneck
from npr_model import checkpoints
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.inference.fused import InferenceDetector
from npr_model.training.distributed import Process

SHARED = ("grid_size", "anchor", "scale", "pixel_std")  # of both stems
EPSILON = 1e-5  # added to variances


def load_teacher(name_or_path: str, student: NPRDetector) -> LoadedCheckpoint:
    """Return the checkpoint to learn from. Raises InputError if it is no NPR detector with the student's NPR."""
    loaded = checkpoints.load(name_or_path)
    if not isinstance(loaded.model, NPRDetector):
        raise InputError(f"teacher {name_or_path} is of the detector {loaded.model.detector}: only npr can teach")
    for name in SHARED:
        if (theirs := getattr(loaded.model, name)) != (ours := getattr(student, name)):
            raise InputError(f"teacher {name_or_path} has {name} {theirs}, not {ours}: use another teacher")
    return loaded


class Distillation(nn.Module):
    """The loss of a student against its teacher, on the same crops.

    It is the cross entropy of the student's probability against the teacher's, plus the mean squared error of a linear
    map of the student's features, (N, S), against the teacher's features, (N, T), standardised over the crops of all
    processes. The map is trained with the student and then forgotten. The teacher runs in int8 where the processor and
    its checkpoint have it, else in the default dtype of scoring.

    Args:
        student: The network to train. It gets the teacher's stem.
        teacher: The network to learn from, on the student's device.
        process: This process.
    """

    def __init__(self, student: NPRDetector, teacher: NPRDetector, process: Process) -> None:
        super().__init__()
        student.conv1.load_state_dict(teacher.conv1.state_dict())
        student.bn1.load_state_dict(teacher.bn1.state_dict())
        # In a list, as its weights are no state of the training.
        self.teacher = [InferenceDetector(teacher, dtype=_quickest(teacher))]
        self.process = process
        self.adapt = nn.Linear(student.fc1.in_features, teacher.fc1.in_features)

    def forward(self, pixels: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Return the loss, a scalar, for crops (N, 3, H, W) and the student's features and logits (N, 1) of them."""
        with torch.no_grad():
            # A copy, as autograd cannot save tensors of inference mode.
            wanted = self.teacher[0].features(pixels).clone()
            probability = self.teacher[0].head(wanted).sigmoid().to(logits.dtype)
            standardised = self._standardised(wanted)
        adapted = self.adapt(features).to(torch.promote_types(features.dtype, torch.float32))
        return F.binary_cross_entropy_with_logits(logits, probability) + F.mse_loss(adapted, standardised.to(adapted))

    def _standardised(self, features: Tensor) -> Tensor:
        """Return (N, T) with mean 0 and variance 1 of each feature over the crops of all processes."""
        double = features.double()
        sums = torch.stack([torch.ones_like(double), double, double.square()]).sum(1)
        self.process.sum(sums)
        count, total, squares = sums
        mean = total / count
        return (double - mean) / (squares / count - mean.square() + EPSILON).sqrt()


def _quickest(teacher: NPRDetector) -> torch.dtype | None:
    """Return int8 where the processor and the checkpoint have it, else None: whatever is the default."""
    device = teacher.conv1.weight.device
    quantised = device.type == "cpu" and teacher.activation_steps
    return torch.int8 if quantised and cpu_bottleneck.unsupported_reason(torch.int8, 64) is None else None
