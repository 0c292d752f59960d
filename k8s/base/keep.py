"""Takes dumps to a bucket, a folder a night, and drops the oldest: `keep.py FOLDER BUCKET NIGHTS`."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import boto3

folder, bucket, nights = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
s3 = boto3.client("s3")
night = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
for dump in sorted(folder.glob("*.dump")):
    s3.upload_file(str(dump), bucket, f"postgres/{night}/{dump.name}")
    sys.stdout.write(
        f"kept {dump.stat().st_size} bytes as s3://{bucket}/postgres/{night}/{dump.name}\n"
    )
pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="postgres/")
keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
old = sorted({key.split("/")[1] for key in keys})[:-nights]
for key in keys:
    if key.split("/")[1] in old:
        s3.delete_object(Bucket=bucket, Key=key)
        sys.stdout.write(f"dropped s3://{bucket}/{key}\n")
