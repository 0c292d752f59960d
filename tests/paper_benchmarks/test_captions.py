import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from blip.benchmarks import coco_captions, nocaps
from blip.benchmarks.coco_captions import (
    all_statistics,
    evaluate_coco_captions,
    read_captions,
    read_references,
    score_coco_captions,
    score_images,
)
from blip.benchmarks.nocaps import evaluate_nocaps, read_annotations, score_nocaps
from blip.config import Config
from blip.errors import DataError
from blip.evaluate.captioning import write_captions
from blip.evaluate.evaluation_set import open_evaluation_set
from blip.files import read_json
from blip.metrics import java
from blip.tracker import NullTracker
from tests.paper_benchmarks.conftest import Keeper

REFERENCES = {
    7: ["a red dog on a mat", "the dog"],
    3: ["two cats sleep"],
    12: ["a man rides a bike", "a bird"],
}
CAPTIONS = {3: "two cats", 12: "a man on a bike", 7: "a dog on the mat"}


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of what is around the two programs need not wait for them."""
    monkeypatch.setattr(java, "meteor_lacks", lambda: "METEOR needs Java")
    monkeypatch.setattr(java, "spice_lacks", lambda: "SPICE needs Java")


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def coco(references: dict[int, list[str]], **fields: object) -> dict[str, object]:
    """Give references in COCO's format."""
    return {
        "images": [{"id": image, **fields} for image in references],
        "annotations": [
            {"image_id": image, "id": number, "caption": text}
            for image, own in references.items()
            for number, text in enumerate(own)
        ],
    }


def rows(captions: dict[int, str]) -> list[dict[str, object]]:
    return [{"image_id": image, "caption": text} for image, text in captions.items()]


@pytest.mark.parametrize(
    "document",
    [
        coco(REFERENCES),
        [{"image_id": image, "caption": own} for image, own in REFERENCES.items()],
        [
            {"image": f"val2014/COCO_val2014_{image:012}.jpg", "caption": own}
            for image, own in REFERENCES.items()
        ],
        [{"image": f"{image:012}.jpg", "caption": own} for image, own in REFERENCES.items()],
    ],
)
def test_references_are_read_from_every_format(document: object, tmp_path: Path) -> None:
    found = read_references(write(tmp_path / "references.json", document))
    assert list(found.items()) == list(REFERENCES.items())


def test_photos_that_coco_did_not_number_are_known_by_their_names(tmp_path: Path) -> None:
    document = [{"image": "flickr30k-images/1007129816.jpg", "caption": ["a man"]}]
    path = write(tmp_path / "references.json", document)
    assert read_references(path) == {"1007129816.jpg": ["a man"]}


def test_official_annotations_are_read(shared: Path) -> None:
    folder = shared / "data/coco_karpathy"
    for split in ("val", "test"):
        official = read_references(folder / f"coco_karpathy_{split}_gt.json")
        assert len(official) == 5000
        assert official == read_references(folder / f"coco_karpathy_{split}.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"images": []}, "annotations is None, it must be list"),
        ({"images": [{"id": "7"}], "annotations": []}, "image 1: id is '7', it must be int"),
        ({"images": [{"id": 7}, {"id": 7}], "annotations": []}, "image 2: id 7 stands twice"),
        (
            {"images": [{"id": 7}], "annotations": [{"image_id": 8, "caption": "a"}]},
            "annotation 1: image_id 8 is not among the images",
        ),
        (
            {"images": [{"id": 7}], "annotations": [{"image_id": 7, "caption": None}]},
            "annotation 1: caption is None, it must be str",
        ),
        ({"images": [{"id": 7}], "annotations": []}, "without a caption: 7"),
        ({"images": [], "annotations": []}, "has no caption to compare with"),
        ([{"image_id": 7, "caption": []}], "record 1: caption is [], it must be texts"),
        ([{"image_id": 7, "caption": [1]}], "record 1: caption is [1], it must be texts"),
        ([{"image_id": 7, "caption": ["a"]}, {"image": "b.jpg"}], "record 2: image_id is None"),
        ([{"image_id": 7, "caption": ["a"]}] * 2, "7 stands more than once"),
    ],
)
def test_bad_references_are_named(document: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_references(write(tmp_path / "references.json", document))
    assert message in str(raised.value)
    assert "references.json" in str(raised.value)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (rows(CAPTIONS)[:2], "7 has no prediction"),
        (rows({**CAPTIONS, 9: "a", 10: "b"}), "9, 10 is not in"),
        (rows(CAPTIONS) + rows({3: "again"}), "3 stands more than once"),
        ([{"image_id": 3.5, "caption": "a"}], "record 1: image_id is 3.5, it must be int or str"),
        ([{"image_id": 3, "caption": None}], "record 1: caption is None, it must be str"),
        ([{"image_id": 3, "caption": "a \ud83d"}], "record 1: caption is 'a \\ud83d', it must be"),
        ({"captions": []}, "record 1: is not JSON"),
    ],
)
def test_bad_captions_are_named(captions: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", captions)
    with pytest.raises(DataError) as raised:
        read_captions(path, REFERENCES, Path("references.json"))
    assert message in str(raised.value)


def test_captions_are_scored_in_the_order_of_the_references(config: Config, tmp_path: Path) -> None:
    predictions = write(tmp_path / "captions.json", rows(CAPTIONS))
    annotations = write(tmp_path / "references.json", coco(REFERENCES))
    score_coco_captions(config, predictions, annotations, tmp_path, NullTracker())
    table = pq.read_table(tmp_path / "per_example.parquet")
    assert table["key"].to_pylist() == ["7", "3", "12"]
    assert table["caption"].to_pylist() == [CAPTIONS[image] for image in REFERENCES]
    found = read_json(tmp_path / "metrics.json")["captioning"]
    assert found["images"] == 3
    assert found["references"] == 5
    assert {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"} < found.keys()
    assert found["cider"]["value"] == pytest.approx(100 * np.mean(table["cider"].to_numpy()))
    assert "meteor" not in found
    assert "spice" not in found


def test_what_java_gives_is_among_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.zeros((3, java.METEOR_COUNTS))
    counts[:, :8] = [6, 5, 3, 2, 2, 2, 1, 1]
    counts[:, 20:] = [2, 3, 3]
    monkeypatch.setattr(java, "meteor_lacks", lambda: None)
    monkeypatch.setattr(java, "spice_lacks", lambda: None)
    monkeypatch.setattr(java, "meteor_counts", lambda *captions: counts)
    monkeypatch.setattr(java, "spice", lambda *captions: np.array([0.1, 0.2, 0.6]))
    statistics = all_statistics(score_images(CAPTIONS, REFERENCES))
    draws = np.array([[1.0, 1, 1], [0, 0, 3]])
    assert statistics["spice"](draws) == pytest.approx([30, 60])
    assert statistics["meteor"](draws) == pytest.approx([100 * float(java.meteor(counts[0]))] * 2)


@pytest.mark.parametrize("official", [True, False])
def test_a_model_is_measured_on_photos(
    official: bool,
    config: Config,
    random_model: Callable[[str], Path],
    draw_photos: Callable[..., None],
    tmp_path: Path,
) -> None:
    names = {image: f"val2014/COCO_val2014_{image:012}.jpg" for image in REFERENCES}
    draw_photos(tmp_path, names.values())
    listed = [{"image": names[image], "caption": own} for image, own in REFERENCES.items()]
    data = write(tmp_path / "test.json", listed)
    annotations = write(tmp_path / "gt.json", coco(REFERENCES)) if official else None
    images = open_evaluation_set(data, tmp_path)
    model = random_model("captioning")
    evaluate_coco_captions(config, model, images, annotations, tmp_path, NullTracker())
    plain = write_captions(config, model, images)
    submission = read_json(tmp_path / "submission.json")
    assert submission == rows({image: plain[name] for image, name in names.items()})
    (tmp_path / "again").mkdir()
    score_coco_captions(
        config, tmp_path / "submission.json", annotations or data, tmp_path / "again", NullTracker()
    )
    for name in ("metrics.json", "per_example.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


DOMAINS = {7: "in-domain", 3: "near-domain", 12: "out-domain", 4: "near-domain"}


def nocaps_annotations(folder: Path) -> Path:
    document = coco({**REFERENCES, 4: ["a sheep", "one white sheep"]})
    for image in document["images"]:  # type: ignore[attr-defined]
        image |= {"domain": DOMAINS[image["id"]], "file_name": f"{image['id']:04}.jpg"}
    return write(folder / "nocaps_captions.json", document)


def test_nocaps_is_scored_by_domain(config: Config, tmp_path: Path) -> None:
    captions = {**CAPTIONS, 4: "a white sheep"}
    predictions = write(tmp_path / "captions.json", rows(captions))
    score_nocaps(config, predictions, nocaps_annotations(tmp_path), tmp_path, NullTracker())
    table = pq.read_table(tmp_path / "per_example.parquet")
    assert table["domain"].to_pylist() == ["in", "near", "out", "near"]
    found = read_json(tmp_path / "metrics.json")["nocaps"]
    cider = 100 * table["cider"].to_numpy()
    values = {domain: found[domain]["cider"]["value"] for domain in ("in", "near", "out", "entire")}
    expected = {"in": cider[0], "near": cider[[1, 3]].mean(), "out": cider[2]}
    assert values == pytest.approx({**expected, "entire": cider.mean()})
    assert {domain: found[domain]["images"] for domain in values} == {
        "in": 1,
        "near": 2,
        "out": 1,
        "entire": 4,
    }
    alone = all_statistics(score_images({3: captions[3]}, {3: REFERENCES[3]}))
    statistics = all_statistics(table.slice(1, 1))
    for name in ("bleu1", "bleu4", "rouge_l"):  # but not CIDEr, which knows the entire set
        one = np.ones((1, 1))
        assert statistics[name](one) == pytest.approx(alone[name](one))


def test_a_model_writes_for_the_server(
    config: Config,
    random_model: Callable[[str], Path],
    draw_photos: Callable[..., None],
    keeper: Keeper,
    tmp_path: Path,
) -> None:
    draw_photos(tmp_path, (f"val/{image:04}.jpg" for image in DOMAINS))
    listed = [{"image": f"val/{image:04}.jpg", "img_id": image} for image in DOMAINS]
    data = write(tmp_path / "nocaps_val.json", listed)
    model = random_model("captioning")
    for name, annotations in (("scored", nocaps_annotations(tmp_path)), ("blind", None)):
        (tmp_path / name).mkdir()
        evaluate_nocaps(config, model, data, tmp_path, annotations, tmp_path / name, keeper)
    assert keeper.artifacts.count("submission.json") == 2
    submission = read_json(tmp_path / "scored/submission.json")
    assert [row["image_id"] for row in submission] == list(DOMAINS)
    assert submission == read_json(tmp_path / "blind/submission.json")
    assert read_json(tmp_path / "blind/metrics.json") == {"nocaps": {"images": 4}}
    assert "cider" in read_json(tmp_path / "scored/metrics.json")["nocaps"]["near"]
    words = [caption["caption"].split() for caption in submission]
    assert max(map(len, words)) <= nocaps.PROTOCOL["max_length"]


def test_a_photo_of_another_name_or_domain_is_refused(tmp_path: Path) -> None:
    annotations = nocaps_annotations(tmp_path)
    told = read_annotations(annotations)
    images = [nocaps.NocapsImage(f"val/{image:04}.jpg", image) for image in DOMAINS]
    nocaps._check_photos(images, told, Path("val.json"), annotations)
    images[1] = nocaps.NocapsImage("val/0099.jpg", 3)
    with pytest.raises(DataError, match=r"image 3 is 0099\.jpg, but in .* it is 0003\.jpg"):
        nocaps._check_photos(images, told, Path("val.json"), annotations)
    with pytest.raises(DataError, match="4 has no prediction"):
        nocaps._check_photos(images[:3], told, Path("val.json"), annotations)
    document = read_json(annotations)
    document["images"][2]["domain"] = "far-domain"
    write(annotations, document)
    with pytest.raises(DataError, match="image 3: domain is 'far-domain', it must be one of in-"):
        read_annotations(annotations)


def test_official_photos_are_read(shared: Path) -> None:
    images = list(nocaps.read_nocaps(shared / "data/nocaps/nocaps_val.json"))
    assert [image.image_id for image in images] == list(range(4500))


def test_no_two_photos_have_one_id() -> None:
    with pytest.raises(DataError, match=r"7\.jpg stands more than once"):
        coco_captions.image_ids(["a/7.jpg", "b/7.jpg"], Path("test.json"))
