"""Writing captions and answers: greedy, beam search, nucleus sampling (BLIP.md 3, 5.2, 5.3).

Lengths count the prompt. A memory, of an image or of a question, is projected once and read by all
beams; keys and values of the text are cached. A row whose texts are done leaves the batch, and
none sees the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blip import config
from blip.files import digest_json
from blip.models.blip import Blip
from blip.models.med import Memory, TextCache


@torch.no_grad()
def generate(
    model: Blip,
    memory: Memory,
    prompt_ids: list[int],
    decoding: config.Decoding,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[int]]:
    """Write one text for each of B memories.

    Args:
        model: A model with a text decoder, in evaluation mode.
        memory: `project_images` for captions, `project_questions` for answers.
        prompt_ids: What every text begins with: `[CLS]` or `[DEC]`, then the prompt's words, no
            `[SEP]`.
        decoding: Method and limits.
        generators: One of the host for each memory, for `nucleus`: a text depends on its own
            generator alone.

    Returns:
        Ids of each text, without prompt, `[SEP]` and padding.

    Raises:
        ValueError: The prompt has no first token or fills `max_length`, the model cannot hold
            `max_length`, or there is not one generator for each image.
    """
    _check(model, len(memory), prompt_ids, decoding, generators)
    if len(memory) == 0:
        return []
    device = memory.device
    prompt = torch.tensor([prompt_ids], device=device)
    prompt[0, 0] = model.special.dec
    if decoding.method == "beam":
        return [best for best, _ in beam_search(model, memory, prompt, decoding)]
    length = decoding.max_length - len(prompt_ids)
    # All draws of a text at once: how far its generator moves does not tell how long the text was.
    # Greedy needs none.
    draws = None
    if decoding.method == "nucleus":
        draws = torch.zeros(len(memory), length)
        for row, generator in zip(draws, generators or (), strict=True):
            torch.rand(length, generator=generator, out=row)
        draws = draws.to(device)
    return sample(model, memory, prompt, decoding, draws)


def seeded_generator(seed: int, key: str) -> torch.Generator:
    """Give the randomness of one text, by the seed of the run and the key of the image."""
    return torch.Generator().manual_seed(int(digest_json([seed, key])[:15], 16))


def filtered(logits: Tensor, decoding: config.Decoding) -> tuple[Tensor, Tensor]:
    """Keep the `top_k` likeliest tokens, of these the fewest whose probability exceeds `top_p`.

    Args:
        logits: (R, V).
        decoding: `top_k` 0 keeps all, as does `top_p` 1.

    Returns:
        (R, K) probabilities, falling, 0 where dropped, of sum 1; and the (R, K) ids they belong to.
    """
    k = min(decoding.top_k or logits.shape[1], logits.shape[1])
    kept, ids = logits.topk(k, dim=1)
    probabilities = kept.softmax(dim=1)
    if decoding.top_p < 1.0:
        # The token that crosses top_p still counts; the likeliest always does.
        before = probabilities.cumsum(dim=1) - probabilities
        dropped = before > decoding.top_p
        dropped[:, 0] = False
        probabilities = probabilities.masked_fill(dropped, 0.0)
    return probabilities / probabilities.sum(dim=1, keepdim=True), ids


def processed(scores: Tensor, token_ids: Tensor, decoding: config.Decoding, sep: int) -> Tensor:
    """Discourage repeats and forbid an early end.

    Args:
        scores: (R, V) logits or log-probabilities of the next token.
        token_ids: (R, T) the prompt and what is written so far.
        decoding: Repetition penalty and minimum length.
        sep: The token that ends a caption.
    """
    if decoding.repetition_penalty != 1.0:
        seen = scores.gather(1, token_ids)
        penalty = decoding.repetition_penalty
        seen = torch.where(seen < 0, seen * penalty, seen / penalty)
        scores = scores.scatter(1, token_ids, seen)
    if token_ids.shape[1] < decoding.min_length:
        scores = scores.clone()
        scores[:, sep] = -torch.inf
    return scores


def sample(
    model: Blip,
    memory: Memory,
    prompt: Tensor,
    decoding: config.Decoding,
    draws: Tensor | None,
) -> list[list[int]]:
    """Write token by token.

    Args:
        model: A model with a text decoder.
        memory: Of B images or questions.
        prompt: (1, T) ids, `[DEC]` first.
        decoding: Limits and distribution.
        draws: (B, max_length - T) in [0, 1): the choice of every step, as the place in the
            cumulative distribution; `None` takes the likeliest token.

    Returns:
        Ids of each text, without prompt, `[SEP]` and padding.
    """
    start, sep = prompt.shape[1], model.special.sep
    decoder = Decoder(model, memory, decoding.max_length)
    token_ids = prompt.expand(len(memory), -1)
    rows = torch.arange(len(memory), device=prompt.device)
    open_ = torch.ones_like(rows, dtype=torch.bool)
    captions: list[list[int]] = [[] for _ in range(len(memory))]
    logits = decoder.read(token_ids)
    for step in range(decoding.max_length - start):
        logits = processed(logits, token_ids, decoding, sep)
        if draws is None:
            chosen = logits.argmax(dim=1)
        else:
            chosen = _pick(*filtered(logits, decoding), draws[rows, step])
        token_ids = torch.cat([token_ids, chosen[:, None]], dim=1)
        for row in (open_ & (chosen == sep)).nonzero().squeeze(1).tolist():
            captions[int(rows[row])] = token_ids[row, start:-1].tolist()
        open_ = open_ & (chosen != sep)
        if not open_.any() or token_ids.shape[1] == decoding.max_length:
            break
        if not decoder.recorded and not open_.all():
            kept = open_.nonzero().squeeze(1)
            rows, token_ids, open_ = rows[kept], token_ids[kept], open_[kept]
            decoder.select(kept)
        logits = decoder.read_on(token_ids[:, -1:])
    for row in open_.nonzero().squeeze(1).tolist():
        captions[int(rows[row])] = token_ids[row, start:].tolist()
    return captions


class Decoder:
    """Reads the texts of a batch, first the prompt, then token by token.

    On a CUDA GPU a step is recorded once and replayed: it is hundreds of small kernels, and to
    launch them takes the host longer than the GPU needs for them. Its rows are then fixed.

    Args:
        model: With a text decoder.
        memory: Of B images or questions, one for each text.
        capacity: Tokens of a text at most.
    """

    def __init__(self, model: Blip, memory: Memory, capacity: int) -> None:
        self.recorded = memory.device.type == "cuda"
        self._model, self._memory = model, memory
        self._cache = TextCache(len(model.text_decoder.layers), capacity, memory.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids = self._logits = torch.empty(0)  # the graph's own

    def read(self, token_ids: Tensor) -> Tensor:
        """Read (B, T) tokens; give the (B, V) logits of the next."""
        hidden = self._model.decode(token_ids, self._memory, cache=self._cache)
        return self._model.predict(hidden[:, -1]).float()

    def read_on(self, token_ids: Tensor) -> Tensor:
        """Read (B, 1) tokens after those before; give the (B, V) logits of the next."""
        if not self.recorded:
            return self.read(token_ids)
        if self._graph is None:
            self._record(token_ids)
        assert self._graph is not None
        self._ids.copy_(token_ids)
        self._graph.replay()
        return self._logits

    def _record(self, token_ids: Tensor) -> None:
        self._ids = token_ids.clone()
        # Libraries set up what they need in a first run, which must not be recorded.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.read(self._ids)
            self._cache.go_back(1)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self.read(self._ids)

    def select(self, rows: Tensor) -> None:
        """Go on with some texts only."""
        self._memory = self._memory.select(rows)
        self._cache.select(rows)


def _pick(probabilities: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
    """Invert the distribution: the first token whose cumulative probability exceeds the draw."""
    cumulative = probabilities.cumsum(dim=1)
    # Rounding may leave the sum below the draw: the last kept token, not one of probability 0, is
    # meant then.
    last = (probabilities > 0).sum(dim=1, keepdim=True) - 1
    place = torch.searchsorted(cumulative, draws[:, None], right=True)
    return ids.gather(1, torch.minimum(place, last)).squeeze(1)


@dataclass
class _Finished:
    """The best captions that ended, at most `size`, by log-probability over length.

    Of a caption's length, `uncounted` leading tokens do not count, and `[SEP]` counts `sep`: none
    and 0 in the reference, the prompt and 1 in `transformers`.
    """

    size: int
    uncounted: int
    sep: int
    captions: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, log_probability: float, token_ids: list[int], ended: bool) -> None:
        score = log_probability / (len(token_ids) - self.uncounted + ended * self.sep)
        if len(self.captions) < self.size:
            self.captions.append((score, token_ids))
        elif score > self.worst:
            index = min(range(self.size), key=lambda i: self.captions[i][0])
            del self.captions[index]
            self.captions.append((score, token_ids))

    @property
    def worst(self) -> float:
        return min(score for score, _ in self.captions)

    def settled(self, best: float, best_running: float, length: int) -> bool:
        """Say whether no beam can still beat the worst finished caption, by the rule's estimate.

        Args:
            best: Log-probability of the best candidate of this step, be it at its end; what the
                reference looks at.
            best_running: Of the best that goes on; what `transformers` looks at.
            length: Tokens of a beam before this step.
        """
        hope = (best_running if self.sep else best) / (length - self.uncounted + self.sep)
        return len(self.captions) == self.size and self.worst >= hope

    def best(self) -> tuple[float, list[int]]:
        return max(reversed(self.captions), key=lambda scored: scored[0])


def beam_search(
    model: Blip, memory: Memory, prompt: Tensor, decoding: config.Decoding
) -> list[tuple[list[int], float]]:
    """Search by the rules of BLIP.md 5.2, with `decoding.length_rule`.

    Args:
        model: A model with a text decoder.
        memory: Of B images or questions.
        prompt: (1, T) ids, `[DEC]` first.
        decoding: Beams and limits.

    Returns:
        For each image the best caption without prompt and `[SEP]`, and its score: the sum of
        log-probabilities over the length.
    """
    start, num_beams = prompt.shape[1], decoding.num_beams
    cache = TextCache(len(model.text_decoder.layers), decoding.max_length, memory.device)
    counted = (start, 1) if decoding.length_rule == "transformers" else (0, 0)
    finished = [_Finished(num_beams, *counted) for _ in range(len(memory))]
    images = list(range(len(memory)))
    hidden = model.decode(prompt.expand(len(images), -1), memory, cache=cache)[:, -1]
    # The prompt is read once for each image, then its beams part.
    each = torch.arange(len(images), device=prompt.device).repeat_interleave(num_beams)
    cache.select(each)
    hidden = hidden[each]
    token_ids = prompt.repeat(len(each), 1)
    sums = torch.full((len(images), num_beams), -1e9, device=prompt.device)
    sums[:, 0] = 0.0  # else all beams would take the same first token
    while True:
        scores = model.predict(hidden).float().log_softmax(dim=1)
        scores = processed(scores, token_ids, decoding, model.special.sep)
        open_images, parents, tokens, sums = _advance(
            scores, sums, token_ids, images, finished, model.special.sep
        )
        images = [images[place] for place in open_images]
        if not images:
            break
        token_ids = torch.cat([token_ids[parents], tokens[:, None]], dim=1)
        if token_ids.shape[1] == decoding.max_length:
            for row, (total, ids) in enumerate(
                zip(sums.flatten().tolist(), token_ids.tolist(), strict=True)
            ):
                finished[images[row // num_beams]].add(total, ids, ended=False)
            break
        cache.select(parents)
        if len(open_images) < len(memory):
            memory = memory.select(torch.tensor(open_images, device=prompt.device))
        hidden = model.decode(tokens[:, None], memory, cache=cache)[:, -1]
    return [(ids[start:], score) for score, ids in (one.best() for one in finished)]


def _advance(
    scores: Tensor,
    sums: Tensor,
    token_ids: Tensor,
    images: list[int],
    finished: list[_Finished],
    sep: int,
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Extend the beams of every image by one token and collect the captions that end.

    Args:
        scores: (R, V) processed log-probabilities, R = images x beams.
        sums: (images, beams) log-probabilities of the beams so far.
        token_ids: (R, T).
        images: The images still open.
        finished: Of all images; receives what ends.
        sep: The token that ends a caption.

    Returns:
        Places in `images` of those that go on; and of these (R',) the row each new beam extends,
        (R',) its token, (images', beams) its sum.
    """
    num_beams, vocab_size, length = sums.shape[1], scores.shape[1], token_ids.shape[1]
    totals = (scores.view(len(images), num_beams, -1) + sums[:, :, None]).flatten(1)
    best, flat = totals.topk(2 * num_beams, dim=1)
    going: list[int] = []
    parents: list[int] = []
    tokens: list[int] = []
    kept: list[float] = []
    for place, (values, choices) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
        done = finished[images[place]]
        running: list[tuple[int, int, float]] = []
        for order, (value, choice) in enumerate(zip(values, choices, strict=True)):
            beam, token = divmod(choice, vocab_size)
            row = place * num_beams + beam
            if token != sep:
                running.append((row, token, value))
            elif order < num_beams:
                done.add(value, token_ids[row].tolist(), ended=True)
            if len(running) == num_beams:
                break
        if done.settled(values[0], running[0][2], length):
            continue
        going.append(place)
        parents += [row for row, _, _ in running]
        tokens += [token for _, token, _ in running]
        kept += [value for _, _, value in running]
    device = scores.device
    return (
        going,
        torch.tensor(parents, dtype=torch.int64, device=device),
        torch.tensor(tokens, dtype=torch.int64, device=device),
        torch.tensor(kept, device=device).view(-1, num_beams),
    )


def _check(
    model: Blip,
    num_images: int,
    prompt_ids: list[int],
    decoding: config.Decoding,
    generators: Sequence[torch.Generator] | None,
) -> None:
    special = model.special
    if not prompt_ids or prompt_ids[0] not in (special.cls, special.dec):
        raise ValueError(
            f"the prompt must begin with [CLS] {special.cls} or [DEC] {special.dec}, "
            f"got {prompt_ids[:1]}"
        )
    if len(prompt_ids) >= decoding.max_length:
        raise ValueError(
            f"max_length {decoding.max_length} counts the prompt, "
            f"whose {len(prompt_ids)} tokens leave no room"
        )
    if decoding.max_length > model.config.text.max_positions:
        raise ValueError(
            f"max_length {decoding.max_length} is beyond the model's "
            f"{model.config.text.max_positions} positions"
        )
    if decoding.method == "nucleus" and len(generators or ()) != num_images:
        raise ValueError(f"nucleus sampling of {num_images} images needs as many generators")
