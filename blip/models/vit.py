"""The image encoder: a pre-norm vision transformer whose tokens are all output (BLIP.md 1.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from blip import config
from blip.models.attention import SelfAttention
from blip.models.linear import Linear

NORM_EPS = 1e-6
MLP_RATIO = 4


class VisionTransformer(nn.Module):
    """Turn images into a CLS token and one token per patch.

    Args:
        vision: Sizes.
        image_size: Side of the square images, in pixels; a multiple of the patch size.
    """

    def __init__(self, vision: config.Vision, image_size: int) -> None:
        super().__init__()
        if image_size % vision.patch_size:
            raise ValueError(
                f"image size {image_size} is not a multiple of the patch size {vision.patch_size}"
            )
        self.image_size = image_size
        self.checkpoint_layers = vision.checkpoint_layers
        num_patches = (image_size // vision.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(
            3, vision.width, kernel_size=vision.patch_size, stride=vision.patch_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, vision.width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + num_patches, vision.width))
        # The rate rises linearly from 0 in the first block to its value in the last.
        last = max(vision.num_layers - 1, 1)
        self.blocks = nn.ModuleList(
            VisionBlock(vision.width, vision.num_heads, vision.drop_path * layer / last)
            for layer in range(vision.num_layers)
        )
        self.norm = nn.LayerNorm(vision.width, eps=NORM_EPS)

    def initialise(self, std: float) -> None:
        """Draw weights: truncated normal, biases 0; the patch projection keeps torch's default."""
        nn.init.trunc_normal_(self.cls_token, std=std)
        nn.init.trunc_normal_(self.position_embedding, std=std)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, pooled: bool = False) -> Tensor:
        """Encode.

        Args:
            images: (B, 3, S, S) float, normalised.
            pooled: Compute the last block for the CLS token alone.

        Returns:
            (B, N, D) after the final norm, CLS first; (B, 1, D) if `pooled`.

        Raises:
            ValueError: The images are not of the size the model was built for.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height} x {width} pixels for a model of side {self.image_size}"
            )
        tokens = self.embed(images)
        first_checkpointed = len(self.blocks) - self.checkpoint_layers
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            only_first = pooled and layer == last
            if self.training and layer >= first_checkpointed and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, only_first, use_reentrant=False)
            else:
                tokens = block(tokens, only_first)
        return self.norm(tokens)

    def embed(self, images: Tensor) -> Tensor:
        """Give the (B, N, D) input of the first block: patches, CLS in front, positions added."""
        patches = (
            self.patch_embedding(images).flatten(2).transpose(1, 2)
        )  # (B, N - 1, D), row by row
        cls = self.cls_token.expand(len(images), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding


class VisionBlock(nn.Module):
    """A pre-norm transformer block with stochastic depth on both residual branches."""

    def __init__(self, width: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = SelfAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_up = Linear(width, MLP_RATIO * width)
        self.mlp_down = Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Tensor, pooled: bool = False) -> Tensor:
        """Map (B, N, D) to (B, N, D), or to (B, 1, D) of the first token if `pooled`."""
        attended = self.attention(self.attention_norm(tokens), pooled=pooled)
        tokens = (tokens[:, :1] if pooled else tokens) + self._drop_path(attended)
        expanded = self.mlp_down(functional.gelu(self.mlp_up(self.mlp_norm(tokens))))
        return tokens + self._drop_path(expanded)

    def _drop_path(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(keep)
        return branch * (kept / keep)


def resize_position_embedding(embedding: Tensor, num_tokens: int) -> Tensor:
    """Resample a position embedding to another image size: bicubic on the grid, the CLS row kept.

    Args:
        embedding: (1, 1 + n * n, D).
        num_tokens: 1 + m * m, the tokens of the new size.

    Returns:
        (1, num_tokens, D).
    """
    if embedding.shape[1] == num_tokens:
        return embedding
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(num_tokens - 1)
    grid = embedding[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
