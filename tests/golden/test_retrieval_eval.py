"""Two-stage retrieval with the reference's weights: candidates and their scores."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from blip.evaluate.retrieval import CUTS, ranks, rerank, statistics
from blip.models.matching import Texts, embed_texts, match_texts


def test_scores_of_the_candidates(golden, tiny_model) -> None:
    reference = golden("retrieval_eval")
    model = tiny_model("retrieval", golden("retrieval_train_1rank").under("sd/"))
    texts = Texts(reference["in/input_ids"], reference["in/attention_mask"])
    with torch.inference_mode():
        tokens = model.encode_image(reference["in/pixel_values"])
        memories = model.project_images(tokens)
        image_embeds = model.embed_image(tokens)

    def judge(image: int):
        memory = memories.select(slice(image, image + 1))

        def logits(wanted):
            rows = torch.from_numpy(wanted)
            return match_texts(model, texts, rows, memory, None, 5)[:, 1].numpy()

        return logits

    image_texts = {int(image): texts for image, texts in reference.meta["img2txt"].items()}
    owner = np.array([image for image, own in sorted(image_texts.items()) for _ in own])
    settings = {name.split("/")[0] for name in reference.tensors if name.startswith("k")}
    assert settings
    for setting in settings:
        found = rerank(
            image_embeds,
            embed_texts(model, texts, 4),
            int(setting.removeprefix("k")),
            [judge(image) for image in range(len(image_embeds))],
        )
        check_scores(found, reference, setting)
        check_metrics(found, owner, reference.meta[f"{setting}/metrics"])


def check_scores(found, reference, setting):
    of_images, image_scores, of_texts, text_scores = found
    for candidates, scores, name in (
        (of_images, image_scores, f"{setting}/scores_i2t"),
        (of_texts, text_scores, f"{setting}/scores_t2i"),
    ):
        matrix = np.full(reference[name].shape, -100.0)
        np.put_along_axis(matrix, candidates.indices, scores, 1)
        # Measured 2.1e-6.
        np.testing.assert_allclose(matrix, reference[name].numpy(), atol=1e-5, rtol=0)


def check_metrics(found, owner, metrics):
    of_images, image_scores, of_texts, text_scores = found
    targets, images = np.arange(len(owner)), range(owner.max() + 1)
    of_text = ranks(of_images.indices[owner], image_scores[owner], targets, len(owner))
    of_image = ranks(of_texts.indices, text_scores, owner, len(images))
    table = pa.table(
        {
            "tr_rank": [of_text[owner == image].min() for image in images],
            "ir_ranks": [of_image[owner == image].tolist() for image in images],
        }
    )
    once = np.ones((1, len(images)))
    ours = {name: float(value(once)[0]) for name, value in statistics(table).items()}
    theirs = {"txt_r_mean": "tr_mean", "img_r_mean": "ir_mean", "r_mean": "r_mean"}
    theirs |= {
        f"{a}_r{cut}": f"{b}_r{cut}" for a, b in (("txt", "tr"), ("img", "ir")) for cut in CUTS
    }
    assert {name: ours[theirs[name]] for name in metrics} == pytest.approx(metrics)
