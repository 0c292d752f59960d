import pytest
import torch

from blip.errors import CheckpointError
from blip.models.tensors import check_tensors, read_safetensors, read_torch, write_safetensors

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.zeros(0, dtype=torch.int64)}


def test_safetensors_there_and_back(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    write_safetensors({**TENSORS, "c": TENSORS["b"].T}, path, {"format": "pt"})
    read = read_safetensors(path)
    assert read.keys() == {"a", "b", "c"}
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert torch.equal(read["c"], TENSORS["b"].T)
    write_safetensors(read, tmp_path / "again", {"format": "pt"})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", [TENSORS, {"model": TENSORS, "epoch": 3}])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch(tmp_path, content, zipped):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_torch(tmp_path / "a.pth")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pth")
    write_safetensors(TENSORS, tmp_path / "a.safetensors")
    for read, name in ((read_torch, "a.pth"), (read_safetensors, "a.safetensors")):
        read(tmp_path / name)["b"].add_(1)
        assert torch.equal(read(tmp_path / name)["b"], TENSORS["b"])


def test_faults_are_listed_in_order_and_counted():
    expected = {name: torch.zeros(2) for name in "abcdefg"}
    check_tensors("there", expected, expected)
    check_tensors("there", {}, expected, optional=expected.keys())
    found = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64), "z": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        check_tensors("there", found, {name: expected[name] for name in "abc"})
    assert str(caught.value) == (
        "there: missing c; unexpected z; a of shape (3,), expected (2,); "
        "b of torch.int64, expected torch.float32"
    )
    with pytest.raises(CheckpointError, match=r"missing e; and 2 more$"):
        check_tensors("there", {}, expected)
