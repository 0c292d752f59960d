"""From an image or a text to the models trained on it, and from a model to what it wrote."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from blip.errors import DataError
from blip.integrations.catalog import add, open_catalog, reading, rebuild
from blip.integrations.lineage import format_tree, lineage, texts_by_model, to_json
from blip.integrations.lineage.queries import MATCHES


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def session(
    request: pytest.FixtureRequest, experiment: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """Of a catalogue of the whole experiment, on each database."""
    url = f"sqlite:///{tmp_path_factory.mktemp('lineage')}/catalog.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
    engine = open_catalog(url)
    rebuild(engine, experiment.root)
    with reading(engine) as opened:
        yield opened
    engine.dispose()


def test_an_image_has_its_texts_with_writer_judge_and_models(
    session: Session, experiment: Any
) -> None:
    tree = lineage(session, "a.png")
    [image] = tree.images
    assert (image.sources, image.width, image.height, image.extension) == (
        ("a.png",),
        64,
        48,
        "png",
    )
    assert [v.name for v in image.versions] == ["web", "synthetic", "scored", "bootstrapped"]
    written, web = image.texts
    assert (web.text, web.origin, web.writer) == ("buy now", "web", None)
    assert [training.model for training in web.trained] == ["unfiltered"]  # it was dropped later
    assert written.writer
    assert written.writer.digest == experiment.digest("models/captioner")
    assert (written.writer.name, written.writer.task) == ("captioner", "captioning")
    assert [data.name for data in written.writer.data] == ["human"]
    assert written.writer.parent
    assert written.writer.parent.name == "unfiltered"
    assert [data.name for data in written.writer.parent.data] == ["web", "human"]
    assert written.decoding == {"method": "nucleus", "top_p": 0.9}
    assert [judge.name for judge in written.judges] == ["filter"]
    assert [(h.version.name, h.kept, h.itm_score) for h in written.holdings] == [
        ("synthetic", None, None),
        ("scored", None, 0.875),
        ("bootstrapped", True, 0.875),
    ]
    assert written.holdings[-1].threshold == 0.5
    [training] = written.trained
    assert (training.run, training.model) == ("pretrain-bootstrapped", "bootstrapped")
    assert [data.name for data in training.data] == ["bootstrapped"]


def test_an_image_is_found_by_its_file_its_key_and_its_source(
    session: Session, files: Any, tmp_path: Path
) -> None:
    (tmp_path / "photo").write_bytes(b"b.png")  # the bytes that its key is the digest of
    by_source = lineage(session, "b.png").images
    assert [image.key for image in by_source] == [files.key_of("b.png")]
    for query in (files.key_of("b.png"), files.key_of("b.png")[:8], str(tmp_path / "photo")):
        assert lineage(session, query).images == by_source


def test_a_text_is_found_by_its_words_on_every_image_and_by_its_id_on_one(session: Session) -> None:
    tree = lineage(session, "a red ring")
    assert tree.matches == 2
    assert {(t.text, t.origin) for image in tree.images for t in image.texts} == {
        ("a red ring", "human"),
        ("a red ring", "synthetic"),
    }
    for image in tree.images:
        [text] = image.texts
        for query in (text.caption_id, text.caption_id[:10]):
            assert lineage(session, query).images == (image,)


def test_a_model_has_what_it_wrote_and_who_was_trained_on_it(session: Session) -> None:
    written = texts_by_model(session, "captioner", first=1)
    assert (written.written, len(written.first)) == (2, 1)
    assert [(s.version.name, s.texts, s.kept) for s in written.holdings] == [
        ("synthetic", 2, 2),
        ("scored", 2, 2),
        ("bootstrapped", 2, 1),
    ]
    assert [training.model for training in written.trained] == ["bootstrapped"]
    assert written.judged == ()


def test_a_filter_has_what_it_judged(session: Session, experiment: Any) -> None:
    judged = texts_by_model(session, experiment.digest("models/filter")[:9])
    assert (judged.model.name, judged.written) == ("filter", 0)
    assert [(s.version.name, s.texts, s.kept) for s in judged.judged] == [
        ("scored", 4, 4),
        ("bootstrapped", 4, 2),
    ]
    assert texts_by_model(session, str(experiment.root / "models/filter")) == judged


def test_answers_can_be_printed_and_sent(session: Session) -> None:
    tree, written = lineage(session, "a.png"), texts_by_model(session, "captioner", first=1)
    lines = format_tree(tree).splitlines()
    assert lines[0].startswith("image 7f071235805f  a.png  64 x 48 png")
    assert any("written by captioner (captioning, " in line for line in lines)
    assert any(": kept, itm_score against 0.5, match 0.875" in line for line in lines)
    assert lines[-1].lstrip().startswith("└─ trained unfiltered")
    assert "… and 1 more" in format_tree(written)
    assert json.loads(to_json(tree))["images"][0]["texts"][0]["writer"]["name"] == "captioner"
    assert json.loads(to_json(written))["written"] == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("a red rign", "did you mean 'a red ring'"),
        ("a.pgn", "did you mean 'a.png'"),
        ("abcdef0123", "in the catalogue; blip catalog rebuild indexes the results that are here$"),
        ("x" * 5000, "no image or text of that name"),
        ("100%", "no image or text of that name"),
    ],
)
def test_an_unknown_name_is_refused_with_close_ones(
    session: Session, query: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        lineage(session, query)


def test_an_unknown_file_and_an_unknown_model_are_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"never seen")
    with pytest.raises(DataError, match=r"photo: not in the catalogue \(sha256 [0-9a-f]{12}\)"):
        lineage(session, str(tmp_path / "photo"))
    with pytest.raises(DataError, match="did you mean 'captioner'"):
        texts_by_model(session, "captoner")


def test_a_text_on_many_images_shows_the_first_ones(
    tmp_path: Path, sqlite_url: str, files: Any
) -> None:
    names = [f"{number}.png" for number in range(MATCHES + 3)]
    texts = [files.text(name, "a bar", "web") for name in names]
    engine = open_catalog(sqlite_url)
    add(engine, files.dataset(tmp_path / "web", [files.image(name) for name in names], texts))
    with reading(engine) as session:
        tree = lineage(session, "a bar")
    assert (tree.matches, len(tree.images)) == (MATCHES + 3, MATCHES)
    assert format_tree(tree).endswith("… and 3 more images")


def test_an_ambiguous_beginning_and_a_text_without_its_image(
    tmp_path: Path, sqlite_url: str, files: Any
) -> None:
    keys = ["abcdef" + "0" * 58, "abcdef" + "1" * 58]
    images = [files.image(key[-3:], key=key) for key in keys]
    orphan = files.text("absent", "of nothing", "web", generator="e" * 64)
    engine = open_catalog(sqlite_url)
    add(engine, files.dataset(tmp_path / "web", images, [orphan]))
    with reading(engine) as session:
        with pytest.raises(DataError, match="begins the names of several images"):
            lineage(session, "abcdef")
        tree = format_tree(lineage(session, "of nothing"))
    assert "absent" in tree.splitlines()[0]
    assert "written by unknown (unknown, eeeeeeeeeeee)" in tree
