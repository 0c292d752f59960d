"""Matrix products with weights: on CPUs by oneDNN, in float32.

PyTorch gives them to MKL, which on processors of other makers than its own stops at 256-bit
instructions; oneDNN asks the processor what it can do. Where that is 512 bits, a product takes half
the time. The values are the same to rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

SMALLEST = 2**20  # multiplications; of fewer, what is gained goes into calling it


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map (..., I) by an (O, I) weight and an (O,) bias to (..., O)."""
    if not _for_onednn(x, weight):
        return functional.linear(x, weight, bias)
    wanted = (t is not None and t.requires_grad for t in (x, weight, bias))
    if torch.is_grad_enabled() and any(wanted):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return _product(x, weight, bias)


def batched_linear(x: Tensor, weights: Tensor) -> Tensor:
    """Map (B, M, I), each by its own of (B, O, I) weights, to (B, M, O)."""
    if not _for_onednn(x, weights):
        return x @ weights.transpose(1, 2)
    return torch.stack([linear(*pair) for pair in zip(x, weights, strict=True)])


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST
        and torch._C._has_mkldnn
        and torch._C.has_mkl  # without it PyTorch's choice is another one
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give x W' + b. The operator is the one that PyTorch's own compiler emits for this."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The same with its gradient, for which the operator has none."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


def _flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * x.numel() * weight[0]


def countable() -> dict[Any, Any]:
    """Give what `torch.utils.flop_counter.FlopCounterMode` needs to count these products."""
    return {torch.ops.mkldnn._linear_pointwise: _flops}
