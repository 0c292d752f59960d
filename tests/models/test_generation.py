import pytest
import torch

from blip import config
from blip.models.generation import Decoder, filtered, generate, processed

PROMPT = [400, 7, 8]


IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 3


@pytest.fixture
def captioner(build):
    """A model whose captions differ, and end at different lengths."""
    model = build("captioning")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "words" in name or "cross_attention" in name:
                parameter.mul_(4)
        model.language_head.bias[model.special.sep] += 6
    with torch.no_grad():
        return model, model.project_images(model.encode_image(IMAGES))


def decoding(method, **changes):
    values = {"method": method, "num_beams": 3, "top_p": 0.9, "top_k": 50}
    values |= {"repetition_penalty": 1.1, "length_rule": "reference"}
    values |= {"min_length": 5, "max_length": 14, "batch_size": 4}
    return config.Decoding(**(values | changes))


def seeded(count):
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_a_caption_does_not_depend_on_its_batch(captioner, method):
    model, memory = captioner
    together = generate(model, memory, PROMPT, decoding(method), seeded(6))
    alone = [
        generate(model, memory.select(slice(i, i + 1)), PROMPT, decoding(method), [seeded(6)[i]])[0]
        for i in range(6)
    ]
    backwards = generate(
        model, memory.select(torch.arange(5, -1, -1)), PROMPT, decoding(method), seeded(6)[::-1]
    )
    assert together == alone == backwards[::-1]
    assert len({len(caption) for caption in together}) > 1  # else nothing was put to the test


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_few_readers_write_the_same_without_keys_and_values(captioner, method):
    model, memory = captioner
    with torch.no_grad():
        tokens = model.encode_image(IMAGES)
        direct = model.project_images(tokens, num_readers=1)
    assert direct.key_values == []
    assert len(direct) == len(memory)
    assert model.project_images(tokens, num_readers=1000).tokens is None
    captions = generate(model, direct, PROMPT, decoding(method), seeded(6))
    assert captions == generate(model, memory, PROMPT, decoding(method), seeded(6))


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_lengths_count_the_prompt(captioner, method):
    model, memory = captioner
    captions = generate(model, memory, PROMPT, decoding(method, min_length=9), seeded(6))
    assert all(9 <= len(PROMPT) + len(caption) <= 14 for caption in captions)
    assert all(model.special.sep not in caption for caption in captions)
    full = decoding(method, min_length=14)
    assert {len(c) for c in generate(model, memory, PROMPT, full, seeded(6))} == {11}


def test_greedy_is_the_argmax_of_the_whole_text(captioner):
    model, memory = captioner
    settings = decoding("greedy")
    for image, caption in enumerate(generate(model, memory, PROMPT, settings)):
        one = memory.select(slice(image, image + 1))
        ids = torch.tensor([PROMPT])
        while ids.shape[1] < settings.max_length:
            logits = model.predict(model.decode(ids, one)[:, -1])
            chosen = processed(logits, ids, settings, model.special.sep).argmax(1, keepdim=True)
            if chosen.item() == model.special.sep:
                break
            ids = torch.cat([ids, chosen], dim=1)
        assert caption == ids[0, len(PROMPT) :].tolist()


def test_nucleus_draws_from_the_filtered_distribution(captioner):
    """The first token of 4,000 draws for one image, against its probabilities."""
    model, memory = captioner
    settings = decoding("nucleus", max_length=4, min_length=0, top_p=0.7)
    count = 4000
    same = memory.select(torch.zeros(count, dtype=torch.int64))
    captions = generate(model, same, PROMPT, settings, seeded(count))
    logits = model.predict(model.decode(torch.tensor([PROMPT]), memory.select(slice(0, 1))))
    scores = processed(logits[:, -1], torch.tensor([PROMPT]), settings, model.special.sep)
    probabilities, ids = filtered(scores, settings)
    drawn = torch.tensor([c[0] if c else model.special.sep for c in captions])
    for probability, token in zip(probabilities[0].tolist(), ids[0].tolist(), strict=True):
        share = (drawn == token).float().mean().item()
        error = (probability * (1 - probability) / count) ** 0.5
        assert abs(share - probability) <= 5 * error


def test_the_same_generator_gives_the_same_caption(captioner):
    model, memory = captioner
    settings = decoding("nucleus")
    first = generate(model, memory, PROMPT, settings, seeded(6))
    assert generate(model, memory, PROMPT, settings, seeded(6)) == first
    others = [torch.Generator().manual_seed(i) for i in range(6)]
    assert generate(model, memory, PROMPT, settings, others) != first


def test_filter_keeps_the_token_that_crosses_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    probabilities, ids = filtered(logits, decoding("nucleus", top_p=0.6, top_k=0))
    assert ids[0, :2].tolist() == [0, 1]
    torch.testing.assert_close(probabilities, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    probabilities, _ = filtered(logits, decoding("nucleus", top_p=0.0, top_k=0))
    assert probabilities.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    probabilities, _ = filtered(logits, decoding("nucleus", top_p=1.0, top_k=3))
    assert probabilities.shape == (1, 3)
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))


def test_penalty_and_minimum_length():
    scores = torch.tensor([[2.0, -2.0, 1.0, 4.0]])
    settings = decoding("greedy", repetition_penalty=2.0, min_length=3)
    ours = processed(scores, torch.tensor([[0, 1]]), settings, sep=3)
    assert ours.tolist() == [[1.0, -4.0, 1.0, -torch.inf]]
    assert scores.tolist() == [[2.0, -2.0, 1.0, 4.0]]
    ours = processed(scores, torch.tensor([[0, 1, 0]]), settings, sep=3)
    assert ours.tolist() == [[1.0, -4.0, 1.0, 4.0]]  # once, however often it was said


@pytest.mark.parametrize(
    ("prompt", "changes", "generators", "message"),
    [
        ([7, 8], {}, 6, "must begin with"),
        ([], {}, 6, "must begin with"),
        (PROMPT, {"max_length": 3}, 6, "leave no room"),
        (PROMPT, {"max_length": 65}, 6, "beyond the model's 64 positions"),
        (PROMPT, {}, 5, "needs as many generators"),
    ],
)
def test_what_cannot_be_written_is_refused(captioner, prompt, changes, generators, message):
    model, memory = captioner
    with pytest.raises(ValueError, match=message):
        generate(model, memory, prompt, decoding("nucleus", **changes), seeded(generators))


def test_no_images_no_captions(captioner):
    model, memory = captioner
    for method in ("greedy", "beam", "nucleus"):
        assert generate(model, memory.select(slice(0, 0)), PROMPT, decoding(method), []) == []


def test_rows_that_stay_write_what_they_write_alone(captioner, monkeypatch):
    """Where a step is recorded, finished texts stay in the batch; here its host reads it as ever."""
    model, memory = captioner
    expected = generate(model, memory, PROMPT, decoding("nucleus"), seeded(6))
    assert len({len(caption) for caption in expected}) > 1
    monkeypatch.setattr(Decoder, "read_on", Decoder.read)
    begin = Decoder.__init__

    def fixed(decoder, *arguments):
        begin(decoder, *arguments)
        decoder.recorded = True

    monkeypatch.setattr(Decoder, "__init__", fixed)
    assert generate(model, memory, PROMPT, decoding("nucleus"), seeded(6)) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["greedy", "nucleus"])
def test_a_recorded_step_is_the_step(captioner, method):
    model, _ = captioner
    with torch.inference_mode():
        on_host = model.project_images(model.encode_image(IMAGES))
        expected = generate(model, on_host, PROMPT, decoding(method), seeded(6))
        model.cuda()
        memory = model.project_images(model.encode_image(IMAGES.cuda()))
        for _ in range(2):
            assert generate(model, memory, PROMPT, decoding(method), seeded(6)) == expected
