"""Two-stage retrieval of videos with the reference's weights (BLIP.md 5.6)."""

import numpy as np
import torch

from blip.evaluate.retrieval import rerank
from blip.models.matching import Texts, embed_texts, match_texts


@torch.inference_mode()
def test_scores_of_the_candidates(golden, tiny_model):
    reference = golden("video_retrieval_eval")
    model = tiny_model("retrieval", golden("retrieval_train_1rank").under("sd/"))
    texts = Texts(reference["in/input_ids"], reference["in/attention_mask"])
    frames = reference["in/video"]
    tokens = model.encode_images(frames)
    memory = model.project_images(tokens)

    def judge(video):
        def logits(wanted):
            rows = torch.from_numpy(wanted)
            one = memory.select(slice(video, video + 1))
            return match_texts(model, texts, rows, one, None, len(texts))[:, 1].numpy()

        return logits

    embeds = model.embed_image(tokens, num_frames=frames.shape[1])
    of_videos, video_scores, of_texts, text_scores = rerank(
        embeds,
        embed_texts(model, texts, len(texts)),
        reference.meta["k_test"],
        [judge(video) for video in range(len(frames))],
    )
    for found, scores, name in (
        (of_videos, video_scores, "out/scores_v2t"),
        (of_texts, text_scores, "out/scores_t2v"),
    ):
        matrix = np.full(reference[name].shape, -100.0)
        np.put_along_axis(matrix, found.indices, scores, 1)
        # measured: 2.3e-6
        np.testing.assert_allclose(matrix, reference[name].numpy(), atol=1e-5, rtol=0)
