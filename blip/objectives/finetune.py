"""Fine-tuning for each task: captioning, retrieval (CapFilt's filter), VQA, NLVR2 (BLIP.md 5)."""

import torch
from torch import Tensor
from torch.nn import functional

from blip import config, distributed
from blip.batch import Batch, QuestionBatch, StatementBatch
from blip.models.blip import Blip, Parts
from blip.objectives import Losses, Objective, Position
from blip.objectives.contrast import Contrasted, MomentumContrast, queue_age
from blip.objectives.itm import Negatives, draw_negatives, itm_loss, negative_weights
from blip.objectives.lm import count_tokens, lm_loss, text_losses


class CaptioningObjective(Objective):
    """LM on captions that begin with a prompt (BLIP.md 5.2).

    Args:
        model: A model with a text decoder.
        label_smoothing: Weight of the uniform distribution over the vocabulary.
        prompt_length: Tokens of the prompt, the first token of the text included; they are given,
            not learned.
    """

    def __init__(self, model: Blip, label_smoothing: float, prompt_length: int) -> None:
        super().__init__()
        _check_parts(model, "captioning", "pretrain")
        self.model = model
        self.label_smoothing = label_smoothing
        self.prompt_length = prompt_length

    def forward(self, batch: Batch, position: Position) -> Losses:
        """Compute the loss of a step; the texts of the batch begin with the prompt."""
        memory = self.model.project_images(self.model.encode_image(batch.images))
        hidden = self.model.decode(batch.token_ids[:, :-1], memory)
        loss = lm_loss(
            hidden,
            batch.token_ids,
            batch.attention_mask,
            self.model.predict,
            self.label_smoothing,
            self.prompt_length,
        )
        return Losses(loss, {"lm": loss.detach()}, loss)

    def count_tokens(self, batch: Batch) -> Tensor:
        """Count the tokens that are learned."""
        return count_tokens(batch.attention_mask, self.prompt_length)


class VqaObjective(Objective):
    """LM on the answers that people gave, weighted by how many gave each (BLIP.md 5.3).

    Args:
        model: A model with the parts `vqa`.
        label_smoothing: Weight of the uniform distribution over the vocabulary.
    """

    def __init__(self, model: Blip, label_smoothing: float) -> None:
        super().__init__()
        _check_parts(model, "vqa")
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: QuestionBatch, position: Position) -> Losses:
        """Compute the loss of a step: the sum over answers, over the number of questions."""
        model = self.model
        images = model.project_images(model.encode_image(batch.images))
        states = model.encode_pairs(batch.question_ids, batch.question_mask, images)
        questions = model.project_questions(states, batch.question_mask)
        losses = text_losses(
            model.decode(batch.answer_ids[:, :-1], questions, batch.questions),
            batch.answer_ids,
            batch.answer_mask,
            model.predict,
            self.label_smoothing,
        )
        loss = (batch.weights * losses).sum() / len(batch)
        return Losses(loss, {"lm": loss.detach()})


class NlvrObjective(Objective):
    """Is a statement about two images true? (BLIP.md 5.4).

    Args:
        model: A model with the parts `nlvr`.
    """

    def __init__(self, model: Blip) -> None:
        super().__init__()
        _check_parts(model, "nlvr")
        self.model = model

    def forward(self, batch: StatementBatch, position: Position) -> Losses:
        """Compute the cross-entropy of a step, and the share of right verdicts."""
        images = self.model.project_images(self.model.encode_images(batch.images))
        logits = self.model.classify(batch.token_ids, batch.attention_mask, images)
        loss = functional.cross_entropy(logits, batch.labels)
        accuracy = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        return Losses(loss, {"accuracy": accuracy})


class RetrievalObjective(Objective):
    """ITC and ITM that know which pairs belong to one image (BLIP.md 5.1).

    Args:
        model: A model with the parts `retrieval`.
        contrast: Momentum, queue, soft targets, negatives.
        negative_all_rank: Draw negatives from the batches of all processes, not only the own.
    """

    def __init__(self, model: Blip, contrast: config.Contrast, negative_all_rank: bool) -> None:
        super().__init__()
        _check_parts(model, "retrieval")
        self.settings = contrast
        self.model = model
        self.negative_all_rank = negative_all_rank
        self.contrast = MomentumContrast(model, contrast, by_image=True)

    def forward(
        self, batch: Batch, position: Position, negatives: Negatives | None = None
    ) -> Losses:
        """Compute the losses of a step or a part of it, moving the queue on.

        Args:
            batch: B pairs.
            position: Where in the run.
            negatives: Instead of drawn ones, to repeat a recorded step; indices into the batches of
                all processes if `negative_all_rank`.
        """
        image_tokens = self.model.encode_image(batch.images)
        contrasted = self.contrast(self.model, batch, image_tokens, position)
        if negatives is None:
            negatives = self._draw(contrasted, batch, position)
        logits = self._match(batch, image_tokens, negatives)
        itm, accuracy = itm_loss(logits, negatives)
        metrics = {"itm": itm.detach(), "itm_accuracy": accuracy}
        return Losses(contrasted.loss + itm, contrasted.metrics | metrics)

    def begin_step(self) -> None:
        """Clamp the temperature and move the twin."""
        self.contrast.begin_step(self.model)

    def gauges(self, step: int, batch_size: int) -> dict[str, float]:
        """Tell how old the queue is."""
        return queue_age(step, batch_size, self.settings.queue_size)

    @torch.no_grad()
    def _draw(self, contrasted: Contrasted, batch: Batch, position: Position) -> Negatives:
        """Draw negatives by the similarity of the model's own features."""
        images, texts, ids = contrasted.image_embed, contrasted.text_embed, batch.image_ids
        all_images, all_texts, all_ids = (
            distributed.all_gather(images, texts, ids)
            if self.negative_all_rank
            else (images, texts, ids)
        )
        same = ids[:, None] == all_ids[None, :]
        uniform = position.step < self.settings.uniform_negatives
        with torch.autocast(ids.device.type, enabled=False):  # as what is contrasted
            image_logits = texts @ all_images.T / self.model.temperature
            text_logits = images @ all_texts.T / self.model.temperature
        return draw_negatives(
            negative_weights(image_logits, same, 0.0, uniform),
            negative_weights(text_logits, same, 0.0, uniform),
        )

    def _match(self, batch: Batch, image_tokens: Tensor, negatives: Negatives) -> Tensor:
        """Give (3B, 2) logits of own pairs, texts with wrong images, images with wrong texts."""
        own = torch.arange(len(batch), device=batch.images.device)
        wrong_images, wrong_texts = negatives.images.clamp(min=0), negatives.texts.clamp(min=0)
        token_ids, mask, first = batch.token_ids, batch.attention_mask, 0
        if self.negative_all_rank and distributed.world_size() > 1:
            everywhere = distributed.all_gather_with_grad(image_tokens)
            image_tokens = torch.cat([image_tokens, everywhere[wrong_images]])
            wrong_images = own + len(batch)
            token_ids = distributed.all_gather_padded(token_ids, self.model.special.pad)
            mask = distributed.all_gather_padded(mask, 0)
            first = distributed.rows_before(len(batch))
        texts = torch.cat([own + first, own + first, wrong_texts])
        images = torch.cat([own, wrong_images, own])
        memory = self.model.project_images(image_tokens)
        return self.model.match(token_ids[texts], mask[texts], memory, images)


def _check_parts(model: Blip, *parts: Parts) -> None:
    if model.parts not in parts:
        raise ValueError(f"needs a model with the parts {' or '.join(parts)}, got {model.parts}")
