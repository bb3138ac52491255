"""`reconx weights fetch lpips`: the four files of LPIPS with VGG16 and with AlexNet, from where they are published."""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from torch.hub import download_url_to_file

from flows.weights.convert import print_lines
from reconx_core.cache.digests import file_digest
from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk, require_writable
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.writing import require_space

LICENCE = "BSD-3-Clause (torchvision's networks, trained on ImageNet), BSD-2-Clause (the heads of the lpips package)"
TORCHVISION = "https://download.pytorch.org/models"
# A commit, so that what it holds cannot change.
HEADS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1"


@dataclass(frozen=True)
class File:
    """A published file."""

    url: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


FILES = (
    File(f"{HEADS}/vgg.pth", 7_289, "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    File(f"{HEADS}/alex.pth", 6_009, "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    File(
        f"{TORCHVISION}/alexnet-owt-7be5be79.pth", 244_408_911,
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    File(
        f"{TORCHVISION}/vgg16-397923af.pth", 553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
)  # fmt: skip
GIGABYTES = sum(file.bytes for file in FILES) / 1e9


def fetch_lpips(console: Console) -> Path:
    """Place what is missing in the weights folder, and check what is there already; returns the folder.

    Raises:
        UserError: a server cannot be reached, a file is not the published one, or the disk is full.
    """
    print_lines([f"Licences: {LICENCE}"], console)
    folder = weights_folder()
    there = [file for file in FILES if (folder / file.name).is_file()]
    for file in there:
        require_published(folder / file.name, file)
    missing = [file for file in FILES if file not in there]
    if missing:
        require_writable(folder)
        require_space(sum(file.bytes for file in missing), folder)
    for file in missing:
        print_lines([f"Fetching {file.url} ({file.bytes / 1e6:.1f} MB)"], console)
        download(file, folder / file.name)
    print_lines([f"LPIPS with VGG16 and AlexNet: four files in {folder}, with the published SHA-256."], console)
    return folder


def require_published(path: Path, file: File) -> None:
    """Raise UserError where a file of that name is another than the published one."""
    if file_digest(path) != file.sha256:
        raise UserError(f"{path} is not the published file (its SHA-256 differs); remove it and run the same command again.")


def download(file: File, path: Path) -> None:
    """Fetch a file; it takes its name once it is whole and as published.

    Raises:
        UserError: the server cannot be reached, the file is another one, or the disk is full.
    """
    try:
        download_url_to_file(file.url, str(path), hash_prefix=file.sha256)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{file.url} cannot be fetched ({reason}); fetch it by other means and put it to {path}.") from None
    except RuntimeError:  # torch's, where the SHA-256 differs
        raise UserError(f"{file.url} did not arrive as it is published (its SHA-256 differs); try again later.") from None
    except OSError as error:
        raise explain_disk(error, path.parent) from error
