import pytest
import torch
from torch.nn.functional import cross_entropy

from blip.batch import SpecialTokens
from blip.config import PRESETS, load_config
from blip.evaluate.vqa import encode_questions, rank_answers
from blip.models.blip import Blip
from blip.models.matching import Texts

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


@pytest.mark.parametrize("k", [0, 7])
def test_more_answers_to_score_than_there_are(model, k):
    memory = encode_questions(model, model.encode_image(torch.zeros(2, 3, 64, 64)), QUESTIONS)
    with pytest.raises(ValueError, match=f"k = {k} answers to score, of 6 candidates"):
        rank_answers(model, memory, ANSWERS, k)
