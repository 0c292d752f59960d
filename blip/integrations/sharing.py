"""Results that others can restore: through the DVC remote, or through the cache of a checkout beside it."""

import contextlib
from pathlib import Path
from typing import Any

from blip.errors import IntegrationError
from blip.integrations.dvc_session import find_stage, locked, opened, through_dvc
from blip.integrations.versioning import stage_key


@through_dvc
def fetch_run_cache() -> None:
    """Fetch from the remote which stages ran elsewhere: the records, not yet their objects."""
    with opened() as repo:
        cache = repo.stage_cache
        cache.transfer(_remote(repo), repo.cache.legacy, force=False)


@through_dvc
def push(names: list[str]) -> int:
    """Push results to the remote, so that any clone can restore them; count the objects sent.

    Objects go before the records that name them, so that no record is ever seen without its
    objects. DVC's own `push --run-cache` sends all records each time, and only the objects of the
    current workspace.
    """
    with opened() as repo, locked(repo):
        remote = _remote(repo)
        stages = [find_stage(repo, name) for name in names]
        records = [
            entry
            for entry in map(_record, stages)
            if entry and Path(repo.stage_cache._get_cache_path(*entry)).exists()
        ]
        used = [repo.stage_cache.get_used_objs(records), *(s.get_used_objs() for s in stages)]
        sent = [repo.cloud.push(o, odb=store) for each in used for store, o in each.items()]
        for entry in records:
            _push_record(repo, remote, entry)
        return sum(len(result.transferred) for result in sent)


@through_dvc
def pull(paths: list[str]) -> None:
    """Bring outputs, or files of them, from the remote.

    Raises:
        IntegrationError: The remote lacks one of them.
    """
    if paths:
        with opened() as repo:
            repo.pull(targets=paths)


@through_dvc
def remote_url() -> str:
    """Give the URL of the remote."""
    with opened() as repo:
        remote = _remote(repo)
        return str(remote.fs.unstrip_protocol(remote.path))


@through_dvc
def put(data: bytes, name: str) -> None:
    """Put a file into the remote, beside DVC's own, unless one of its name is there."""
    with opened() as repo:
        remote = _remote(repo)
        path = remote.fs.join(remote.path, *name.split("/"))
        if not remote.fs.exists(path):
            remote.fs.makedirs(remote.fs.parent(path), exist_ok=True)
            remote.fs.fs.pipe_file(path, data)


@through_dvc
def share_cache(checkout: Path) -> None:
    """Make the workspace use the cache and the local settings of a checkout."""
    from dvc.repo import Repo

    with contextlib.closing(Repo(str(checkout))) as other, opened() as repo:
        directory = Path(other.cache.local_cache_dir).resolve()
        with repo.config.edit("local") as config:
            config.update(other.config.load_one("local"))
            config.setdefault("cache", {})["dir"] = str(directory)


def _record(stage: Any) -> tuple[str, str] | None:
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    key = stage_key(stage)
    return (key, str(_get_cache_hash(to_single_stage_lockfile(stage)))) if key else None


def _remote(repo: Any) -> Any:
    from dvc.config import NoRemoteError, RemoteConfigError

    try:
        return repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    except (NoRemoteError, RemoteConfigError):
        raise IntegrationError(
            "no DVC remote to share results through: dvc remote add -d NAME URL"
        ) from None


def _push_record(repo: Any, remote: Any, entry: tuple[str, str]) -> None:
    from dvc.fs import generic

    source = repo.stage_cache._get_cache_path(*entry)
    store = repo.cache.legacy
    target = remote.fs.join(remote.path, *store.fs.parts(store.fs.relpath(source, store.path)))
    if not remote.fs.exists(target):
        generic.copy(store.fs, source, remote.fs, target)
