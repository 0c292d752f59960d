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
from torch import Tensor

from blip.config import Decoding
from blip.data.images import decode_image
from blip.data.text import VOCABULARY, Tokenizer, clean_caption
from blip.data.transforms import evaluation_transform
from blip.errors import DataError
from blip.files import read_json
from blip.models.blip import Blip
from blip.models.checkpoint import load_model
from blip.models.generation import generate, seeded_generator

MAX_PIXELS = 50_000_000
BATCH = 64


class ServedModel(PythonModel):
    """Captioner or matcher, as `serving.json` says.

    Input: a table with `image`, the bytes of an image file (base64 in JSON), and for retrieval also
    `text`. Output: `caption`; or `match_probability` and `cosine`.
    """

    model: Blip
    tokenizer: Tokenizer
    serving: dict[str, Any]

    def load_context(self, context: Any) -> None:
        """Read weights, vocabulary and the way of decoding."""
        folder = Path(context.artifacts["model"])
        self.serving = read_json(Path(context.artifacts["serving"]))
        self.model = load_model(folder, self.serving["task"]).eval()
        self.tokenizer = Tokenizer(folder / VOCABULARY)

    @torch.inference_mode()
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Caption images, or judge pairs of image and text, batch by batch.

        Raises:
            DataError: An image cannot be decoded; its row is named.
        """
        answer = self._caption if self.serving["task"] == "captioning" else self._match
        frames = [
            answer(model_input.iloc[start : start + BATCH])
            for start in range(0, len(model_input), BATCH)
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _caption(self, rows: pd.DataFrame) -> pd.DataFrame:
        prompt = self.tokenizer.prompt(self.serving["prompt"])
        decoding = Decoding.model_validate(self.serving["decoding"])
        memory = self.model.project_images(self.model.encode_image(self._images(rows)))
        draws = [seeded_generator(0, str(row)) for row in range(len(rows))]
        written = generate(self.model, memory, prompt, decoding, draws)
        return pd.DataFrame({"caption": [self.tokenizer.decode(ids) for ids in written]})

    def _match(self, rows: pd.DataFrame) -> pd.DataFrame:
        texts = [clean_caption(text, self.serving["max_words"]) for text in rows["text"]]
        ids, mask = self.tokenizer.encode(texts, self.serving["max_tokens"])
        tokens = self.model.encode_image(self._images(rows))
        logits = self.model.match(ids, mask, self.model.project_images(tokens))
        text_embeds = self.model.embed_text(self.model.encode_text(ids, mask, pooled=True))
        cosine = (self.model.embed_image(tokens) * text_embeds).sum(-1)
        return pd.DataFrame(
            {
                "match_probability": logits.softmax(-1)[:, 1].double().numpy(),
                "cosine": cosine.double().numpy(),
            }
        )

    def _images(self, rows: pd.DataFrame) -> Tensor:
        """Decode the images of a batch: (B, 3, S, S) float32, normalised."""
        images = []
        for row, data in enumerate(rows["image"]):
            try:
                image = decode_image(data, MAX_PIXELS)
            except DataError as error:
                raise DataError(f"row {row}: image: {error}") from None
            images.append(evaluation_transform(image, self.model.image_size))
        return torch.stack(images)


set_model(ServedModel())
