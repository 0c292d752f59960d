"""Builds the platform's image with buildah, by the configuration that pip has on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = "docker.io/library/blip:cpu"
BASE = "docker.io/library/python:3.11-slim"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def environment(folder: Path) -> dict[str, str]:
    """Give the environment of podman and buildah: runc, and no limits that a container may not set."""
    file = folder / "containers.conf"
    file.write_text('[containers]\ndefault_ulimits = []\n[engine]\nruntime = "runc"\n')
    return {**os.environ, "CONTAINERS_CONF": str(file)}


def build(context: Path, folder: Path, tag: str = IMAGE) -> str:
    """Build the image of a checkout; give what buildah said.

    Where wheels lie on this machine (pip's find-links) torch is among them, else it comes from PyTorch's index.
    """
    links = pip_setting("find-links").split()
    wheels = [link for link in links if Path(link).is_dir()]
    (folder / "uv.toml").write_text(f"native-tls = true\nfind-links = {json.dumps(links)}\n")
    (folder / "pip.conf").write_text(
        f"[global]\ncert = {CERTIFICATES}\ntimeout = 15\nretries = 8\nfind-links = {' '.join(links)}\n"
    )
    volumes = [f"{CERTIFICATES}:{CERTIFICATES}:ro", *(f"{wheel}:{wheel}:ro" for wheel in wheels)]
    command = ["buildah", "build", "--layers", "--network", "host", "--tag", tag]
    command += [f"--volume={volume}" for volume in volumes]
    command += [f"--secret=id={name},src={folder / file}" for name, file in SECRETS.items()]
    command += ["--build-arg=TORCH="] if wheels else []
    command += ["--file", str(context / "k8s/Dockerfile"), str(context)]
    result = subprocess.run(
        command,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


SECRETS = {"uv": "uv.toml", "pip": "pip.conf"}


def pip_setting(name: str) -> str:
    """Give one of pip's settings here, or nothing."""
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def tag_by_content(tag: str, folder: Path) -> str:
    """Give an image a tag of its own, by which a node that has it has this very one."""
    command = ["podman", "image", "inspect", "--format", "{{.Id}}", tag]
    found = subprocess.run(
        command, env=environment(folder), capture_output=True, check=True, text=True
    )
    named = f"{tag.rpartition(':')[0]}:{found.stdout.strip()[:12]}"
    subprocess.run(["podman", "tag", tag, named], env=environment(folder), check=True)
    return named


def has_image(tag: str, folder: Path) -> bool:
    """Tell whether an image is known to buildah and podman."""
    command = ["podman", "image", "exists", tag]
    return subprocess.run(command, env=environment(folder), check=False).returncode == 0


class Node:
    """The container runtime of a test cluster's node, which is this machine."""

    def __init__(self, kubeconfig: Path) -> None:
        self._folder = kubeconfig.parent

    def ctr(self, *arguments: str) -> str:
        """Call containerd in the node's own mounts, as root."""
        pid = (self._folder / "run/mntns.pid").read_text().split()[0]
        command = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "ctr", "--namespace", "k8s.io"]
        command += ["--address", str(self._folder / "run/containerd.sock"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def has(self, tag: str) -> bool:
        """Tell whether the node has an image."""
        return tag in self.ctr("images", "list", "--quiet").split()

    def give(self, tag: str, folder: Path) -> None:
        """Bring an image from here to the node, as `kind load` does."""
        archive = folder / "image.tar"
        push = ["buildah", "push", "--quiet", tag, f"docker-archive:{archive}:{tag}"]
        subprocess.run(push, env=environment(folder), check=True, stdout=subprocess.DEVNULL)
        try:
            self.ctr("images", "import", str(archive))
        finally:
            archive.unlink()

    def tag(self, tag: str, another: str) -> None:
        """Give an image of the node another name, from whatever has it now."""
        self.ctr("images", "tag", "--force", tag, another)

    def take(self, tag: str, folder: Path) -> None:
        """Bring an image from the node to here."""
        archive = folder / "base.tar"
        self.ctr("images", "export", str(archive), tag)
        subprocess.run(
            ["podman", "load", "--quiet", "--input", str(archive)],
            env=environment(folder),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        archive.unlink()


def size(tag: str, folder: Path) -> int:
    """Give the bytes of an image."""
    command = ["podman", "image", "inspect", "--format", "{{.Size}}", tag]
    result = subprocess.run(command, env=environment(folder), capture_output=True, check=True)
    return int(result.stdout)
