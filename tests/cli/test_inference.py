import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from blip.__main__ import main
from tests.test_inference import make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        parts: str(make_model(folder / parts, parts))
        for parts in ("captioning", "pretrain", "retrieval", "vqa")
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five images in two folders, one of them broken, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.webp", "more/d.bmp"):
        pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST).save(folder / name)
    (folder / "broken.png").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("nothing")
    return folder


GOOD = ("a.png", "b.jpg", "more/c.webp", "more/d.bmp")


@pytest.fixture
def blip(monkeypatch, capsys):
    """Run the command; give its exit code, the lines it printed, and the words on stderr."""

    def run(*arguments, data=b""):
        monkeypatch.setattr(sys, "argv", ["blip", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return ended.value.code or 0, printed.out.splitlines(), printed.err

    return run


def test_captions_of_a_folder_go_on_after_a_broken_file(blip, models, photos):
    code, lines, said = blip("caption", photos, "--checkpoint", models["captioning"])
    assert code == 2
    assert [line.split("\t")[0] for line in lines] == [str(photos / name) for name in GOOD]
    assert said.count("broken.png") == 1
    assert f"blip: {photos / 'broken.png'}: 7 bytes are no image" in said


@pytest.mark.parametrize("options", [(), ("--method", "nucleus", "--seed", "3")])
def test_captions_are_the_same_one_by_one_in_batches_and_from_standard_input(
    blip, models, photos, options
):
    paths = [photos / name for name in GOOD]
    ask = ("caption", "--checkpoint", models["pretrain"], "--prompt", "a red ", *options)
    code, lines, _ = blip(*ask, *paths)
    assert code == 0
    captions = [line.split("\t")[1] for line in lines]
    assert len(set(captions)) > 1
    assert blip(*ask, "--batch-size", 1, *paths)[1] == lines
    assert blip(*ask, "-", data="\n".join(map(str, paths)).encode())[1] == lines
    assert blip(*ask, "-", data=paths[2].read_bytes())[1] == [f"-\t{captions[2]}"]
    found = [json.loads(line) for line in blip(*ask, *paths, "--json")[1]]
    assert [f"{row['image']}\t{row['caption']}" for row in found] == lines


def test_answers_are_written_or_chosen(blip, models, photos, tmp_path):
    ask = ("vqa", photos / "a.png", "--checkpoint", models["vqa"])
    ask += ("--question", "What colour is it?", "--question", "Two?")
    _, lines, _ = blip(*ask)
    assert [line.split("\t")[:2] for line in lines] == [
        [str(photos / "a.png"), "What colour is it?"],
        [str(photos / "a.png"), "Two?"],
    ]
    (tmp_path / "lines").write_text("Red\n\n blue ring \n")
    (tmp_path / "list.json").write_text('["Red", "blue ring"]')
    code, chosen, _ = blip(*ask, "--answers", tmp_path / "lines")
    assert code == 0
    assert {line.split("\t")[2] for line in chosen} <= {"Red", "blue ring"}
    assert blip(*ask, "--answers", tmp_path / "list.json", "--k", 2)[1] == chosen
    code, _, said = blip(*ask, "--answers", tmp_path / "lines", "--k", 3)
    assert (code, "k = 3 answers to score, of 2 candidates" in said) == (2, True)
    assert "give --answers" in blip(*ask, "--k", 3)[2]
    (tmp_path / "lines").write_text("\n")
    assert "lines: holds no answer" in blip(*ask, "--answers", tmp_path / "lines")[2]
    (tmp_path / "list.json").write_text('["a", 3]')
    assert "list.json: 3 is no answer" in blip(*ask, "--answers", tmp_path / "list.json")[2]


def test_matches_of_every_image_with_every_text(blip, models, photos, tmp_path):
    ask = ("match", photos / "more", photos / "b.jpg", "--checkpoint", models["retrieval"])
    ask += ("--text", "A red square.", "--text", "two bars", "--json")
    code, lines, _ = blip(*ask, "--batch-size", 2, "--heatmaps", tmp_path, "--layer", 0)
    rows = [json.loads(line) for line in lines]
    assert code == 0
    assert [(row["image"], row["text"]) for row in rows] == [
        (str(photos / name), text)
        for name in ("more/c.webp", "more/d.bmp", "b.jpg")
        for text in ("A red square.", "two bars")
    ]
    assert all(0 < row["match_probability"] < 1 and -1 <= row["cosine"] <= 1 for row in rows)
    names = ["00001-1-c", "00001-2-c", "00002-1-d", "00002-2-d", "00003-1-b", "00003-2-b"]
    assert [row["heatmap"] for row in rows] == [str(tmp_path / f"{name}.png") for name in names]
    pictures = {row["heatmap"]: Image.open(row["heatmap"]).tobytes() for row in rows}
    assert len(set(pictures.values())) == len(rows)
    assert blip(*ask, "--heatmaps", tmp_path)[0] == 0  # a small model has no layer 7
    again = [json.loads(line) for line in blip(*ask)[1]]
    for row, other in zip(rows, again, strict=True):
        assert row.pop("heatmap")
        assert other == pytest.approx(row, abs=1e-6)  # measured: 3.0e-8


def test_features_are_written_with_the_names_of_their_rows(blip, models, photos, tmp_path):
    out = tmp_path / "new" / "features.safetensors"
    ask = ("features", photos, "--checkpoint", models["pretrain"], "--out", out)
    code, lines, _ = blip(*ask, "--text", "a red square", "--batch-size", 3)
    assert code == 2  # for the broken one; the others are written
    assert lines == [f"{photos / name}\t{row}" for row, name in enumerate(GOOD)]
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["images"]) == [str(photos / name) for name in GOOD]
        assert json.loads(file.metadata()["texts"]) == ["a red square"]
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "image_cls": [4, 32],
        "image_embed": [4, 8],
        "text_cls": [1, 32],
        "text_embed": [1, 8],
        "multimodal_cls": [4, 1, 32],
    }


def test_the_two_uses_of_caption_do_not_mix(blip, models):
    both = "caption takes images and --checkpoint, or --model, --data and --out"
    for arguments, message in (
        ((), both),
        (("x.png",), both),
        (("--model", "m", "--data", "d"), both),
        (("x.png", "--data", "d"), f"{both}, not both: --data does not go with IMAGE"),
        (
            ("--data", "d", "--out", "o", "--model", "m", "--seed", "1"),
            f"{both}, not both: --model, --data, --out does not go with --seed",
        ),
    ):
        code, lines, said = blip("caption", *arguments)
        assert (code, lines) == (2, [])
        assert message in said
    assert "--data" in "".join(blip("caption", "--help")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "--checkpoint", "{vqa}"), "holds a model for 'vqa', but captioning needs"),
        (("caption", "--checkpoint", "nowhere"), "nowhere: no such checkpoint"),
        (("caption", "--checkpoint", "models:/x"), "models:/x: must be models:/NAME@ALIAS or"),
        (("caption", "--checkpoint", "{captioning}", "--max-length", "2"), "max_length 2 counts"),
        (("caption", "--checkpoint", "{captioning}", "--image-size", "50"), "image size 50: must"),
        (("match", "--checkpoint", "{retrieval}", "--text", "..."), "text '...': holds no word"),
        (("vqa", "--checkpoint", "{vqa}", "--question", ""), "text '': holds no word"),
    ],
)
def test_what_cannot_be_done_is_one_message(blip, models, photos, arguments, message):
    code, lines, said = blip(*(a.format(**models) for a in arguments), photos / "a.png")
    assert (code, lines) == (2, [])
    assert said.startswith("blip: ")
    assert message in said
    assert len(said.splitlines()) == 1
