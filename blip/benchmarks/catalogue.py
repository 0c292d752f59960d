"""The files of the paper's benchmarks: what each is for, where it comes from, by what it is known.

`files.yaml` beside this module has them all. Places are relative to one folder, `paper/` unless
another is named, so that `blip benchmark fetch` and `blip reproduce` mean the same files. Where
the source gives no checksum, the first download is recorded (`blip.benchmarks.fetch`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError, model_validator

from blip.config import Section, read_yaml
from blip.data.image_store import is_safe
from blip.errors import ConfigError

CATALOGUE = Path(__file__).parent / "files.yaml"

S = TypeVar("S", bound=Section)


class BenchmarkFile(Section):
    """A file that somebody gives away, or says how to get.

    Attributes:
        purpose: What it is for, in a few words.
        licence: As its source states it.
        url: Where it is downloaded from; None where that needs a person.
        size: In bytes, if the source tells.
        about: The size in words where nobody tells the bytes.
        sha256: Of its content, if the source tells.
        md5: The same.
        obtain: What a person has to do: register, agree, build; or what to know of the URL.
        unpacks: The file or folder that an archive is unpacked to.
    """

    purpose: str
    licence: str
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    about: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    obtain: str | None = None
    unpacks: str | None = None

    @model_validator(mode="after")
    def _obtainable(self) -> "BenchmarkFile":
        if self.url is None and self.obtain is None:
            raise ValueError("has neither a url nor a word on how to obtain it")
        if self.unpacks is not None and not is_safe(self.unpacks):
            raise ValueError(f"unpacks to {self.unpacks!r}, which is no plain relative path")
        return self


class Benchmark(Section):
    """A benchmark: its name in words and the places of its files."""

    title: str
    files: list[str]


class Catalogue(Section):
    """All files by place, and the benchmarks by name."""

    files: dict[str, BenchmarkFile]
    benchmarks: dict[str, Benchmark]

    @model_validator(mode="after")
    def _consistent(self) -> "Catalogue":
        for place in self.files:
            if not is_safe(place):
                raise ValueError(f"files: {place!r} is no plain relative path")
        for name, benchmark in self.benchmarks.items():
            for place in benchmark.files:
                if place not in self.files:
                    raise ValueError(f"benchmarks.{name}: {place!r} is not among the files")
        return self

    def find(self, name: str) -> Mapping[str, BenchmarkFile]:
        """Give the files of a benchmark, by place.

        Raises:
            ConfigError: There is no such benchmark.
        """
        if name not in self.benchmarks:
            known = ", ".join(self.benchmarks)
            raise ConfigError(f"there is no benchmark {name!r}: it is one of {known}")
        return {place: self.files[place] for place in self.benchmarks[name].files}

    def source(self, place: str) -> str | None:
        """Give the place of the file that brings what lies at a place: itself, or its archive."""
        if place in self.files:
            return place
        path = Path(place)
        for name, file in self.files.items():
            if file.unpacks is not None and path.is_relative_to(file.unpacks):
                return name
        return None


def load_catalogue(path: Path = CATALOGUE) -> Catalogue:
    """Read a catalogue.

    Raises:
        ConfigError: It cannot be read, a key is unknown, or a value breaks its rule.
    """
    return read_document(path, Catalogue)


def read_document(path: Path, kind: type[S]) -> S:
    """Read a YAML file as a checked document.

    Raises:
        ConfigError: It cannot be read, a key is unknown, or a value breaks its rule.
    """
    try:
        return kind.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}"
            for e in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None
