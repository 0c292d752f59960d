"""A registered model as MLflow serves it: images in, captions or matches out.

MLflow copies this file into the logged model and executes it to load one, so it imports the
installed package, and declares itself below. It reads what `blip.integrations.registry` puts
beside it: the model's directory, and `serving.json`, how the model was evaluated.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from blip.config import Decoding
from blip.data.pictures import Source, read_picture
from blip.evaluate.network import Need
from blip.files import read_json
from blip.inference import Predictor, load_predictor
from blip.models.generation import seeded_generator

BATCH = 64


class ServedModel(PythonModel):
    """Captioner or matcher, as `serving.json` says.

    Input: a table with `image`, the bytes of an image file (base64 in JSON), and for retrieval also
    `text`. Output: `caption`; or `match_probability` and `cosine`.
    """

    predictor: Predictor
    serving: dict[str, Any]

    def load_context(self, context: Any) -> None:
        """Read weights, vocabulary and the way of decoding."""
        self.serving = read_json(Path(context.artifacts["serving"]))
        need: Need = "captioning" if self.serving["task"] == "captioning" else "matching"
        self.predictor = load_predictor(Path(context.artifacts["model"]), need)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Caption images, or judge pairs of image and text, batch by batch.

        Raises:
            DataError: An image cannot be decoded, or a text is empty; the row or the text is named.
        """
        answer = self._caption if self.serving["task"] == "captioning" else self._match
        frames = [
            answer(model_input.iloc[start : start + BATCH], start)
            for start in range(0, len(model_input), BATCH)
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _caption(self, rows: pd.DataFrame, start: int) -> pd.DataFrame:
        decoding = Decoding.model_validate(self.serving["decoding"])
        images, digests = self._images(rows, start)
        draws = [seeded_generator(0, digest) for digest in digests]
        written = self.predictor.caption(images, self.serving["prompt"], decoding, draws)
        return pd.DataFrame({"caption": written})

    def _match(self, rows: pd.DataFrame, start: int) -> pd.DataFrame:
        limits = self.serving["max_words"], self.serving["max_tokens"]
        texts = self.predictor.captions(list(rows["text"]), *limits)
        images, _ = self._images(rows, start)
        each = torch.arange(len(rows))
        found = self.predictor.match(images, texts, torch.stack([each, each], dim=1))
        return pd.DataFrame(
            {
                "match_probability": found.probability.double().numpy(),
                "cosine": found.cosine.double().numpy(),
            }
        )

    def _images(self, rows: pd.DataFrame, start: int) -> tuple[torch.Tensor, list[str]]:
        """Decode the images of a batch: (B, 3, S, S) uint8, and their digests."""
        size = self.predictor.model.image_size
        pictures = [
            read_picture(Source(f"row {row}: image", data), size)
            for row, data in enumerate(rows["image"], start)
        ]
        return torch.stack([p.pixels for p in pictures]), [p.digest for p in pictures]


set_model(ServedModel())
