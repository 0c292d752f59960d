import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from blip.batch import SpecialTokens
from blip.config import PRESETS, load_config
from blip.evaluate import vqa
from blip.evaluate.vqa import encode_questions, rank_answers
from blip.models.blip import Blip
from blip.models.matching import Texts
from blip.objectives.lm import text_losses

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, dec=400, enc=401)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Blip(load_config(PRESETS / "demo.yaml").model, 64, 402, SPECIAL, "vqa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def texts(*rows: list[int]) -> Texts:
    longest = max(map(len, rows)) + 2
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row) + 2] = torch.tensor([SPECIAL.cls, *row, SPECIAL.sep])
    return Texts(ids, (ids != SPECIAL.pad).long())


ANSWERS = texts([7], [7, 8], [9, 10, 11], [12], [13, 14], [7, 8, 9, 10])
QUESTIONS = texts([20, 21, 22, 23, 24], [30, 31])


@torch.inference_mode()
def test_the_scores_are_the_losses_of_each_answer_alone(model):
    tokens = model.encode_image(
        torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    )
    ranked = rank_answers(model, encode_questions(model, tokens, QUESTIONS), ANSWERS, k=4)
    for row, length in enumerate([7, 4]):
        alone = Texts(
            QUESTIONS.token_ids[row : row + 1, :length], QUESTIONS.mask[row : row + 1, :length]
        )
        memory = encode_questions(model, tokens[row : row + 1], alone)
        start = torch.tensor([[SPECIAL.dec]])
        first = model.predict(model.decode(start, memory)[0, 0]).softmax(0)
        expected = first[ANSWERS.token_ids[:, 1]]  # measured: 7e-10
        torch.testing.assert_close(ranked.first_probability[row], expected, atol=1e-6, rtol=0)
        scores = []
        for candidate in ranked.candidates[row].tolist():
            ids = ANSWERS.token_ids[candidate : candidate + 1]
            ids = ids[:, : int(ANSWERS.mask[candidate].sum())]
            logits = model.predict(model.decode(ids[:, :-1], memory))[0]
            scores.append(-cross_entropy(logits, ids[0, 1:], label_smoothing=0.1, reduction="sum"))
        expected = torch.stack(scores)  # measured: 2e-6, of sums up to 30
        torch.testing.assert_close(ranked.scores[row], expected, atol=1e-5, rtol=0)
        assert ranked.best[row] == ranked.candidates[row, expected.argmax()]
        # Those that were not scored begin less likely than those that were.
        rest = [i for i in range(len(ANSWERS)) if i not in ranked.candidates[row].tolist()]
        worst = ranked.first_probability[row, ranked.candidates[row]].min()
        assert (ranked.first_probability[row, rest] <= worst).all()


PIECES = st.integers(7, 10)  # few: answers begin alike, go on from each other, or are the same
ROWS = st.lists(st.lists(PIECES, min_size=1, max_size=7), min_size=1, max_size=12)


@settings(max_examples=40)
@given(
    ROWS, st.lists(st.lists(st.integers(11, 399), max_size=6), min_size=1, max_size=4), st.data()
)
@torch.inference_mode()
def test_ranking_is_that_of_answers_read_one_by_one(model, rows, asked, data):
    """Whatever the answers have in common, and whatever is read at once."""
    answers, questions = texts(*rows), texts(*asked)
    k = data.draw(st.integers(1, len(rows)), "k")
    tokens = data.draw(st.sampled_from([1, 7, 30, 4096]), "tokens at once")
    states = data.draw(st.sampled_from([1, 3, 128]), "states at once")
    seeded = torch.Generator().manual_seed(len(rows))
    images = model.encode_image(torch.randn(len(asked), 3, 64, 64, generator=seeded))
    memory = encode_questions(model, images, questions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vqa, "TOKENS_AT_ONCE", tokens)
        patch.setattr(vqa, "STATES_AT_ONCE", states)
        ranked = rank_answers(model, memory, answers, k)
    start = torch.full((len(asked), 1), SPECIAL.dec)
    first = model.predict(model.decode(start, memory)[:, 0]).softmax(dim=1)
    assert torch.equal(ranked.first_probability, first[:, answers.token_ids[:, 1]])
    assert torch.equal(ranked.candidates, ranked.first_probability.topk(k, dim=1).indices)
    chosen = ranked.candidates.flatten()
    ids, mask = answers.token_ids[chosen], answers.mask[chosen]
    losses = text_losses(model.decode(ids[:, :-1], memory), ids, mask, model.predict, 0.1)
    expected = -losses.view(-1, k)  # measured: 2.4e-7
    torch.testing.assert_close(ranked.scores, expected, atol=0, rtol=1e-5)
    best = ranked.scores.argmax(dim=1, keepdim=True)
    assert torch.equal(ranked.best, ranked.candidates.gather(1, best)[:, 0])


def test_what_is_common_is_read_once_and_the_rest_in_bounded_parts(model, monkeypatch):
    sizes = []
    read = model.decode_prefixes

    def counted(prefixes, memory):
        sizes.append(len(prefixes.slots))
        return read(prefixes, memory)

    monkeypatch.setattr(model, "decode_prefixes", counted)
    memory = encode_questions(model, model.encode_image(torch.zeros(2, 3, 64, 64)), QUESTIONS)
    rank_answers(model, memory, ANSWERS, k=6)
    # Of each question [DEC], 7, 7 8, 7 8 9, 7 8 9 10, 9, 9 10, 9 10 11, 12, 13, 13 14.
    assert sizes == [2 * 11]
    sizes.clear()
    monkeypatch.setattr(vqa, "TOKENS_AT_ONCE", 8)
    rank_answers(model, memory, ANSWERS, k=6)
    assert len(sizes) > 4
    assert max(sizes) <= 8 + ANSWERS.token_ids.shape[1]


@pytest.mark.parametrize("k", [0, 7])
def test_more_answers_to_score_than_there_are(model, k):
    memory = encode_questions(model, model.encode_image(torch.zeros(2, 3, 64, 64)), QUESTIONS)
    with pytest.raises(ValueError, match=f"k = {k} answers to score, of 6 candidates"):
        rank_answers(model, memory, ANSWERS, k)
