"""The answers about lineage as a person reads them in a terminal."""

from typing import NamedTuple

from blip.integrations.lineage.trees import (
    Checkpoint,
    Holding,
    ImageTree,
    Share,
    TextTree,
    Training,
    Tree,
    VersionRef,
    Written,
)

DIGITS = 12  # of a digest, enough to be asked for


class Node(NamedTuple):
    """A line and what hangs on it."""

    line: str
    children: "list[Node]"


def format_tree(answer: Tree | Written) -> str:
    """Give an answer as lines joined by branches."""
    if isinstance(answer, Written):
        return "\n".join(_lines(_written(answer)))
    lines = [line for image in answer.images for line in _lines(_image(image))]
    if answer.matches > len(answer.images):
        lines.append(f"… and {answer.matches - len(answer.images)} more images")
    return "\n".join(lines)


def _lines(node: Node) -> list[str]:
    lines = [node.line]
    for child in node.children:
        last = child is node.children[-1]
        first, *rest = _lines(child)
        lines.append(("└─ " if last else "├─ ") + first)
        lines += [("   " if last else "│  ") + line for line in rest]
    return lines


def _image(image: ImageTree) -> Node:
    texts = [_text(text) for text in image.texts]
    if not image.sources:
        return Node(f"image {image.key[:DIGITS]}  absent", texts)
    names = ", ".join(image.sources)
    size = f"{image.width} x {image.height} {image.extension}, {image.size:,} bytes"
    place = ", ".join(digest[:DIGITS] for digest in image.shards)
    children = [Node(f"shard {place}", []), Node(f"in {_versions(image.versions)}", []), *texts]
    return Node(f"image {image.key[:DIGITS]}  {names}  {size}", children)


def _text(text: TextTree) -> Node:
    children = []
    if text.writer:
        how = " with " + _decoding(text.decoding) if text.decoding else ""
        children.append(_checkpoint("written by ", text.writer, how))
    children += [_checkpoint("judged by ", judge) for judge in text.judges]
    children += [Node(_holding(holding), []) for holding in text.holdings]
    children += [Node(_training(training), []) for training in text.trained]
    return Node(f"“{text.text}”  {text.origin}  {text.caption_id[:DIGITS]}", children)


def _written(answer: Written) -> Node:
    root = _checkpoint("", answer.model)
    root.children.append(Node(f"wrote {_count(answer.written, 'text')}", []))
    root.children[-1].children.extend(
        Node(f"“{text}”  {caption_id[:DIGITS]}", []) for caption_id, text in answer.first
    )
    if answer.written > len(answer.first):
        rest = answer.written - len(answer.first)
        root.children[-1].children.append(Node(f"… and {rest:,} more", []))
    root.children.extend(Node(f"of them, {_share(share)}", []) for share in answer.holdings)
    root.children.extend(Node(f"judged {_share(share)}", []) for share in answer.judged)
    root.children.extend(Node(_training(training), []) for training in answer.trained)
    return root


def _checkpoint(verb: str, model: Checkpoint, how: str = "") -> Node:
    data = f", trained on {_versions(model.data)}" if model.data else ""
    line = f"{verb}{model.name} ({model.task}, {model.digest[:DIGITS]}){how}{data}"
    return Node(line, [_checkpoint("from ", model.parent)] if model.parent else [])


def _holding(holding: Holding) -> str:
    verdict = {True: "kept", False: "dropped", None: None}[holding.kept]
    parts = [verdict, holding.reason]
    for name, value in (("match", holding.itm_score), ("cosine", holding.itc_score)):
        parts.append(None if value is None else f"{name} {value:.3f}")
    parts.append(None if holding.threshold is None else f"threshold {holding.threshold:g}")
    said = ", ".join(part for part in parts if part)
    return f"in {_versions((holding.version,))}" + (f": {said}" if said else "")


def _training(training: Training) -> str:
    model = f"{training.model} ({training.digest[:DIGITS]})"
    return f"trained {model}, through {_versions(training.data)}"


def _share(share: Share) -> str:
    dropped = share.texts - share.kept
    return f"{_count(share.texts, 'text')} in {_versions((share.version,))}: {dropped:,} dropped"


def _decoding(decoding: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in decoding.items())


def _versions(versions: tuple[VersionRef, ...]) -> str:
    return ", ".join(f"{version.name} {version.digest[:DIGITS]}" for version in versions)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
