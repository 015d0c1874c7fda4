"""Post-training quantisation of the residual blocks to 8 bits, with scales measured on images.

A first block that reads the stem's output stays in floating point: it has the longest tails, and quantising it costs
more accuracy than all other blocks together. Averages of it, which the size "fast" takes, have shorter ones. All later
activations come from a ReLU; they are stored as integers up to 255 or 127, with one scale per channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels.trunk.cpu_bottleneck import Steps, max_quantised_value
from npr_model.detectors.npr import NPRDetector, blocks, expected_steps
from npr_model.errors import InputError
from npr_model.imaging.decode import decode
from npr_model.imaging.views import View

LEVELS = 255  # levels that scales are measured for; a processor may have fewer, larger ones
SHARE = 0.95  # of the images in which a channel's largest value is not clipped
HEADROOM = 1.5  # factor on the scales: fakes have larger values than photographs, and clipping changes the ranking
LEAST = 1e-3  # smallest scale, as a share of the layer's largest, so that silent channels are not cut off for ever
SIDE = 256
IMAGES = 64  # enough: more images change the scales less than the rounding of the logits


@torch.no_grad()
def measure_steps(detector: NPRDetector, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Measure per-channel quantisation scales (float32, for 255 levels).

    Each scale comes from the channel's largest value in each image, as the SHARE-quantile over the images.

    Args:
        detector: The network.
        batches: Images as the detector takes them.

    Raises:
        InputError: There are no images.
    """
    largest: dict[str, list[Tensor]] = {name: [] for name in expected_steps(detector)}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            largest[name].append(F.relu(output).amax((2, 3)).float())

        return module.register_forward_hook(note)

    places = {"first": "bn1", "second": "bn2", "out": ""}
    handles = []
    for name in largest:
        module, place = name.rsplit(".", 1)
        handles.append(watch(name, detector.get_submodule(module).get_submodule(places[place])))
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
    """Yield the centres of up to IMAGES evenly chosen images, each a batch (1, 3, H, W) uint8 with sides up to SIDE."""
    view = View("crop", SIDE)
    for number in range(min(len(paths), IMAGES)):
        data = paths[number * len(paths) // min(len(paths), IMAGES)].read_bytes()
        pixels = view.apply(decode(data).pixels, grid_size)
        on_image()
        yield torch.from_numpy(pixels).permute(2, 0, 1)[None]


def processor_steps(detector: NPRDetector) -> dict[str, Tensor]:
    """Return the measured scales, enlarged by HEADROOM, for the number of levels that this processor has.

    Raises InputError if the detector has none.
    """
    if not detector.activation_steps:
        raise InputError("int8 needs a checkpoint with activation steps: run npr calibrate on photographs first")
    factor = HEADROOM * LEVELS / max_quantised_value()
    return {name: step * factor for name, step in detector.activation_steps.items()}


def block_steps(detector: NPRDetector) -> dict[str, Steps]:
    """Return the scales of the blocks that are quantised, for this processor. Raises InputError if there are none."""
    steps = processor_steps(detector)
    names = [*["pool"] * ("pool.out" in steps), *blocks(detector)]
    return {
        name: Steps(steps[f"{before}.out"], steps[f"{name}.first"], steps[f"{name}.second"], steps.get(f"{name}.out"))
        for before, name in itertools.pairwise(names)
    }
