import pytest
import torch

from blip.batch import SpecialTokens
from blip.config import PRESETS, load_config
from blip.models.blip import Blip
from blip.models.momentum import MomentumTwin

SPECIAL = SpecialTokens(pad=0, cls=101, sep=102, dec=30522, enc=30523)


@pytest.fixture
def sizes(monkeypatch):
    monkeypatch.setenv("BLIP_DATA", "nowhere")
    return lambda preset: load_config(PRESETS / f"{preset}.yaml").model


@pytest.mark.parametrize(
    ("preset", "parts", "count"),
    [  # BLIP.md 1.4
        ("base_14m", "pretrain", 252_441_919),
        ("base_14m", "captioning", 223_971_644),
        ("base_14m", "retrieval", 223_744_259),
        ("large_129m", "pretrain", 474_729_023),
        ("large_129m", "captioning", 446_290_492),
        ("large_129m", "retrieval", 446_128_643),
    ],
)
def test_parameter_counts_are_the_papers(sizes, preset, parts, count):
    with torch.device("meta"):
        model = Blip(sizes(preset), 224 if parts == "pretrain" else 384, 30524, SPECIAL, parts)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("preset", "count"), [("base_14m", 475_892_799), ("large_129m", 920_467_007)]
)
def test_parameter_counts_with_the_momentum_twin(sizes, preset, count):
    with torch.device("meta"):
        model = Blip(sizes(preset), 224, 30524, SPECIAL, "pretrain")
        twin = MomentumTwin(model, 0.995)
    assert sum(p.numel() for module in (model, twin) for p in module.parameters()) == count


def test_embeddings_are_unit_vectors(build):
    model = build("retrieval")
    ids, mask = torch.randint(5, 400, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    images = model.embed_image(model.encode_image(torch.randn(3, 3, 64, 64)))
    texts = model.embed_text(model.encode_text(ids, mask))
    assert images.shape == texts.shape == (3, 64)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))


def test_each_role_begins_with_its_own_token(build):
    model = build("pretrain")
    ids, mask = torch.randint(5, 400, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    ids[:, 0] = model.special.cls
    memory = model.project_images(model.encode_image(torch.randn(2, 3, 64, 64)))
    for role, token, run in (
        ("pairs", model.special.enc, lambda ids: model.encode_pairs(ids, mask, memory)),
        ("decoder", model.special.dec, lambda ids: model.decode(ids, memory)),
    ):
        begun = ids.clone()
        begun[:, 0] = token
        assert torch.equal(run(ids), run(begun)), role
    assert (ids[:, 0] == model.special.cls).all()  # the caller's ids are left alone


def test_match_picks_the_image_of_each_text(build):
    model = build("retrieval")
    ids, mask = torch.randint(5, 400, (4, 6)), torch.ones(4, 6, dtype=torch.int64)
    tokens = model.encode_image(torch.randn(2, 3, 64, 64))
    memory, index = model.project_images(tokens), torch.tensor([1, 0, 0, 1])
    picked = model.match(ids, mask, memory, index)
    alone = [
        model.match(ids[p : p + 1], mask[:1], model.project_images(tokens[i : i + 1]))
        for p, i in enumerate(index.tolist())
    ]
    torch.testing.assert_close(picked, torch.cat(alone), atol=1e-5, rtol=0)
    ordered = model.match(ids, mask, memory, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(model.match(ids, mask, memory), ordered, atol=1e-5, rtol=0)


def test_answers_do_not_see_the_padding_of_their_question(build):
    """The reference's do, so that an answer there depends on the other questions of the batch."""
    model = build("vqa")
    ids, mask = torch.randint(5, 400, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    images = model.project_images(model.encode_image(torch.randn(2, 3, 64, 64)))
    states = model.encode_pairs(ids, mask, images)
    answers = torch.randint(5, 400, (4, 3))  # two to a question
    together = model.decode(answers, model.project_questions(states, mask))
    short = model.project_questions(states[1:, :4], mask[1:, :4])
    torch.testing.assert_close(model.decode(answers[2:], short), together[2:], atol=1e-5, rtol=0)
    picked = model.decode(
        answers, model.project_questions(states, mask), torch.tensor([0, 0, 1, 1])
    )
    torch.testing.assert_close(picked, together, atol=1e-5, rtol=0)


def test_frames_are_read_as_one_memory_and_embedded_by_their_mean(build):
    model = build("matching")
    frames = torch.randn(2, 3, 3, 64, 64)
    tokens = model.encode_images(frames)
    assert tokens.shape == (2, 3 * 17, 96)
    first = model.encode_image(frames[:, 0])
    torch.testing.assert_close(tokens[:, :17], first, atol=1e-5, rtol=0)
    mean = model.image_projection(model.encode_image(frames[0])[:, 0]).mean(0)
    expected = mean / mean.norm()
    embed = model.embed_image(tokens, num_frames=3)
    torch.testing.assert_close(embed[0], expected, atol=1e-5, rtol=0)


def test_encoder_and_decoder_stay_one_when_trained(build):
    model = build("pretrain")
    ids = torch.randint(5, 400, (2, 6))
    memory = model.project_images(model.encode_image(torch.randn(2, 3, 64, 64)))
    model.predict(model.decode(ids, memory)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.text_decoder.parameters():
            parameter -= 0.1 * parameter.grad
    for encoder, decoder in zip(model.text_encoder.layers, model.text_decoder.layers, strict=True):
        assert torch.equal(encoder.mlp_up.weight, decoder.mlp_up.weight)
        assert not torch.equal(encoder.self_attention.qkv.weight, decoder.self_attention.qkv.weight)


def test_fresh_weights_have_the_configured_spread(sizes):
    torch.manual_seed(0)
    model = Blip(sizes("demo"), 64, 402, SPECIAL._replace(dec=400, enc=401), "pretrain")
    for weight in (
        model.text_encoder.embeddings.words.weight,
        model.text_decoder.layers[1].self_attention.qkv.weight,
        model.text_projection.weight,
        model.vision.blocks[0].mlp_up.weight,
    ):
        assert weight.std().item() == pytest.approx(0.057, rel=0.05)
    assert model.text_decoder.layers[0].mlp_up.bias.abs().max() == 0
    assert model.temperature.item() == pytest.approx(0.07)
