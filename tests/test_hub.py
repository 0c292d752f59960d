"""What is in the hub's cache is taken from there; what cannot be fetched is one message."""

from unittest.mock import Mock

import huggingface_hub
import pytest

from blip.errors import ConfigError
from blip.hub import hub_file


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has the model `someone/bert` with one file, and a cache that is empty at first."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    asked, file = [], tmp_path / "pytorch_model.bin"

    def download(repository, name):
        asked.append(name)
        if repository != "someone/bert":
            raise LocalEntryNotFoundError("no\nnetwork")
        if name != file.name:
            raise RemoteEntryNotFoundError("not\nfound", response=Mock(headers={}))
        file.touch()
        return str(file)

    def cached(repository, name):
        return str(file) if name == file.name and file.exists() else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    return file, asked


def test_the_first_file_that_there_is_and_once(hub):
    file, asked = hub
    for _ in range(2):
        assert hub_file("x", "someone/bert", "model.safetensors", file.name) == file
    assert asked == ["model.safetensors", file.name]


def test_what_the_hub_does_not_give(hub):
    with pytest.raises(ConfigError) as caught:
        hub_file("model.text_weights 'someone/bert'", "someone/bert", "model.safetensors")
    assert str(caught.value) == (
        "model.text_weights 'someone/bert': is no file here, and the hub does not give "
        "model.safetensors of 'someone/bert': not found: name a file"
    )
    with pytest.raises(
        ConfigError, match=r"does not give a or b of 'other/bert': no network: name"
    ):
        hub_file("x", "other/bert", "a", "b")


def test_names_that_cannot_be_on_the_hub():
    for name in ("no/such/model", "no model", "../model"):
        with pytest.raises(ConfigError, match="the hub does not give a of"):
            hub_file("x", name, "a")
