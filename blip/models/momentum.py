"""The momentum twin and the queue of its features: candidates for contrast (BLIP.md 2.1)."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip import distributed
from blip.models.blip import Blip

NO_IMAGE = -100


class MomentumTwin(nn.Module):
    """A slowly following copy of the encoders and projections of a model, without gradient.

    Args:
        model: A model with the parts `pretrain` or `retrieval`.
        momentum: m in p_m <- m p_m + (1 - m) p.
    """

    def __init__(self, model: Blip, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.vision = copy.deepcopy(model.vision)
        self.text_encoder = copy.deepcopy(model.text_encoder)
        self.image_projection = copy.deepcopy(model.image_projection)
        self.text_projection = copy.deepcopy(model.text_projection)
        self.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Blip) -> None:
        """Move every parameter towards the model's; before use, once a step."""
        names = [name for name, _ in self.named_children()]
        followers, leaders = (
            [distributed.local(p) for n in names for p in module.get_submodule(n).parameters()]
            for module in (self, model)
        )
        torch._foreach_lerp_(followers, leaders, 1.0 - self.momentum)

    @torch.no_grad()
    def embed_image(self, images: Tensor) -> Tensor:
        """Give (B, E) unit vectors of (B, 3, S, S) images."""
        cls = self.vision(images, pooled=True)[:, 0]
        return functional.normalize(self.image_projection(cls), dim=-1)

    @torch.no_grad()
    def embed_text(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Give (B, E) unit vectors of (B, L) texts."""
        first = self.text_encoder(token_ids, mask, pooled=True)[:, 0]
        return functional.normalize(self.text_projection(first), dim=-1)


class FeatureQueue(nn.Module):
    """A ring of the last momentum features of all processes, with the ids of their images.

    It begins as unit Gaussian noise with the id `NO_IMAGE`. Any batch fits any ring: writing wraps
    around, and of a batch larger than the ring its end is kept.

    Args:
        embed_size: E.
        size: Q.
    """

    images: Tensor
    texts: Tensor
    image_ids: Tensor
    position: Tensor

    def __init__(self, embed_size: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", functional.normalize(torch.randn(size, embed_size), dim=-1))
        self.register_buffer("texts", functional.normalize(torch.randn(size, embed_size), dim=-1))
        self.register_buffer("image_ids", torch.full((size,), NO_IMAGE))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, image_ids: Tensor) -> None:
        """Write (B, E) features and (B,) image ids of all processes, by rank, over the oldest."""
        written = distributed.all_gather(images, texts, image_ids)
        count = len(written[0])
        # The position stays on the device: to read it would make the host wait.
        places = (self.position + torch.arange(count, device=self.position.device)) % self.size
        for ring, rows in zip((self.images, self.texts, self.image_ids), written, strict=True):
            ring.index_copy_(0, places[-self.size :], rows[-self.size :].to(ring.dtype))
        self.position.add_(count).remainder_(self.size)
