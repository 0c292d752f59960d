"""The S3 server of the tests takes many writers at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


def test_many_writers_make_new_folders_at_once(
    bucket: Path, s3_server: tuple[Path, str], monkeypatch: Any
) -> None:
    """As DVC does; with `--dir-cache-time 0` nearly every request was stuck."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    settings = Config(read_timeout=60, max_pool_connections=8)
    client = boto3.client("s3", endpoint_url=s3_server[1], config=settings)

    def put(number: int) -> None:
        body = bytes(number % 3)  # some are empty
        client.put_object(Bucket="bucket", Key=f"new/deep/{number:02}/{number}", Body=body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(60)))
    files = {path.name: path.stat().st_size for path in bucket.rglob("*") if path.is_file()}
    assert files == {str(number): number % 3 for number in range(60)}
