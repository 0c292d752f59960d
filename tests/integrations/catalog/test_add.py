"""What the catalogue says is what the files say, however often, in whatever order, and by however many."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from blip.data.dataset import MANIFEST, open_dataset, write_manifest
from blip.errors import DataError, IntegrationError
from blip.files import read_json, write_json
from blip.integrations.catalog import add, count_rows, open_catalog, reading, rebuild, stage_outputs
from blip.integrations.catalog.tables import (
    Caption,
    CaptionShard,
    Entry,
    ImageShard,
    Run,
    RunInput,
    Table,
    Version,
    VersionShard,
)
