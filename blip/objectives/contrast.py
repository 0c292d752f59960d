"""ITC with momentum twin, queue and soft targets, as pre-training and retrieval have it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blip import config, distributed
from blip.batch import Batch
from blip.models.blip import Blip
from blip.models.momentum import FeatureQueue, MomentumTwin
from blip.objectives import Position
from blip.objectives.itc import hard_targets, itc_loss, soft_targets

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


class Contrasted(NamedTuple):
    """The outcome of a contrast of B pairs.

    Attributes:
        loss: ITC, a scalar.
        image_embed: (B, E) unit vectors.
        text_embed: (B, E) unit vectors.
        image_logits: (B, B + Q) detached similarities of images with the twin's texts, over the
            temperature.
        text_logits: (B, B + Q) detached similarities of texts with the twin's images, over the
            temperature.
        metrics: Detached scalars.
    """

    loss: Tensor
    image_embed: Tensor
    text_embed: Tensor
    image_logits: Tensor
    text_logits: Tensor
    metrics: dict[str, Tensor]


class MomentumContrast(nn.Module):
    """Contrast a batch with the twin's features of it and of those before (BLIP.md 2.1, steps 1-6).

    Where a step has several batches, one after the other or in several processes, each is
    contrasted with itself and the queue alone, and joins the queue.

    Args:
        model: The model to follow.
        settings: Momentum, queue, soft targets.
        by_image: All pairs of one image are right (BLIP.md 5.1), in the batch and in the queue;
            else only the pair itself is.
    """

    def __init__(self, model: Blip, settings: config.Contrast, by_image: bool) -> None:
        super().__init__()
        self.settings = settings
        self.by_image = by_image
        self.twin = MomentumTwin(model, settings.momentum)
        self.queue = FeatureQueue(model.config.embed_size, settings.queue_size)

    @torch.no_grad()
    def begin_step(self, model: Blip) -> None:
        """Clamp the temperature and move the twin: once a step, before its forward passes."""
        distributed.local(model.temperature).clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        self.twin.update(model)

    def forward(
        self, model: Blip, batch: Batch, image_tokens: Tensor, position: Position
    ) -> Contrasted:
        """Contrast the (B, N, D) tokens, and enqueue the twin's features."""
        image_embed = model.embed_image(image_tokens)
        text_hidden = model.encode_text(batch.token_ids, batch.attention_mask, pooled=True)
        text_embed = model.embed_text(text_hidden)
        twin_image = self.twin.embed_image(batch.images)
        twin_text = self.twin.embed_text(batch.token_ids, batch.attention_mask)
        alpha = ramped_alpha(self.settings, position)

        # Cosines over a small temperature: too coarse in 16 bits.
        with torch.autocast(batch.images.device.type, enabled=False):
            images = torch.cat([twin_image.float(), self.queue.images])
            texts = torch.cat([twin_text.float(), self.queue.texts])
            image_cosines = image_embed.float() @ texts.T
            text_cosines = text_embed.float() @ images.T
            image_logits = image_cosines / model.temperature
            text_logits = text_cosines / model.temperature
            with torch.no_grad():
                hard = self._hard_targets(batch, image_cosines)
                twin_image_logits = twin_image.float() @ texts.T / model.temperature
                twin_text_logits = twin_text.float() @ images.T / model.temperature
                image_targets = soft_targets(twin_image_logits, hard, alpha)
                text_targets = soft_targets(twin_text_logits, hard, alpha)
            loss = itc_loss(image_logits, text_logits, image_targets, text_targets)
        self.queue.enqueue(twin_image, twin_text, batch.image_ids)

        positive, negative = _mean_cosines(image_cosines.detach())
        metrics = {
            "itc": loss.detach(),
            "similarity_positive": positive,
            "similarity_negative": negative,
            "alpha": torch.full((), alpha, device=loss.device),
            "temperature": model.temperature.detach().clone(),
        }
        return Contrasted(
            loss, image_embed, text_embed, image_logits.detach(), text_logits.detach(), metrics
        )

    @torch.no_grad()
    def begin(self, momentum: Mapping[str, Tensor]) -> None:
        """Go on from the twin and the features of another run, as fine-tuning does (BLIP.md 5.1).

        The features are taken if the queue is as long. Whose they were is forgotten: the numbers of
        images mean something within a run only.

        Args:
            momentum: Its state, `twin.*` and `queue.*`.
        """
        twin = {k.removeprefix("twin."): t for k, t in momentum.items() if k.startswith("twin.")}
        self.twin.load_state_dict(twin)
        if len(momentum["queue.images"]) == self.queue.size:
            self.queue.images.copy_(momentum["queue.images"])
            self.queue.texts.copy_(momentum["queue.texts"])

    def _hard_targets(self, batch: Batch, logits: Tensor) -> Tensor:
        if self.by_image:
            return hard_targets(batch.image_ids, torch.cat([batch.image_ids, self.queue.image_ids]))
        return torch.eye(*logits.shape, device=logits.device)


def ramped_alpha(settings: config.Contrast, position: Position) -> float:
    """Give the weight of the soft targets at a step: from 0 over `alpha_ramp_epochs`, linearly."""
    ramp_steps = settings.alpha_ramp_epochs * position.steps_per_epoch
    return settings.alpha * (min(1.0, position.step / ramp_steps) if ramp_steps else 1.0)


def queue_age(step: int, batch_size: int, size: int) -> dict[str, float]:
    """Tell how old the queue's features are when a step begins.

    A feature's age is the number of steps since it was computed: the newest are 1 step old. What the
    queue held before the run (noise, another run's features) has no age and only lowers
    `queue_filled`.

    Args:
        step: Steps done before this one.
        batch_size: Pairs of a step, of all processes: so many features join the queue.
        size: Places of the queue.

    Returns:
        `queue_filled`, the share of places with features of this run; `queue_age_mean` and
        `queue_age_max` of these in steps, once there are any.
    """
    filled = min(size, step * batch_size)
    if not filled:
        return {"queue_filled": 0.0}
    whole, rest = divmod(filled, batch_size)
    total = batch_size * whole * (whole + 1) // 2 + rest * (whole + 1)
    oldest = whole + (rest > 0)
    return {
        "queue_filled": filled / size,
        "queue_age_mean": total / filled,
        "queue_age_max": float(oldest),
    }


def _mean_cosines(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Give the mean of the diagonal and of all the rest of (B, C)."""
    positive = cosines.diagonal()
    rest = cosines.numel() - len(positive)
    return positive.mean(), (cosines.sum() - positive.sum()) / max(rest, 1)
