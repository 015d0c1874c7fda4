"""Fakes made from photographs: up-sampling decoders trained on the photographs themselves, and packaged generators.

For a training loop, on any device and without files::

    simulator = simulation.fit_simulator(crops)              # or simulation.load(path)
    real, fake = simulator.pair_batch(crops, generator)      # both classes with the same history
    fake = simulator.simulate_batch(crops, generator)        # or the generated class only
"""

from npr_model.simulation.autoencoders import KINDS, Autoencoder
from npr_model.simulation.simulator import Simulator, fit_simulator, load, save

__all__ = ["KINDS", "Autoencoder", "Simulator", "fit_simulator", "load", "save"]
