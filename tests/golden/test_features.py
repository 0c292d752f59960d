"""Text, multimodal and matching outputs against the reference's, to rounding."""

import pytest
import torch

TOLERANCE = 1e-5  # measured: see each test


@pytest.fixture
def features(golden, tiny_model):
    reference = golden("base_features")
    return reference, tiny_model("features", reference.under("sd/"))


def hidden_states(model, run):
    """Give the output of the embeddings and of every layer of the text encoder during `run`."""
    states = []
    stages = [model.text_encoder.embeddings, *model.text_encoder.layers]
    hooks = [s.register_forward_hook(lambda *call: states.append(call[-1])) for s in stages]
    run()
    for hook in hooks:
        hook.remove()
    return states


def test_text_states_of_every_layer(features):
    reference, model = features
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    states = hidden_states(model, lambda: model.encode_text(ids, mask))
    assert len(states) == len(reference.under("out/text_hidden"))
    for layer, state in enumerate(states):  # measured: 1.8e-6
        expected = reference[f"out/text_hidden{layer}"]
        torch.testing.assert_close(state, expected, atol=TOLERANCE, rtol=0)


def test_multimodal_states_of_every_layer(features):
    reference, model = features
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    image_tokens = model.encode_image(reference["in/pixel_values"])
    torch.testing.assert_close(image_tokens, reference["out/image_embeds"], atol=TOLERANCE, rtol=0)
    memory = model.project_images(image_tokens)
    states = hidden_states(model, lambda: model.encode_pairs(ids, mask, memory))
    assert len(states) == len(reference.under("out/multimodal_hidden"))
    for layer, state in enumerate(states):  # measured: 2e-6
        expected = reference[f"out/multimodal_hidden{layer}"]
        torch.testing.assert_close(state, expected, atol=TOLERANCE, rtol=0)


def test_one_text_without_padding(features):
    """What the reference's feature extraction gives, which takes one text at a time."""
    reference, model = features
    length = reference["out/official_forward_text_b1"].shape[1]
    ids, mask = (reference[f"in/{name}"][:1, :length] for name in ("input_ids", "attention_mask"))
    assert mask.all()
    memory = model.project_images(model.encode_image(reference["in/pixel_values"][:1]))
    for ours, name in (  # measured: 1.7e-6
        (model.encode_text(ids, mask), "text"),
        (model.encode_pairs(ids, mask, memory), "multimodal"),
    ):
        expected = reference[f"out/official_forward_{name}_b1"]
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_matching_and_cosine(golden, tiny_model):
    reference = golden("itm_itc")
    model = tiny_model("matching", reference.under("sd/"))
    ids, mask = reference["in/input_ids"], reference["in/attention_mask"]
    image_tokens = model.encode_image(reference["in/pixel_values"])
    images, texts = model.embed_image(image_tokens), model.embed_text(model.encode_text(ids, mask))
    memory = model.project_images(image_tokens)
    logits = model.match(ids, mask, memory)
    # The reference's own class forgets to write [ENC] over [CLS] (BLIP.md 8).
    forgotten = model.match_head(model.text_encoder(ids, mask, memory)[:, 0])
    for ours, name in (  # measured: 2e-6
        (images, "image_feat"),
        (texts, "text_feat"),
        (images @ texts.T, "itc_cosine"),
        (logits, "itm_logits_enc_token"),
        (forgotten, "itm_logits_cls_token"),
    ):
        torch.testing.assert_close(ours, reference[f"out/{name}"], atol=TOLERANCE, rtol=0)
