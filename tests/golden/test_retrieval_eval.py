"""Two-stage retrieval with the reference's weights: candidates and their scores."""

import numpy as np
import pytest
import torch

from blip.evaluate.retrieval import rerank
from blip.models.matching import Texts, embed_texts, match_texts


@pytest.mark.parametrize("k", [3, 6])
def test_scores_of_the_candidates(golden, tiny_model, k: int) -> None:
    reference = golden("retrieval_eval")
    model = tiny_model("retrieval", golden("retrieval_train_1rank").under("sd/"))
    texts = Texts(reference["in/input_ids"], reference["in/attention_mask"])
    with torch.inference_mode():
        tokens = model.encode_image(reference["in/pixel_values"])
        layers = model.project_images(tokens)
        image_embeds = model.embed_image(tokens)

    def judge(image: int):
        image_kv = [layer[image : image + 1] for layer in layers]

        def logits(wanted):
            rows = torch.from_numpy(wanted)
            return match_texts(model, texts, rows, image_kv, None, 5)[:, 1].numpy()

        return logits

    of_images, image_scores, of_texts, text_scores = rerank(
        image_embeds, embed_texts(model, texts, 4), k, [judge(image) for image in range(6)]
    )
    for found, scores, name in (
        (of_images, image_scores, f"k{k}/scores_i2t"),
        (of_texts, text_scores, f"k{k}/scores_t2i"),
    ):
        matrix = np.full(reference[name].shape, -100.0)
        np.put_along_axis(matrix, found.indices, scores, 1)
        # Measured 2.1e-6.
        np.testing.assert_allclose(matrix, reference[name].numpy(), atol=1e-5, rtol=0)
