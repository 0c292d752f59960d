"""Pre-training: contrast, matching, captioning in one pass of the image encoder (BLIP.md 2.1)."""

import torch
from torch import Tensor, nn

from blip import config
from blip.batch import Batch
from blip.models.blip import Blip
from blip.models.med import Memory
from blip.objectives import Losses, Objective, Position
from blip.objectives.contrast import Contrasted, MomentumContrast, queue_age
from blip.objectives.itm import Negatives, draw_negatives, itm_loss, negative_weights
from blip.objectives.lm import count_tokens, lm_loss

LABEL_SMOOTHING = 0.1
NEGATIVE_FLOOR = 1e-4


class PretrainObjective(Objective):
    """ITC + ITM + LM with equal weights: the module that is trained, checkpointed and wrapped.

    Args:
        model: A model with the parts `pretrain`; its temperature is set to the configured start.
        contrast: Momentum, queue, soft targets, negatives.
    """

    def __init__(self, model: Blip, contrast: config.Contrast) -> None:
        super().__init__()
        if model.parts != "pretrain":
            raise ValueError(
                f"pre-training needs the parts 'pretrain', the model has {model.parts!r}"
            )
        self.settings = contrast
        self.model = model
        nn.init.constant_(model.temperature, contrast.temperature)
        self.contrast = MomentumContrast(model, contrast, by_image=False)

    def forward(
        self, batch: Batch, position: Position, negatives: Negatives | None = None
    ) -> Losses:
        """Compute the losses of a step or a part of it, moving the queue on.

        Args:
            batch: B pairs.
            position: Where in the run.
            negatives: Instead of drawn ones, to repeat a recorded step.
        """
        model = self.model
        image_tokens = model.encode_image(batch.images)
        contrasted = self.contrast(model, batch, image_tokens, position)
        # The decoder shares the encoder's cross-attention: one projection serves matching and
        # captioning.
        memory = model.project_images(image_tokens)
        if negatives is None:
            negatives = self._draw(contrasted, batch, position)
        itm, accuracy = _match(model, batch, memory, negatives)
        hidden = model.decode(batch.token_ids[:, :-1], memory)
        lm = lm_loss(hidden, batch.token_ids, batch.attention_mask, model.predict, LABEL_SMOOTHING)
        metrics = {"itm": itm.detach(), "lm": lm.detach(), "itm_accuracy": accuracy}
        return Losses(contrasted.loss + itm + lm, contrasted.metrics | metrics, lm)

    def begin_step(self) -> None:
        """Clamp the temperature and move the twin."""
        self.contrast.begin_step(self.model)

    def count_tokens(self, batch: Batch) -> Tensor:
        """Count the tokens that the decoder learns."""
        return count_tokens(batch.attention_mask)

    def gauges(self, step: int, batch_size: int) -> dict[str, float]:
        """Tell how old the queue is."""
        return queue_age(step, batch_size, self.settings.queue_size)

    @torch.no_grad()
    def _draw(self, contrasted: Contrasted, batch: Batch, position: Position) -> Negatives:
        """Draw negatives inside the process, by similarity with the twin's features of the batch.

        The reference rules out only the pair itself, so that another caption of the same image may
        be called wrong; here no pair of the same image is a negative.
        """
        same = batch.image_ids[:, None] == batch.image_ids[None, :]
        uniform = position.step < self.settings.uniform_negatives
        image_weights, text_weights = (
            negative_weights(logits[:, : len(batch)], same, NEGATIVE_FLOOR, uniform)
            for logits in (contrasted.text_logits, contrasted.image_logits)
        )
        return draw_negatives(image_weights, text_weights)


def _match(
    model: Blip, batch: Batch, memory: Memory, negatives: Negatives
) -> tuple[Tensor, Tensor]:
    """Give ITM loss and accuracy of own pairs, texts with wrong images, images with wrong texts."""
    own = torch.arange(len(batch), device=batch.images.device)
    texts = torch.cat([own, own, negatives.texts.clamp(min=0)])
    images = torch.cat([own, negatives.images.clamp(min=0), own])
    logits = model.match(batch.token_ids[texts], batch.attention_mask[texts], memory, images)
    return itm_loss(logits, negatives)
