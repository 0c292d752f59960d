"""Cures for what dependencies get wrong between themselves; nothing here is imported by name elsewhere."""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _TorchvisionOperators(importlib.abc.MetaPathFinder):
    """Declares two operator schemas just before torchvision is first imported beside a CPU build of torch.

    PyPI's torchvision wheel links against CUDA; beside a CPU torch its extension does not load, and its import then
    fails because `torchvision::nms` and `torchvision::qnms` are unknown (pytorch/vision issues 9085, 9077). timm and
    transformers import torchvision, so they would fail too.
    """

    library: object = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
                for operator in ("nms", "qnms"):
                    library.define(
                        f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )
                _TorchvisionOperators.library = library  # the schemas live as long as this object
        return None


def declare_torchvision_operators() -> None:
    """Arrange that torchvision can be imported on this machine; costs nothing until it is."""
    if "torchvision" not in sys.modules and not any(
        isinstance(finder, _TorchvisionOperators) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _TorchvisionOperators())
