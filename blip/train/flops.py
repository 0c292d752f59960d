"""Arithmetic: how much a piece of work needs, and how fast a device does it at best."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from blip.models.linear import countable, linear

Shape = tuple[int, ...]

SIDES = {"cuda": 8192, "cpu": 1024}  # of a product that is large for the device, yet soon done
REPEATS = 5


def flop_counter() -> FlopCounterMode:
    """Build a context that counts matrix products, convolutions and attention, both ways.

    What is recomputed in the backward pass counts again.
    """

    # Attention on the CPU is an operator of its own, which the counter does not know.
    def forward(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(
        grad: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object
    ) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]

    operators = torch.ops.aten
    attention = {
        operators._scaled_dot_product_flash_attention_for_cpu: forward,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping={**attention, **countable()})


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the best rate of a large matrix product here, in FLOP/s, by whichever library is faster.

    Measured rather than looked up: it is what the threads, clocks and precision of this process
    allow, on any device.
    """
    side = SIDES[device.type]
    own = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=own).to(dtype) for _ in "lr")

    def fastest(product: Callable[[Tensor, Tensor], Tensor]) -> float:
        seconds = []
        for _ in range(1 + REPEATS):  # the first one warms up
            _settle(device)
            began = time.perf_counter()
            product(left, right)
            _settle(device)
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    return 2 * side**3 / min(fastest(torch.matmul), fastest(linear))


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
