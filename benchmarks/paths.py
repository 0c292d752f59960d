"""The hot paths: for each, ours and the other ways to the same result."""

from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import inputs, plain, theirs
from benchmarks.inputs import ANSWERS, CAPTIONS, QUESTIONS, Size
from benchmarks.loader import build_loader
from benchmarks.measure import Case, Outcome, Way
from blip import config
from blip.batch import Batch
from blip.evaluate.retrieval import Judge, rerank
from blip.evaluate.vqa import encode_questions, rank_answers
from blip.models.device import Precision, autocast
from blip.models.generation import Decoder, beam_search, sample
from blip.models.matching import Texts, embed_texts, match_texts
from blip.models.med import Memory
from blip.objectives import Position
from blip.objectives.itm import Negatives
from blip.objectives.pretrain import PretrainObjective
from blip.train.optim import build_optimizer

PRETRAINING_LENGTH, RETRIEVAL_LENGTH = 30, 35  # tokens that the reference pads to
PAIRS_AT_ONCE = 8  # of 32, as evaluation takes 64 of 256 candidates: texts of about one length
CAPTION_LENGTH = 20  # tokens of every caption that is written, prompt included
Ways = Collection[str]
Builder = Callable[[Size, torch.device, Ways], Case]


def build_rerank(
    size: Size, device: torch.device, wanted: Ways, num_texts: int = 32, image_size: int = 384
) -> Case:
    """One image against some texts, image tokens given."""
    model = inputs.build_model(size, "matching", image_size, device)
    with torch.inference_mode():
        tokens = model.encode_image(inputs.draw_images(model, 1))
    ids, mask = inputs.draw_texts(model, num_texts, CAPTIONS, RETRIEVAL_LENGTH)
    texts = Texts(ids.cpu(), mask.cpu())

    @torch.inference_mode()
    def ours() -> Outcome:
        memory = model.project_images(tokens)
        rows = torch.arange(len(texts))
        return {"logits": match_texts(model, texts, rows, memory, None, PAIRS_AT_ONCE)}

    @torch.inference_mode()
    def plainly() -> Outcome:
        return {"logits": plain.match(model, ids, mask, tokens.repeat(len(ids), 1, 1))}

    ways = {"ours": Way(ours), "plain": Way(plainly)}
    if "transformers" in wanted:
        converted = theirs.load(model)
        grounded = plain.starting(ids, model.special.enc)

        @torch.inference_mode()
        def converted_way() -> Outcome:
            repeated = tokens.repeat(len(ids), 1, 1)
            return {"logits": theirs.match(converted, grounded, mask, repeated)}

        ways["transformers"] = Way(converted_way)
    path = f"re-rank, 1 image, {num_texts} captions of natural length, {image_size} px"
    return Case(path, ways, len(ids), "pairs", {"transformers": 6.0})


def build_beam(size: Size, device: torch.device, wanted: Ways, batch_size: int = 8) -> Case:
    """Captions by beam search, image tokens given."""
    decoding = _decoding("evaluate")
    return _build_captioning(size, device, wanted, decoding, batch_size, {"transformers": 3.0})


def build_nucleus(size: Size, device: torch.device, wanted: Ways, batch_size: int = 16) -> Case:
    """Captions by nucleus sampling as in CapFilt, image tokens given."""
    decoding = _decoding("capfilt")
    return _build_captioning(size, device, wanted, decoding, batch_size, {"transformers": 2.0})


def _decoding(section: str) -> config.Decoding:
    """Give a decoding of the paper's preset, but for captions of one length, whatever is written."""
    settings = config.Decoding.model_validate(inputs.preset(section)["decoding"])
    limits = {"min_length": CAPTION_LENGTH, "max_length": CAPTION_LENGTH}
    return settings.model_copy(update=limits)


def _build_captioning(
    size: Size,
    device: torch.device,
    wanted: Ways,
    decoding: config.Decoding,
    batch_size: int,
    targets: dict[str, float],
) -> Case:
    model = inputs.build_model(size, "captioning", 384, device)
    special = model.special
    with torch.inference_mode():
        tokens = model.encode_image(inputs.draw_images(model, batch_size))
    first = special.sep + 1
    prompt = torch.tensor([[special.dec, first, first + 1, first + 2]], device=device)
    draws = torch.rand(batch_size, CAPTION_LENGTH - prompt.shape[1]).to(device)
    beams = decoding.method == "beam"

    @torch.inference_mode()
    def ours() -> Outcome:
        memory = model.project_images(tokens, decoding.num_readers)
        if beams:
            captions = [ids for ids, _ in beam_search(model, memory, prompt, decoding)]
        else:
            captions = sample(model, memory, prompt, decoding, draws)
        return {"token ids": torch.tensor(captions)}

    @torch.inference_mode()
    def plainly() -> Outcome:
        if beams:
            ids = plain.beam_search(model, tokens, prompt, decoding)
        else:
            ids = plain.sample(model, tokens, prompt, decoding, draws)
        return {"token ids": ids.cpu()}

    ways = {"ours": Way(ours), "plain": Way(plainly)}
    if "transformers" in wanted:
        converted = theirs.load(model)
        chosen = None if beams else draws

        @torch.inference_mode()
        def converted_way() -> Outcome:
            ids = theirs.write(converted, tokens, prompt, decoding, special.sep, chosen)
            return {"token ids": ids.cpu()}

        ways["transformers"] = Way(converted_way)
    method = f"beam {decoding.num_beams}" if beams else "nucleus"
    path = f"captions, {method}, batch {batch_size}, {CAPTION_LENGTH} tokens, 384 px, image tokens given"
    return Case(path, ways, batch_size, "captions", targets)


def build_vqa(size: Size, device: torch.device, wanted: Ways, k: int = 128, count: int = 8) -> Case:
    """Questions and the ranking of their answers, image tokens given."""
    model = inputs.build_model(size, "vqa", 480, device)
    with torch.inference_mode():
        tokens = model.encode_image(inputs.draw_images(model, count))
    question_ids, question_mask = inputs.draw_texts(model, count, QUESTIONS)
    answer_ids, answer_mask = inputs.draw_texts(model, sum(ANSWERS.values()), ANSWERS)
    questions, answers = Texts(question_ids, question_mask), Texts(answer_ids, answer_mask)

    @torch.inference_mode()
    def ours() -> Outcome:
        ranked = rank_answers(model, encode_questions(model, tokens, questions), answers, k)
        return {"candidates": ranked.candidates, "scores": ranked.scores, "answers": ranked.best}

    @torch.inference_mode()
    def plainly() -> Outcome:
        ranked = plain.rank_answers(
            model, tokens, question_ids, question_mask, answer_ids, answer_mask, k
        )
        return {"candidates": ranked.candidates, "scores": ranked.scores, "answers": ranked.best}

    path = f"VQA, {k} of {len(answers):,} answers, {count} questions, 480 px, image tokens given"
    ways = {"ours": Way(ours), "plain": Way(plainly)}
    # A score sums the losses of up to 8 tokens, near 90 in all: 1e-5 relative.
    return Case(path, ways, count, "questions", {"plain": 5.0}, difference=relative)


def build_pretrain(batch_size: int, size: Size, device: torch.device, wanted: Ways) -> Case:
    """A pre-training step: forward, backward, update."""
    model = inputs.build_model(size, "pretrain", 224, device)
    settings = config.Pretrain.model_validate(inputs.preset("pretrain"))
    contrast = settings.contrast.model_copy(update={"queue_size": size.queue_size})
    objective = PretrainObjective(model, contrast).to(device)
    images = inputs.draw_images(model, batch_size)
    ids, mask = inputs.draw_texts(model, batch_size, CAPTIONS, PRETRAINING_LENGTH)
    numbers = torch.arange(batch_size, device=device)
    padded = Batch(images, ids, mask, numbers)
    batch = Batch(images, *inputs.cut(ids, mask), numbers)
    position = Position(1000, 1000)
    negatives = Negatives(numbers.roll(1), numbers.roll(-1))
    begun = {name: tensor.clone() for name, tensor in objective.contrast.state_dict().items()}
    parameters = [p for p in objective.parameters() if p.requires_grad]

    def ours(given: Negatives | None = None) -> Tensor:
        objective.begin_step()
        losses = objective(batch, position, given)
        parts = [losses.metrics["itc"], losses.metrics["itm"], losses.metrics["lm"]]
        objective.zero_grad(set_to_none=True)
        losses.total.backward()
        return torch.stack(parts)

    def plainly(given: Negatives | None = None) -> Tensor:
        losses = plain.pretraining_losses(objective, padded, position, given)
        objective.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def check(step: Callable[[Negatives], Tensor]) -> Outcome:
        objective.contrast.load_state_dict(begun)
        objective.eval()  # without dropout, so that there is one result
        losses = step(negatives)
        names = (name for name, p in objective.named_parameters() if p.grad is not None)
        gradients = {f"gradient of {name}": objective.get_parameter(name).grad for name in names}
        return {"losses": losses} | {n: g.clone() for n, g in gradients.items() if g is not None}

    def update(step: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Outcome:
        objective.train()
        losses = step()
        optimizer.step()
        return {"losses": losses}

    rate = settings.optimizer.model_copy(update={"lr": settings.optimizer.min_lr})
    ways = {
        "ours": Way(partial(update, ours, build_optimizer(objective, rate)), partial(check, ours)),
        "plain": Way(
            partial(update, plainly, torch.optim.AdamW(parameters, rate.lr, foreach=False)),
            partial(check, plainly),
        ),
    }
    path = f"pre-training step, batch {batch_size}, captions of natural length, 224 px"
    return Case(path, ways, batch_size, "pairs", {"plain": 1.5}, difference=relative)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Give the norm of the difference over the norm; both zero is equal."""
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


def build_retrieval(scale: float, size: Size, device: torch.device, wanted: Ways) -> Case:
    """The evaluation of 1,000 images and 5,000 texts, 256 candidates, by a model as the demo's."""
    small = config.Model.model_validate(config.read_yaml(config.PRESETS / "demo.yaml")["model"])
    demo = Size("demo", small, 398, 1, 256, 0.05)
    model = inputs.build_model(demo, "retrieval", 64, device)
    num_images = max(round(1000 * scale), 2)
    k = max(round(256 * scale), 1)
    images = inputs.draw_images(model, num_images)
    # The demo's texts may have 64 tokens: 35 fit.
    ids, mask = inputs.draw_texts(model, 5 * num_images, CAPTIONS, RETRIEVAL_LENGTH)
    texts = Texts(ids.cpu(), mask.cpu())
    batch_size = 64

    def judges() -> Iterator[Judge]:
        def judge(memory: Memory, rows: NDArray[np.int64]) -> NDArray[np.float32]:
            logits = match_texts(model, texts, torch.from_numpy(rows), memory, None, batch_size)
            matched: NDArray[np.float32] = logits[:, 1].cpu().numpy()
            return matched

        for batch in torch.split(images, batch_size):
            memory = model.project_images(model.encode_image(batch))
            for image in range(len(batch)):
                yield partial(judge, memory.select(slice(image, image + 1)))

    @torch.inference_mode()
    def ours() -> Outcome:
        encoded = (model.encode_image(batch) for batch in torch.split(images, batch_size))
        embeds = torch.cat([model.embed_image(tokens) for tokens in encoded])
        found = rerank(embeds, embed_texts(model, texts, batch_size), k, judges())
        of_images, image_scores, of_texts, text_scores = found
        rows = torch.full((num_images, len(texts)), plain.NOT_RANKED)
        rows.scatter_(1, torch.from_numpy(of_images.indices), torch.from_numpy(image_scores))
        columns = torch.full((len(texts), num_images), plain.NOT_RANKED)
        columns.scatter_(1, torch.from_numpy(of_texts.indices), torch.from_numpy(text_scores))
        return {"scores of images": rows, "scores of texts": columns}

    @torch.inference_mode()
    def plainly() -> Outcome:
        rows, columns = plain.evaluate_retrieval(model, images, ids, mask, k, batch_size)
        return {"scores of images": rows.cpu(), "scores of texts": columns.cpu()}

    path = (
        f"retrieval, {num_images:,} images, {len(texts):,} texts, {k} candidates, the demo's model"
    )
    ways = {"ours": Way(ours), "plain": Way(plainly)}
    targets = {"plain": 6.0} if scale == 1.0 else {}
    return Case(path, ways, num_images, "images", targets, of_ranked, most_repeats=1)


def of_ranked(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference of scores that both have.

    The last candidate may be another where two are as similar as rounding tells: one in a thousand
    queries at most.
    """
    lone = (ours == plain.NOT_RANKED) != (theirs == plain.NOT_RANKED)
    if int(lone.sum()) > 2 * max(len(ours) // 1000, 1):
        return float("inf")
    return (ours - theirs).masked_fill(lone, 0.0).abs().max().item()


def build_bf16(size: Size, device: torch.device, wanted: Ways) -> Case:
    """The image encoder in 16 bits, compiled where there is a GPU."""
    on_gpu = device.type == "cuda"
    model = inputs.build_model(size, "features", 384, device)
    images = inputs.draw_images(model, 64 if on_gpu else 4)
    compiled = torch.compile(model.vision, mode="max-autotune") if on_gpu else model.vision

    @torch.inference_mode()
    def encode(vision: Callable[[Tensor], Tensor], bf16: bool) -> Outcome:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return {"image tokens": vision(images).float()}

    eager = partial(encode, model.vision, True)
    ways = {
        "ours": Way(
            partial(encode, compiled, True), eager if on_gpu else None, dtype=torch.bfloat16
        )
    }
    if on_gpu:
        ways["eager"] = Way(eager, dtype=torch.bfloat16)
    ways["fp32"] = Way(partial(encode, model.vision, False))
    how = "bf16, compiled" if on_gpu else "bf16"
    path = f"image encoder, {how}, {size.name}, batch {len(images)}, 384 px"
    return Case(path, ways, len(images), "images", difference=relative, tolerance=None)


def build_bf16_captions(size: Size, device: torch.device, wanted: Ways) -> Case:
    """Captions by nucleus sampling in 16 bits, images encoded."""
    decoding, batch_size = _decoding("capfilt"), 16
    model = inputs.build_model(size, "captioning", 384, device)
    images = inputs.draw_images(model, batch_size)
    prompt = torch.tensor([[model.special.dec]], device=device)
    draws = torch.rand(batch_size, CAPTION_LENGTH - 1).to(device)

    @torch.inference_mode()
    def write(precision: Precision) -> Outcome:
        with autocast(device, precision):
            memory = model.project_images(model.encode_image(images), decoding.num_readers)
            return {"ids": torch.tensor(sample(model, memory, prompt, decoding, draws))}

    @torch.inference_mode()
    def begin(precision: Precision) -> Outcome:
        with autocast(device, precision):
            memory = model.project_images(model.encode_image(images), decoding.num_readers)
            return {"logits": Decoder(model, memory, 1).read(prompt.expand(batch_size, -1))}

    ways = {
        "ours": Way(partial(write, "bf16"), partial(begin, "bf16"), torch.bfloat16),
        "fp32": Way(partial(write, "fp32"), partial(begin, "fp32")),
    }
    path = f"captions, nucleus, bf16, batch {batch_size}, {CAPTION_LENGTH} tokens, 384 px"
    return Case(path, ways, batch_size, "captions", difference=relative, tolerance=None)


def build_input(size: Size, device: torch.device, wanted: Ways) -> Case:
    """500-px JPEGs as pre-training reads them, on the CPU."""
    from benchmarks import photos  # torchvision takes seconds to import

    augmentation = config.Pretrain.model_validate(inputs.preset("pretrain")).augmentation
    calm = augmentation.model_copy(update={"randaugment": False})
    files = inputs.draw_photos(64)

    def run(read: photos.Reader, chosen: config.Augmentation) -> Outcome:
        rngs = [np.random.default_rng(number) for number in range(len(files))]
        return {"images": read(files, chosen, rngs)}

    ways = {
        name: Way(partial(run, read, augmentation), partial(run, read, calm))
        for name, read in (("ours", photos.read_ours), ("torchvision", photos.read_torchvision))
    }
    path = "input, 500-px JPEG, crop 0.2-1.0, flip, RandAugment(2, 5), 224 px"
    return Case(
        path, ways, len(files), "images", {"torchvision": 2.5}, photos.mean_levels, tolerance=0.5
    )


PATHS: dict[str, Builder] = {
    "rerank": build_rerank,
    "beam": build_beam,
    "nucleus": build_nucleus,
    "vqa": build_vqa,
    "pretrain8": partial(build_pretrain, 8),
    "pretrain16": partial(build_pretrain, 16),
    "retrieval": partial(build_retrieval, 1.0),
    "input": build_input,
    "loader": partial(build_loader, False),
    "loader_s3": partial(build_loader, True),
    "bf16": build_bf16,
    "bf16_captions": build_bf16_captions,
}
