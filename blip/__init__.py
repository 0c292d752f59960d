"""BLIP as an experiment platform: data, pre-training, CapFilt, fine-tuning, evaluation, lineage."""

from blip.compat import declare_torchvision_operators

__version__ = "0.1.0"

declare_torchvision_operators()
