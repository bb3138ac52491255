"""`reconx weights fetch`: published weights from the Hugging Face Hub to the weights folder, only where the user asks for them.

Files arrive in a hidden folder, where an interrupted fetch goes on, and take their name once all of them are as the Hub says.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from flows.weights.convert import inspect, print_lines, summary
from flows.weights.lpips import FILES, GIGABYTES, LICENCE
from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk, require_writable, write_json
from reconx_core.pointcloud.networks.convert import DUST3R_LICENCE
from reconx_core.version import __version__
from reconx_core.weights.files import read_config
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.records import describe_files
from reconx_core.weights.writing import require_space

HUB_LAYOUT = ("config.json", "model*.safetensors*")  # one file, or shards and their index
ALONG = ("config.json", "LICENSE*", "README.md")  # taken along where there are any
ACCEPTED = "accepted_licences.json"  # in the weights folder
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Published:
    """Weights that can be fetched."""

    name: str
    repository: str
    files: tuple[tuple[str, ...], ...]  # patterns that all match something; of several such lists the first that the Hub has
    gigabytes: float
    licence: str
    use: str  # with {folder}
    commercial: bool = True  # False: not that we know, and the licence has to be accepted

    @property
    def folder(self) -> str:
        """Its name in the weights folder."""
        return self.repository.rpartition("/")[2]


PUBLISHED = (
    Published(
        "dust3r", "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", (HUB_LAYOUT,), 2.3, DUST3R_LICENCE,
        "-S pointcloud.backend=dust3r", commercial=False,
    ),
    Published(
        "vggt", "facebook/VGGT-1B", (HUB_LAYOUT, ("*.pt",)), 5.0, "CC BY-NC 4.0: non-commercial use only",
        "-S pointcloud.backend=vggt", commercial=False,
    ),
    Published(
        "vggt-commercial", "facebook/VGGT-1B-Commercial", (HUB_LAYOUT, ("model*.safetensors*",), ("*.pt",)), 5.0,
        "VGGT's own, to be accepted on its page: commercial use is allowed, military use is not",
        "-S pointcloud.backend=vggt",
    ),
    Published(
        "da3-small", "depth-anything/DA3-SMALL", (HUB_LAYOUT,), 0.14, "Apache-2.0", "-S pointcloud.backend=da3",
    ),
    Published(
        "da3-base", "depth-anything/DA3-BASE", (HUB_LAYOUT,), 0.54, "Apache-2.0", "-S pointcloud.backend=da3",
    ),
    Published(
        "wan-vace", "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        (("model_index.json", "scheduler/*", "text_encoder/*", "tokenizer/*", "transformer/*", "vae/*"),), 16.0, "Apache-2.0",
        "-S video.backend=wan-vace",
    ),
    Published(
        "viewcrafter", "Drexubery/ViewCrafter_25", (("model.ckpt",),), 10.4, "tagged apache-2.0",
        "reconx weights convert {folder}/model.ckpt",
    ),
    Published(
        "dynamicrafter", "Doubiiu/DynamiCrafter_512_Interp", (("model.ckpt",),), 10.4,
        "the LICENSE file on its page (we have not seen its text)", "reconx weights convert {folder}/model.ckpt",
        commercial=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """What the Hub has of a repository."""

    commit: str
    files: Mapping[str, tuple[int, str | None]]  # size in bytes and, of large ones, SHA-256


def print_published(console: Console) -> None:
    """A table of what can be fetched."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("name and repository", "GB", "licence", "there"):
        table.add_column(column, no_wrap=column != "licence")
    for row in PUBLISHED:
        there = (weights_folder() / row.folder).is_dir()
        named = f"{row.name}\n[dim]{row.repository}[/dim]"
        table.add_row(named, f"{row.gigabytes:.1f}", row.licence, "yes" if there else "no")
    there = all((weights_folder() / file.name).is_file() for file in FILES)
    named = "lpips\n[dim]download.pytorch.org, richzhang/PerceptualSimilarity[/dim]"
    table.add_row(named, f"{GIGABYTES:.1f}", LICENCE, "yes" if there else "no")
    console.print(table)


def fetch(name: str, revision: str, accept: bool, console: Console) -> Path:
    """Fetch one of `PUBLISHED` (by its name or repository) at a revision; returns its folder.

    Raises:
        UserError: there is no such name, its licence was not accepted, the Hub cannot be reached or does not give it, a file
            is not what the Hub says, or it cannot be written.
    """
    row = find(name)
    out = weights_folder() / row.folder
    print_lines([f"Licence of {row.repository}: {row.licence}"], console)
    if out.exists():
        print_lines([f"It is in {out} already, revision {fetched_revision(out, revision)}."], console)
        return out
    require_accepted(row, accept, console)
    listing = list_files(row, revision)
    chosen = choose_files(row, listing.files)
    require_writable(weights_folder())
    gigabytes = sum(listing.files[file][0] for file in chosen) / 1e9
    print_lines([f"Fetching {gigabytes:.1f} GB, revision {listing.commit}"], console)
    download(row, listing, chosen, out)
    print_lines([summary(inspect(out)), f"Next: {row.use.format(folder=out)}"], console)
    return out


def find(name: str) -> Published:
    """The row of that name or repository.

    Raises:
        UserError: there is none.
    """
    row = next((row for row in PUBLISHED if name.lower() in (row.name, row.repository.lower(), row.folder.lower())), None)
    if row is None:
        raise UserError(
            f"There is nothing to fetch under the name '{name}'; choose lpips, {', '.join(row.name for row in PUBLISHED)}."
        )
    return row


def fetched_revision(out: Path, wanted: str) -> str:
    """The commit that a folder was fetched at; ``wanted`` is it, or "main" for whichever is there.

    Raises:
        UserError: it was not fetched by reconx, or at another revision.
    """
    record = read_config(out / "fetched.json")
    if record is None:
        raise UserError(f"{out} is there already, not fetched by reconx; try `reconx weights verify {out.name}`.")
    revision = str(record.get("revision"))
    if wanted not in ("main", revision):
        raise UserError(f"{out} holds revision {revision}; remove it to fetch another.")
    return revision


def require_accepted(row: Published, accept: bool, console: Console) -> None:
    """Let the user accept a licence that does not allow commercial use, once: the weights folder remembers it.

    Raises:
        UserError: it is not accepted, or nobody is there to answer.
    """
    record = weights_folder() / ACCEPTED
    accepted = read_config(record) or {}
    if row.commercial or accepted.get(row.repository) == row.licence:
        return
    question = f"Do you accept it (the whole text: https://huggingface.co/{row.repository})?"
    if not accept and not (sys.stdin.isatty() and Confirm.ask(question, console=console, default=False)):
        raise UserError(
            f"{row.repository} may be used under its licence only (https://huggingface.co/{row.repository}); "
            "read it, and give --accept-licence if you accept it."
        )
    require_writable(record.parent)
    write_json(record, {**accepted, row.repository: row.licence})


def list_files(row: Published, revision: str) -> Listing:
    """What the Hub has of a repository at a revision.

    Raises:
        UserError: it cannot be reached, or does not give it.
    """
    with _explained(row, revision):
        found = huggingface_hub.HfApi().model_info(row.repository, revision=revision, files_metadata=True)
    if found.sha is None or found.siblings is None:
        raise UserError(f"The Hugging Face Hub does not say what is in {row.repository}; try again later.")
    files = {file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else None) for file in found.siblings}
    return Listing(found.sha, files)


def choose_files(row: Published, there: Iterable[str]) -> list[str]:
    """The files to fetch: the first of the row's lists that is there as a whole, settings and licence texts.

    Raises:
        UserError: none is.
    """
    files = sorted(there)
    for patterns in row.files:
        if all(any(filter_repo_objects(files, allow_patterns=pattern)) for pattern in patterns):
            return list(filter_repo_objects(files, allow_patterns=[*patterns, *ALONG]))
    wanted = " or ".join(" and ".join(patterns) for patterns in row.files)
    raise UserError(f"{row.repository} does not have the files that are needed ({wanted}); try another --revision.")


def download(row: Published, listing: Listing, chosen: list[str], out: Path) -> None:
    """Fetch files to ``out``, all of them or none, with fetched.json that says what they are.

    Raises:
        UserError: the Hub cannot be reached, a file is not what it says, or the disk is full.
    """
    partial = out.with_name(f".{out.name}.{listing.commit[:12]}")
    have = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    require_space(sum(listing.files[file][0] for file in chosen) - have, out.parent)
    with _explained(row, listing.commit):
        for file in chosen:  # snapshot_download's threads would hold Ctrl-C back until the files that they are at are complete
            huggingface_hub.hf_hub_download(row.repository, file, revision=listing.commit, local_dir=partial)
    try:
        described = describe_files([partial / file for file in chosen], partial)
        _require_intact(described, listing, partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the Hub's notes for going on
        write_json(partial / "fetched.json", _record(row, listing, described))
        partial.rename(out)
    except OSError as error:
        raise explain_disk(error, out.parent) from error
    for other in out.parent.glob(f".{out.name}.*"):  # of revisions that moved on while a fetch was interrupted
        shutil.rmtree(other, ignore_errors=True)


def _require_intact(described: Mapping[str, Mapping[str, Any]], listing: Listing, partial: Path) -> None:
    for file, arrived in described.items():  # over plain HTTP the client compares sizes only
        size, digest = listing.files[file]
        if arrived["bytes"] != size or digest not in (None, arrived["sha256"]):
            (partial / file).unlink()  # or the next fetch would take it as it is
            raise UserError(f"'{file}' did not arrive as the Hugging Face Hub says it is; run the same command again.")


def _record(row: Published, listing: Listing, described: Mapping[str, Any]) -> dict[str, Any]:
    """fetched.json: where the files beside it come from."""
    return {
        "repository": row.repository,
        "revision": listing.commit,
        "licence": row.licence,
        "files": described,
        "reconx": __version__,
    }


@contextlib.contextmanager
def _explained(row: Published, revision: str) -> Iterator[None]:
    page = f"https://huggingface.co/{row.repository}"
    try:
        yield
    except errors.GatedRepoError:
        what = f"{row.repository} is given only to who has accepted its terms on {page}"
        raise UserError(f"{what}; do that, log in with `hf auth login`, and run the same command again.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"The Hugging Face Hub has no {row.repository}, or does not show it to you ({page}).") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{row.repository} has no revision '{revision}'; see {page}/commits/main.") from None
    except (OSError, RuntimeError, errors.HTTPError) as error:  # RuntimeError: hf_xet's
        if isinstance(error, OSError) and error.errno in DISK:
            raise explain_disk(error, weights_folder()) from error
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"The Hugging Face Hub cannot be reached or did not answer ({what}); run the same command again to go on from here."
        ) from None
