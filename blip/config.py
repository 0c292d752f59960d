"""Every knob of an experiment, on one page: `params.yaml` read, checked and frozen.

There are no defaults here. A preset (`blip/presets/*.yaml`) and so a `params.yaml` is always complete, so that
what ran is what the file says. Numbers of the paper: BLIP.md sections 1-5; Li et al. 2022, sections 4-5.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from blip.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Noise(Section):
    """Share of the web alt-texts of the demo world that are wrong, by kind of noise."""

    mismatch: Fraction
    colour: Fraction
    shape: Fraction
    count: Fraction
    relation: Fraction
    boilerplate: Fraction
    truncated: Fraction

    @model_validator(mode="after")
    def _shares(self) -> "Noise":
        total = sum(self.model_dump().values())
        if total > 1.0:
            raise ValueError(f"the shares add up to {total:.3f}, more than 1: lower one of them")
        return self


def _check_heads(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")


class World(Section):
    """The demo world: drawn scenes that stand in for photos where there are none."""

    seed: int
    image_size: Positive
    web: Positive
    human: Positive
    test: Positive
    captions_per_image: Positive
    noise: Noise


class Source(Section):
    """Where the pairs of one split come from.

    `annotations` is a file of the named format; `images` a folder or a tar that its image names are relative to.
    `split` (optional) is a file that lists the image names to keep, one a line; `limit` keeps the first records.
    `mismatch` gives that share of images the caption of another image: web noise for collections that have none.
    """

    format: Literal["blip", "coco", "csv", "tsv", "parquet", "flickr8k"]
    annotations: str
    images: str
    origin: Literal["web", "human"]
    split: str | None
    skip: Count
    limit: Positive | None
    captions_per_image: Positive | None
    mismatch: Fraction


class Ingest(Section):
    """Rules for taking records in; what breaks one goes to quarantine with a reason."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Source]
    shard_size: Positive
    min_side: Positive
    max_pixels: Positive
    min_words: Positive
    max_words: Positive
    max_quarantined: Fraction


class Validate(Section):
    """Limits of the gate between ingestion and training, checked on the catalogue."""

    caption_characters: tuple[Positive, Positive]
    captions_per_image: tuple[Positive, Positive]
    image_side: tuple[Positive, Positive]
    max_duplicate_captions: Fraction
    max_count_drift: Rate
    max_length_drift: Rate


class Tokenizer(Section):
    """WordPiece vocabulary: `train` builds one from the captions; else a vocab.txt, or a hub name."""

    vocabulary: str
    size: Positive


class Vision(Section):
    """The ViT image encoder (BLIP.md 1.2); its input size is that of the stage that trains it."""

    patch_size: Positive
    width: Positive
    num_layers: Positive
    num_heads: Positive
    drop_path: Fraction
    checkpoint_layers: Count

    @model_validator(mode="after")
    def _divides(self) -> "Vision":
        _check_heads(self.width, self.num_heads)
        return self


class Text(Section):
    """The mixture of encoder and decoder, MED (BLIP.md 1.3)."""

    width: Positive
    num_layers: Positive
    num_heads: Positive
    intermediate: Positive
    max_positions: Positive
    dropout: Fraction

    @model_validator(mode="after")
    def _divides(self) -> "Text":
        _check_heads(self.width, self.num_heads)
        return self


class Model(Section):
    """Sizes of a BLIP model, and where the first weights of pre-training come from (`null`: random).

    `vision_weights` is a file or folder of a timm ViT or the name of one, `text_weights` that of a BERT, whose
    vocabulary `tokenizer.vocabulary` must then name.
    """

    vision: Vision
    text: Text
    embed_size: Positive
    init_std: Annotated[float, Field(gt=0)]
    vision_weights: str | None
    text_weights: str | None


class Optimizer(Section):
    """AdamW and its learning rate over the run (BLIP.md 2.2, 5).

    The rate rises linearly from `warmup_lr` to `lr` over `warmup_steps`; then `cosine` falls to `min_lr` at the last
    step, `cosine_by_epoch` along the same wave once an epoch, as the reference does, `exponential` multiplies by
    `decay_rate` at every epoch, `constant` stays. `decay_all` puts weight decay on
    biases, norms and the temperature too, as the reference does. `clip_norm` 0 means no clipping.
    """

    lr: Rate
    min_lr: Rate
    warmup_lr: Rate
    warmup_steps: Count
    schedule: Literal["cosine", "cosine_by_epoch", "exponential", "constant"]
    decay_rate: Fraction
    weight_decay: Rate
    decay_all: bool
    betas: tuple[Fraction, Fraction]
    eps: Annotated[float, Field(gt=0)]
    clip_norm: Rate


class Augmentation(Section):
    """Training transforms of the images (BLIP.md 2.3)."""

    crop_scale: tuple[Fraction, Fraction]
    flip: Fraction
    randaugment: bool


class HeldOut(Section):
    """Evaluation while training, on the pairs that `--validation` names, which are not learnt from.

    Every `every` steps, the means of the losses and of what else is logged are taken over `batches` batches. The model
    that is written is the one with the best `metric` (`loss`, `loss_itm`, `itm_accuracy`, ...), the `lowest` or the
    `highest`; after `patience` evaluations without a better one training ends (0: never early).
    """

    every: Positive
    batches: Positive
    metric: str
    best: Literal["lowest", "highest"]
    patience: Count


class Training(Section):
    """What every training stage shares: length, batch, optimizer, loader, checkpoints.

    The length is `steps` or `epochs` over the pairs, one of them. `batch_size` counts the pairs of a step in all
    processes; each computes its part in `accumulate` pieces, one after the other. `precision` is the autocast type.
    `checkpoint_text` last layers of the text stacks are computed again for the gradient instead of kept; `compile`
    compiles the encoders. `ema_decay` averages the weights, and the average is what is evaluated and written (null: the
    weights themselves are). `sharding`: under torchrun every process holds the whole model (`ddp`) or a part (`fsdp`).
    `keep_checkpoints` is how many of the newest are kept: two, so that one stays if the last is damaged.
    """

    steps: Positive | None
    epochs: Positive | None
    batch_size: Positive
    accumulate: Positive
    image_size: Positive
    max_tokens: Positive
    max_words: Positive
    optimizer: Optimizer
    augmentation: Augmentation
    precision: Literal["fp32", "bf16", "fp16"]
    checkpoint_text: Count
    compile: bool
    sharding: Literal["ddp", "fsdp"]
    ema_decay: Fraction | None
    held_out: HeldOut | None
    num_workers: Count
    checkpoint_every: Positive
    keep_checkpoints: Positive
    log_every: Positive

    @model_validator(mode="after")
    def _one_length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, and null for the other")
        return self

    @model_validator(mode="after")
    def _engine(self) -> "Training":
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} is more than batch_size {self.batch_size}: lower it"
            )
        if self.sharding == "fsdp" and (self.precision == "fp16" or self.compile):
            raise ValueError("sharding fsdp goes with fp32 and bf16, without compile")
        return self


class OriginWeights(Section):
    """How many times an epoch sees a text, on average, by who wrote it."""

    web: Rate
    human: Rate
    synthetic: Rate


class Pairs(Section):
    """How the pairs of dataset versions are read.

    The shards of an epoch are read in a random order, `shuffle_shards` at a time, the pairs of these mixed; as many
    again are fetched ahead. `epoch_splits` spreads a collection over several epochs: with `{laion: 5}` each sees
    another fifth of its shards (BLIP.md 2.4). A dataset version is a collection of its name; in one made from a folder
    of annotations, each file of the folder is. Up to `max_bad_records` images that cannot be decoded are passed over by
    each process.
    """

    shuffle_shards: Positive
    origin_weights: OriginWeights
    epoch_splits: dict[str, Annotated[int, Field(gt=0, le=100)]]
    max_bad_records: Count


class Contrast(Section):
    """Image-text contrast and matching: the momentum twin, the queue, soft targets (BLIP.md 2.1, 5.1).

    `alpha` is the weight of the soft targets, reached linearly over `alpha_ramp_epochs`. `uniform_negatives` steps
    draw ITM negatives uniformly before the similarity-weighted draw begins (0 in the paper's settings): the remedy
    for an ITM loss that stays at 0.63.
    """

    momentum: Fraction
    queue_size: Positive
    alpha: Fraction
    alpha_ramp_epochs: Rate
    temperature: Annotated[float, Field(gt=0)]
    uniform_negatives: Count


class Pretrain(Training):
    """Pre-training with ITC, ITM and LM (BLIP.md 2)."""

    pairs: Pairs
    contrast: Contrast


class FinetuneCaptioning(Training):
    """The captioner: LM loss with a prompt (BLIP.md 5.2)."""

    pairs: Pairs
    prompt: str
    label_smoothing: Fraction


class FinetuneRetrieval(Training):
    """The filter and the retrieval model: ITC and ITM with id-aware targets (BLIP.md 5.1)."""

    pairs: Pairs
    contrast: Contrast
    negative_all_rank: bool


PairTraining = Pretrain | FinetuneCaptioning | FinetuneRetrieval
"""The stages that learn from dataset versions."""


class FinetuneVqa(Training):
    """VQA: LM loss on the answers, weighted by who gave them (BLIP.md 5.3).

    `max_tokens` and `max_words` are those of a question; an answer is taken whole.
    """

    label_smoothing: Fraction
    drop_path: Fraction


class FinetuneNlvr(Training):
    """NLVR2: is a statement about two images true? (BLIP.md 5.4)."""

    drop_path: Fraction


class Finetune(Section):
    """Fine-tuning by task; CapFilt needs the first two, `null` is a task that the experiment does not have."""

    captioning: FinetuneCaptioning
    retrieval: FinetuneRetrieval
    vqa: FinetuneVqa | None
    nlvr: FinetuneNlvr | None


class Decoding(Section):
    """How captions are written (BLIP.md 3, 5.2). Lengths count the prompt's tokens, as in the reference.

    `length_rule` says what beam search divides a sum of log-probabilities by: `reference` the length with the prompt
    and without the end, `transformers` the length without the prompt and with the end.
    """

    method: Literal["greedy", "beam", "nucleus"]
    num_beams: Positive
    top_p: Fraction
    top_k: Count
    repetition_penalty: Annotated[float, Field(ge=1.0)]
    length_rule: Literal["reference", "transformers"]
    min_length: Count
    max_length: Positive
    batch_size: Positive

    @property
    def num_readers(self) -> int:
        """Tokens that read one image at most: those of all its beams."""
        return self.max_length * (self.num_beams if self.method == "beam" else 1)


class CapFilt(Section):
    """Captioning and filtering (Li et al. 2022, section 3.3): keep a text if its match is above `threshold`.

    `precision` is the autocast type in which captions are written and judged. `keep` names what may enter the
    bootstrapped corpus: both, only filtered web texts, or only synthetic ones beside all web texts (the paper's
    ablation, table 1).
    """

    decoding: Decoding
    precision: Literal["fp32", "bf16"]
    score_batch_size: Positive
    threshold: Fraction
    keep: Literal["both", "filter", "captioner"]


class Evaluate(Section):
    """Benchmarks of a checkpoint and the bootstrap of their intervals; `precision` is the autocast type."""

    k: Positive
    batch_size: Positive
    precision: Literal["fp32", "bf16"]
    decoding: Decoding
    truth: str | None
    bootstrap_samples: Positive
    confidence: Fraction


class Config(Section):
    """A whole experiment.

    `threads` is the number of CPU threads of one stage, fixed so that results do not depend on where the stage ran.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    seed: Count
    threads: Positive
    world: World | None
    ingest: Ingest
    validate_: Annotated[Validate, Field(alias="validate")]
    tokenizer: Tokenizer
    model: Model
    pretrain: Pretrain
    finetune: Finetune
    capfilt: CapFilt
    evaluate: Evaluate

    @model_validator(mode="after")
    def _patches(self) -> "Config":
        patch = self.model.vision.patch_size
        finetune = self.finetune
        for training in (
            self.pretrain,
            finetune.captioning,
            finetune.retrieval,
            finetune.vqa,
            finetune.nlvr,
        ):
            if training and training.image_size % patch:
                raise ValueError(
                    f"image_size {training.image_size} is not a multiple of patch_size {patch}"
                )
        return self


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a `params.yaml` or preset, apply dotted overrides, expand `${NAME}` in strings, and check the whole.

    Args:
        path: A complete experiment in YAML.
        overrides: Dotted keys and their values, e.g. `{"capfilt.threshold": 0.7}`.

    Raises:
        ConfigError: The file cannot be read or parsed, a key is unknown or a value breaks its rule.
    """
    return check_config(merge(read_yaml(path), overrides or {}, path), path)


def check_config(document: Mapping[str, Any], path: Path) -> Config:
    """Expand `${NAME}` in the strings of a document and check it as a whole; `path` is named in errors."""
    try:
        return Config.model_validate(_expand(document, path))
    except ValidationError as error:
        lines = [
            f"{path}: {_dotted(e['loc'])}: {e['msg']} (got {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None


def dump_config(config: Config) -> dict[str, Any]:
    """Give the plain document of a config, as `params.yaml` holds it."""
    return config.model_dump(mode="json", by_alias=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: The file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is safe
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must hold a mapping, got {type(document).__name__}")
    return document


class _Loader(yaml.SafeLoader):
    """YAML where no key may stand twice: the first value would be lost unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def merge(document: Mapping[str, Any], overrides: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Set dotted keys in a copy of a document.

    Raises:
        ConfigError: A key names nothing in the document (a misspelt override must not pass silently).
    """
    merged: dict[str, Any] = _copy(document)
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        node: Any = merged
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            raise ConfigError(f"{path}: no key {dotted!r} to override{_suggest(dotted, merged)}")
        node[leaf] = value
    return merged


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Turn `["a.b=1"]` into `{"a.b": 1}`; values are YAML.

    Raises:
        ConfigError: An item without `=`, or whose value is not YAML.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {assignment!r} is not of the form key=value")
        try:
            overrides[key.strip()] = _number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise ConfigError(f"override {assignment!r}: the value is not YAML") from None
    return overrides


def _number(value: Any) -> Any:
    """Read 1e-4 as a number, which YAML 1.1 takes for a string."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _copy(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _copy(value) for key, value in node.items()}
    return node


def _expand(node: Any, path: Path) -> Any:
    if isinstance(node, Mapping):
        return {key: _expand(value, path) for key, value in node.items()}
    if not isinstance(node, str):
        return node

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{path}: {node!r} needs the environment variable {name}: set it")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, node)


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "(whole file)"


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return []
    found = []
    for key, value in node.items():
        found += [prefix + str(key), *_keys(value, f"{prefix}{key}.")]
    return found


def _suggest(dotted: str, document: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(dotted, _keys(document), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
