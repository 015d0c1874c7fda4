"""Post-training quantisation of the residual blocks to 8 bits: how far activations go, measured on images.

The first block is not quantised, as what it reads, the stem's output, has the longest tails: in 8 bits it costs more
accuracy than all the rest. Behind it every activation comes from a ReLU and is a whole number, up to 255 or
127, of its channel's own steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels.bottleneck import Steps, most_level
from npr_model.detectors.npr import NPRDetector, blocks, expected_steps
from npr_model.errors import InputError
from npr_model.imaging.decode import decode
from npr_model.imaging.views import View

LEVELS = 255  # steps are measured for so many; a processor may have fewer, longer ones
SHARE = 0.95  # of the images that a channel's largest value is not cut off in
HEADROOM = 1.5  # steps are longer by so much: fakes go further than photographs, and what is cut off costs ranks
LEAST = 1e-3  # of a layer's longest step: no channel's is shorter, or one that was silent would stay so
SIDE = 256
IMAGES = 64  # enough for the steps: with more they change less than the logits' rounding


@torch.no_grad()
def measure_steps(detector: NPRDetector, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """By how much one of 255 steps raises each channel, float32, from batches as the detector takes them.

    Of each channel the largest value in an image counts, and of those the SHARE-quantile over the images. Raises
    InputError where there are no images.
    """
    largest: dict[str, list[Tensor]] = {name: [] for name in expected_steps(detector)}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            largest[name].append(F.relu(output).amax((2, 3)).float())

        return module.register_forward_hook(note)

    places = {"first": "bn1", "second": "bn2", "out": ""}
    handles = []
    for name in largest:
        block, place = name.rsplit(".", 1)
        handles.append(watch(name, blocks(detector)[block].get_submodule(places[place])))
    was_training = detector.training
    try:
        detector.eval()
        for batch in batches:
            detector(batch)
    finally:
        detector.train(was_training)
        for handle in handles:
            handle.remove()
    if not all(largest.values()):
        raise InputError("there are no images to measure activations on")
    steps = {}
    for name, values in largest.items():
        step = torch.cat(values).quantile(SHARE, 0) / LEVELS
        steps[name] = step.clamp(min=max(LEAST * step.max().item(), torch.finfo(torch.float32).tiny)).cpu()
    return steps


def central_parts(paths: Sequence[Path], grid_size: int, on_image: Callable[[], object]) -> Iterator[Tensor]:
    """The middle of IMAGES of the images, evenly chosen, each a batch (1, 3, H, W) uint8 with sides up to SIDE."""
    view = View("crop", SIDE)
    for number in range(min(len(paths), IMAGES)):
        data = paths[number * len(paths) // min(len(paths), IMAGES)].read_bytes()
        pixels = view.apply(decode(data).pixels, grid_size)
        on_image()
        yield torch.from_numpy(pixels).permute(2, 0, 1)[None]


def processor_steps(detector: NPRDetector) -> dict[str, Tensor]:
    """Those that :func:`measure_steps` found, longer by HEADROOM, for as many levels as this processor has. Raises
    InputError where the detector has none."""
    if not detector.activation_steps:
        raise InputError("int8 needs a checkpoint with activation steps: npr calibrate measures them on photographs")
    return {name: step * (HEADROOM * LEVELS / most_level()) for name, step in detector.activation_steps.items()}


def block_steps(detector: NPRDetector) -> dict[str, Steps]:
    """Of all blocks but the first, for this processor. Raises InputError where the detector has none."""
    steps = processor_steps(detector)
    names = list(blocks(detector))
    return {
        name: Steps(steps[f"{before}.out"], steps[f"{name}.first"], steps[f"{name}.second"], steps.get(f"{name}.out"))
        for before, name in itertools.pairwise(names)
    }
