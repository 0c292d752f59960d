"""METEOR and SPICE, by the Java programs that the published scores were made with.

pycocoevalcap brings them; this runs them as it does. What a machine lacks for one is told in a
sentence (`meteor_lacks`, `spice_lacks`), and is no error.

Sources: Denkowski & Lavie 2014 (METEOR 1.5, English, its `rank` parameters); Anderson et al. 2016
(SPICE 1.0).
"""

import json
import logging
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip.errors import DataError

Floats = NDArray[np.float64]

log = logging.getLogger(__name__)

MATCHERS = 4  # of METEOR: equal words, equal stems, synonyms, paraphrases
METEOR_COUNTS = 4 + 4 * MATCHERS + 3
_LENGTHS, _CHUNKS, _MATCHED = slice(0, 2), METEOR_COUNTS - 3, slice(METEOR_COUNTS - 2, None)

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of the matchers

_METEOR_JAR = Path("meteor", "meteor-1.5.jar")
_PARAPHRASES = Path("meteor", "data", "paraphrase-en.gz")
_SPICE_JAR = Path("spice", "spice-1.0.jar")
_PARSERS = [Path("spice", "lib", f"stanford-corenlp-3.6.0{part}.jar") for part in ("", "-models")]


def meteor_lacks() -> str | None:
    """Say what METEOR needs and is not here, and how to get it; None where it can be computed."""
    return _lacks("METEOR", [_METEOR_JAR, _PARAPHRASES])


def spice_lacks() -> str | None:
    """Say what SPICE needs and is not here, and how to get it; None where it can be computed."""
    found = _lacks("SPICE", [_SPICE_JAR])
    if found:
        return found
    missing = [path for path in map(_home().joinpath, _PARSERS) if not path.is_file()]
    if missing:
        return (
            f"SPICE needs {' and '.join(path.name for path in missing)} in {missing[0].parent}: "
            "`python -m pycocoevalcap.spice.get_stanford_models` fetches them (0.5 GB, from "
            "nlp.stanford.edu)"
        )
    return None


def computable() -> list[str]:
    """Name which of the two can be computed here."""
    lacks = {"meteor": meteor_lacks(), "spice": spice_lacks()}
    return [metric for metric, lack in lacks.items() if not lack]


def meteor_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Count what METEOR matches in tokenised captions, each with the reference that fits it best.

    Give (N, 23): tokens of caption and reference, and those of them that are function words; for
    each matcher the content words that matched in either, and the function words; the chunks, none
    where the two match as a whole; the matched words of either. Counts of images add up to those of
    a corpus.

    Raises:
        DataError: The program failed; its own last words are in the message.
    """
    lines = "".join(
        " ||| ".join(["SCORE", *own, hypothesis.replace("|||", "").replace("  ", " ")]) + "\n"
        for hypothesis, own in zip(hypotheses, references, strict=True)
    )
    jar = _home() / _METEOR_JAR
    command = ["-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar.name]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    answer = _run("METEOR", command, jar.parent, lines)
    rows = [[float(number) for number in line.split()] for line in answer.splitlines()]
    if [len(row) for row in rows] != [METEOR_COUNTS] * len(hypotheses):
        raise DataError(
            f"METEOR answered {len(rows)} lines for {len(hypotheses)} captions, the last one "
            f"{answer[-200:]!r}: run `java -jar {jar}` to see what is wrong with it"
        )
    counts = np.array(rows, dtype=np.float64).reshape(-1, METEOR_COUNTS)
    # The program answers one chunk for these, which it counts neither alone nor in a sum.
    whole = (counts[:, _CHUNKS] == 1) & (counts[:, _MATCHED] == counts[:, _LENGTHS]).all(axis=1)
    counts[whole, _CHUNKS] = 0
    return counts


def meteor(counts: Floats) -> Floats:
    """Give METEOR of counts (..., 23): a weighted harmonic mean, less a penalty for disorder."""
    lengths, functions = counts[..., _LENGTHS], counts[..., 2:4]  # (..., caption and reference)
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], MATCHERS, 2, 2)  # content, function
    shares = np.array([_DELTA, 1 - _DELTA])
    weighted = np.einsum("...mks,m,k->...s", matches, _WEIGHTS, shares)
    total = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
    precision, recall = np.moveaxis(_divide(weighted, total), -1, 0)
    mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    disorder = _divide(counts[..., _CHUNKS], counts[..., _MATCHED].mean(axis=-1))
    scores: Floats = mean * (1 - _GAMMA * disorder**_BETA)
    return scores


def spice(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Give SPICE of tokenised captions (N), the F-measure over all that their scene graphs say.

    Raises:
        DataError: The program failed, or gave a caption no score.
    """
    jar = _home() / _SPICE_JAR
    pairs = zip(hypotheses, references, strict=True)
    asked = [
        {"image_id": image, "test": hypothesis, "refs": list(own)}
        for image, (hypothesis, own) in enumerate(pairs)
    ]
    with tempfile.TemporaryDirectory() as folder:
        question, answer, cache = (Path(folder, name) for name in ("in.json", "out.json", "cache"))
        question.write_text(json.dumps(asked), encoding="utf-8")
        cache.mkdir()
        command: list[str | Path] = ["-Xmx8G", "-jar", jar.name, question]
        command += ["-cache", cache, "-out", answer, "-subset", "-silent"]
        _run("SPICE", command, jar.parent, "")
        found = json.loads(answer.read_text(encoding="utf-8"))
    return read_spice(found, len(hypotheses))


def read_spice(found: Sequence[dict[str, object]], count: int) -> Floats:
    """Give the scores (N) in what SPICE wrote.

    Raises:
        DataError: One is missing or no number.
    """
    scores = np.full(count, math.nan)
    for item in found:
        scores[item["image_id"]] = item["scores"]["All"]["f"]  # type: ignore[index,call-overload]
    unscored = np.flatnonzero(np.isnan(scores))
    if len(unscored):
        raise DataError(
            f"SPICE gave no score to {len(unscored)} of {count} captions, the first is number "
            f"{unscored[0] + 1}: mend that caption, or let PATH name no Java to do without"
        )
    return scores


def _lacks(metric: str, files: Sequence[Path]) -> str | None:
    if shutil.which("java") is None:
        return f"{metric} needs Java, and there is no `java` on PATH: install a Java runtime"
    module = find_spec("pycocoevalcap")
    if module is None or not all((_home() / path).is_file() for path in files):
        return f"{metric} needs pycocoevalcap: pip install 'blip-platform[metrics]'"
    return None


def _home() -> Path:
    """Give the folder of pycocoevalcap, without importing it."""
    module = find_spec("pycocoevalcap")
    assert module is not None, "ask what is lacking first"
    assert module.submodule_search_locations, "pycocoevalcap is a package"
    return Path(module.submodule_search_locations[0])


def _run(metric: str, arguments: Sequence[str | Path], folder: Path, text: str) -> str:
    """Run Java in a folder, and give what it says."""
    log.info("%s: running Java", metric)
    done = subprocess.run(
        ["java", *arguments], cwd=folder, input=text.encode(), capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise DataError(
            f"{metric}: Java ended with {done.returncode} and said {said[-1]!r:.300}: see that there "
            "is memory enough (METEOR takes 2 GB, SPICE 8 GB, and wants Java 8), or let PATH name no "
            "Java to do without"
        )
    return done.stdout.decode()


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
