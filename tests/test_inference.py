import hashlib
from pathlib import Path

import pytest
import torch

from blip import config
from blip.data.text import VOCABULARY, Tokenizer, train_vocabulary
from blip.data.transforms import normalise
from blip.errors import CheckpointError, ConfigError, DataError
from blip.inference import Predictor, load_predictor
from blip.models.blip import Blip, Parts
from blip.models.checkpoint import load_model, read_checkpoint, save_model, write_checkpoint
from blip.models.generation import seeded_generator
from blip.models.gradcam import grad_cam
from blip.models.matching import Texts

TEXTS = ["a red square beside a blue ring", "two bars", "what colour is it", "yes no three"]
TOLERANCE = 2e-6  # measured: 2.7e-7, from padding and other shapes of the same products


def make_model(path: Path, parts: Parts, image_size: int = 64, width: int = 32) -> Path:
    """Save a small model with random weights, and its vocabulary beside it."""
    train_vocabulary(TEXTS, 60, path)
    tokenizer = Tokenizer(path / VOCABULARY)
    sizes = {"width": width, "num_layers": 2, "num_heads": max(2, width // 64)}
    model = config.Model(
        vision=config.Vision(**sizes, patch_size=16, drop_path=0.0, checkpoint_layers=0),
        text=config.Text(**sizes, intermediate=64, max_positions=48, dropout=0.1),
        embed_size=8,
        init_std=0.3,
        vision_weights=None,
        text_weights=None,
    )
    torch.manual_seed(0)
    save_model(Blip(model, image_size, tokenizer.vocab_size, tokenizer.special, parts), path)
    return path


@pytest.fixture
def predictor(tmp_path):
    def load(parts, need, **options) -> Predictor:
        return load_predictor(make_model(tmp_path / parts, parts), need, **options)

    return load


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=generator)


def decoding(method):
    return config.Decoding(
        method=method,
        num_beams=3,
        top_p=0.9,
        top_k=0,
        repetition_penalty=1.1,
        length_rule="reference",
        min_length=3,
        max_length=30,
        batch_size=16,
    )


def draws(images):
    return [seeded_generator(7, hashlib.sha256(image.numpy()).hexdigest()) for image in images]


def alone(images, ask):
    """Ask about each image by itself."""
    return [answer for image in images for answer in ask(image[None])]


@pytest.mark.parametrize("method", ["beam", "greedy", "nucleus"])
@pytest.mark.parametrize("parts", ["captioning", "pretrain"])
def test_a_caption_does_not_depend_on_the_batch(predictor, images, parts, method):
    captioner, how = predictor(parts, "captioning"), decoding(method)
    together = captioner.caption(images, "a red ", how, draws(images))
    assert together == alone(images, lambda i: captioner.caption(i, "a red ", how, draws(i)))
    assert len(set(together)) > 1  # else nothing was compared


def test_written_answers_do_not_depend_on_the_batch_or_on_other_questions(predictor, images):
    answerer = predictor("vqa", "vqa")
    asked = ["what colour is it?", "red?"]
    together = answerer.answer(images, answerer.questions(asked))
    assert [len(row) for row in together] == [2] * 5
    for image, row in zip(images, together, strict=True):
        for question, answer in zip(asked, row, strict=True):
            assert answerer.answer(image[None], answerer.questions([question])) == [[answer]]


def test_chosen_answers_are_the_best_of_all(predictor, images):
    answerer = predictor("vqa", "vqa")
    questions = answerer.questions(["what colour is it?", "red?"])
    candidates = answerer.whole_texts(["red", "a blue ring", "no", "two"])
    chosen = answerer.rank(images, questions, candidates, k=4)
    assert chosen == alone(images, lambda i: answerer.rank(i, questions, candidates, k=4))
    assert chosen == [[answerer_best(answerer, i, q, candidates) for q in range(2)] for i in images]
    with pytest.raises(ConfigError, match=r"k = 5 answers to score, of 4 candidates"):
        answerer.rank(images, questions, candidates, k=5)


@torch.inference_mode()
def answerer_best(answerer, image, number, candidates):
    """Score every candidate by itself with the smoothed loss."""
    model = answerer.model
    ids, mask = (
        t[number : number + 1]
        for t in vars(answerer.questions(["what colour is it?", "red?"])).values()
    )
    tokens = answerer._encode(image[None])
    states = model.encode_pairs(ids, mask, model.project_images(tokens))
    memory = model.project_questions(states, mask)
    losses = []
    for row, kept in zip(candidates.token_ids, candidates.mask, strict=True):
        text = row[: int(kept.sum())][None]
        logits = model.predict(model.decode(text[:, :-1], memory))
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[0], text[0, 1:], reduction="sum", label_smoothing=0.1
            )
        )
    return int(torch.stack(losses).argmin())


@pytest.mark.parametrize("parts", ["matching", "retrieval", "pretrain"])
def test_matches_are_those_of_each_pair_alone(predictor, images, parts):
    matcher = predictor(parts, "matching")
    words = ["A red square!", "two bars beside a blue ring"]
    pairs = torch.tensor([[0, 1], [4, 0], [2, 1], [2, 0]])
    found = matcher.match(images, matcher.captions(words), pairs)
    for (image, text), *values in zip(pairs.tolist(), *found, strict=True):
        expected = by_hand(matcher, images[image], words[text])
        torch.testing.assert_close(torch.stack(values), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def by_hand(matcher, image, text):
    texts, model = matcher.captions([text]), matcher.model
    tokens = matcher._encode(image[None])
    logits = model.match(texts.token_ids, texts.mask, model.project_images(tokens))
    hidden = model.encode_text(texts.token_ids, texts.mask)
    cosine = (model.embed_image(tokens) * model.embed_text(hidden)).sum()
    return torch.stack([logits.softmax(-1)[0, 1], cosine])


@torch.inference_mode()
def test_features_are_the_first_tokens_and_the_unit_vectors(predictor, images):
    extractor = predictor("retrieval", "features")
    model, words = extractor.model, ["a red square beside a ring", "Two bars."]
    texts = extractor.whole_texts(words)
    found = extractor.image_features(images, texts) | extractor.text_features(texts)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "image_cls": (5, 32),
        "image_embed": (5, 8),
        "multimodal_cls": (5, 2, 32),
        "text_cls": (2, 32),
        "text_embed": (2, 8),
    }
    tokens = extractor._encode(images[3:4])
    ids, mask = vars(extractor.whole_texts(words[1:])).values()  # without padding
    hidden = model.encode_text(ids, mask)
    for ours, expected in (
        (found["image_cls"][3], tokens[0, 0]),
        (found["image_embed"][3], model.embed_image(tokens)[0]),
        (found["text_cls"][1], hidden[0, 0]),
        (found["text_embed"][1], model.embed_text(hidden)[0]),
        (
            found["multimodal_cls"][3, 1],
            model.encode_pairs(ids, mask, model.project_images(tokens))[0, 0],
        ),
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)  # measured: 1.7e-6


def test_a_model_without_projections_gives_no_embeddings(predictor, images):
    extractor = predictor("features", "features")
    texts = extractor.whole_texts(["two bars"])
    assert extractor.image_features(images, texts).keys() == {"image_cls", "multimodal_cls"}
    assert extractor.text_features(texts).keys() == {"text_cls"}


def test_the_map_of_a_word_is_the_mean_of_its_pieces(predictor, images):
    matcher = predictor("matching", "matching")
    texts = matcher.captions(["a red"])
    pieces = [matcher.tokenizer.decode([i]) for i in texts.token_ids[0].tolist()][1:-1]
    assert pieces == ["a", "r", "##e", "##d"]
    found = matcher.heatmap(images[0], "a red", layer=0)
    seen = grad_cam(matcher.model, normalise(images[:1]), texts.token_ids, texts.mask, layer=0)
    assert found.words == ["a", "red"]
    assert torch.equal(found.per_word[0], seen.per_token[0, 1])
    assert torch.equal(found.per_word[1], seen.per_token[0, 2:5].mean(0))
    assert torch.equal(found.mean, seen.mean[0])
    assert found.mean.max() > 0
    with pytest.raises(ConfigError, match="layer 7 of a text encoder with the layers 0 to 1"):
        matcher.heatmap(images[0], "red", layer=7)


@pytest.mark.parametrize(
    ("parts", "need", "wanted"),
    [
        ("vqa", "captioning", "'vqa', but captioning needs one for 'captioning' or 'pretrain'"),
        ("captioning", "matching", "'captioning', but matching needs one for 'matching' or"),
        ("pretrain", "vqa", "'pretrain', but vqa needs one for 'vqa'"),
        ("nlvr", "features", "'nlvr', but features needs"),
    ],
)
def test_a_model_for_something_else_is_refused(predictor, parts, need, wanted):
    with pytest.raises(CheckpointError, match=wanted):
        predictor(parts, need)


def test_another_image_size_resamples_as_loading_does(predictor, tmp_path):
    matcher = predictor("matching", "matching", image_size=96)
    expected = load_model(tmp_path / "matching", image_size=96).vision.position_embedding
    assert torch.equal(matcher.model.vision.position_embedding, expected)
    images = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    assert matcher.image_features(images)["image_cls"].shape == (1, 32)
    with pytest.raises(ConfigError, match="image size 100: must be a multiple"):
        predictor("matching", "matching", image_size=100)


@pytest.mark.parametrize("kind", ["huggingface", "salesforce"])
def test_every_kind_of_checkpoint_writes_the_same(tmp_path, images, kind):
    ours = make_model(tmp_path / "ours", "captioning", width=768)
    theirs = tmp_path / ("theirs.pth" if kind == "salesforce" else "theirs")
    write_checkpoint(read_checkpoint(ours), theirs, kind)
    vocabulary = str(ours / VOCABULARY)
    first, second = (
        load_predictor(path, "captioning", vocabulary).caption(images, "a ", decoding("beam"))
        for path in (ours, theirs)
    )
    assert first == second


def test_texts_that_cannot_be_read(predictor):
    matcher = predictor("matching", "matching")
    for reader in (matcher.captions, matcher.questions, matcher.whole_texts):
        with pytest.raises(DataError, match="text ' ': holds no word"):
            reader(["a red square", " "])
    with pytest.raises(DataError, match=r"text '\(\.\)': holds no word"):
        matcher.captions(["(.)"])
    assert matcher.captions(["a " * 100]).token_ids.shape == (1, 32)  # 30 words are read
    with pytest.raises(DataError, match="has 52 tokens, and the model reads 48: shorten it"):
        matcher.whole_texts(["a", "a " * 50])


def test_a_prompt_that_leaves_no_room(predictor, images):
    captioner = predictor("captioning", "captioning")
    with pytest.raises(ConfigError, match="max_length 30 counts the prompt, whose 31 tokens"):
        captioner.caption(images, "a " * 30, decoding("beam"))


def test_texts_are_repeated_for_each_image_together(predictor, images):
    extractor = predictor("features", "features")
    texts = extractor.whole_texts(["two bars", "a red ring"])
    swapped = Texts(texts.token_ids.flip(0), texts.mask.flip(0))
    ours, theirs = (extractor.image_features(images, t)["multimodal_cls"] for t in (texts, swapped))
    torch.testing.assert_close(ours, theirs.flip(1), atol=TOLERANCE, rtol=0)
