"""The command line `reconx`. Heavy imports are inside the commands, so that help and mistakes are shown at once."""

from __future__ import annotations

import codecs
import io
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich import control
from rich.console import Console
from typer.core import TyperGroup

from flows.execution.ending import INTERRUPTED, leave_stages_behind, stop_at_once
from reconx_core.errors import UserError
from reconx_core.names import one_line

if TYPE_CHECKING:
    from flows.evaluate import EvaluationRequest

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(highlight=False, emoji=False)  # names may hold ':smile:'

USAGE = cast("type[Exception]", typer.BadParameter.__base__)  # of click, which typer brings along
INTERRUPT = 130  # exit code, as of shells
WORDS = {  # of pydantic, by which typer reads values
    "Input should be a valid integer, unable to parse string as an integer": "it should be a whole number",
    "Input should be greater than or equal to": "it should be at least",
    "Input should be less than or equal to": "it should be at most",
}

PresetOption = Annotated[str | None, typer.Option("--preset", "-p", help="default, draft, permissive, paper, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-S", metavar="STAGE.KEY=VALUE", help="Change one setting.")]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Where results of stages are kept and looked up; default: $RECONX_STORE, else ~/.cache/reconx/store.",
        show_default=False,
    ),
]
VramOption = Annotated[
    int | None,
    typer.Option("--vram", min=1, metavar="8|12|24|48", help="GB of GPU memory to fit into; -S wins over what it chooses."),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Scenes that run side by side.")]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Read every file anew, where otherwise size, time and inode tell that it is the same.")
]

DaskOption = Annotated[
    str | None,
    typer.Option(
        metavar="local|tcp://HOST:PORT",
        help="Processes instead of threads: --workers of them here, or those of a Dask scheduler (docs/scale.md).",
    ),
]


def main() -> None:
    """Entry point: a user's mistake ends with one sentence and exit code 2."""
    print_any_name()
    try:
        with stop_at_once(console, signal.SIGTERM):
            run_command()
    except BaseException as error:
        leave_stages_behind(error)
        raise
    leave_stages_behind(None)


def run_command() -> None:
    """Do what the command line asks for; ends in SystemExit."""
    try:
        refuse_empty(sys.argv[1:])
        code = app(prog_name="reconx", standalone_mode=False)
    except UserError as error:
        end_with(str(error))
    except USAGE as error:
        end_with(usage_sentence(error))
    except KeyboardInterrupt:
        code = INTERRUPT
    if code == INTERRUPT:
        print(INTERRUPTED, file=sys.stderr)
    sys.exit(code or 0)


def end_with(sentence: str) -> NoReturn:
    """End as on a mistake of the user: with one line, or without where all has been said."""
    if sentence:
        print(f"reconx: {one_line(sentence)}", file=sys.stderr)
    sys.exit(2)


def usage_sentence(error: Any) -> str:
    """A wrong command line in one sentence; empty where typer has printed the help, as it does without arguments."""
    said = " ".join(error.format_message().split())
    if not said:
        return ""
    for text, short in WORDS.items():
        said = said.replace(text, short)
    command = error.ctx.command_path if error.ctx else " ".join(["reconx", *sys.argv[1:2]])
    return f"{said} See: {command} --help" if said.endswith("?") else f"{said.removesuffix('.')}; see: {command} --help"


def refuse_empty(arguments: list[str]) -> None:
    """Raise UserError where an argument is empty, as of an unset variable: an empty path would be the current folder."""
    for before, given in zip(["", *arguments], arguments):
        option, _, value = given.partition("=") if given.startswith("--") and "=" in given else (before, "", given)
        if not value:
            where = f"What follows {option}" if option.startswith("-") else "An argument"
            raise UserError(f"{where} is empty; give a path, a name or a value, or leave it out.")


def print_any_name() -> None:
    """Print what no terminal can show or should obey, as names of files may hold it, as replacement characters."""
    codecs.register_error("reconx", _replacement)
    # Rich itself leaves out a few control characters of a text, but not those that begin a terminal's command.
    control._CONTROL_STRIP_TRANSLATE.update(dict.fromkeys((0x1B, *range(0x80, 0xA0)), 0xFFFD))  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="reconx")


def _replacement(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    mark = "\ufffd" if codecs.lookup(error.encoding).name == "utf-8" else "?"
    # As bytes: the UTF-8 codec takes no other text from a handler than ASCII.
    return (mark * (error.end - error.start)).encode(error.encoding), error.end


def read_anew(verify: bool) -> None:
    """With ``verify``, let this process trust no digest of a file that was taken before now."""
    from reconx_core.cache.digests import verify_from

    verify_from(time.time() if verify else 0.0)


@app.callback()
def about() -> None:
    """A few photos to a 3D Gaussian scene, and whole datasets evaluated."""


@app.command()
def reconstruct(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTOS...", help="A folder of 2 or more photos, the photos themselves, or a video.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path("outputs"),
    preset: PresetOption = None,
    set_: SetOption = None,
    vram: VramOption = None,
    store: StoreOption = None,
    verify: VerifyOption = False,
) -> None:
    """Photos or a video of a place to a 3D Gaussian scene."""
    from flows.execution.memory import apply_vram
    from flows.execution.run import default_store, resolve_settings
    from flows.reconstruct import reconstruct as run
    from flows.reconstruct import source_of

    read_anew(verify)
    settings = apply_vram(resolve_settings(preset, set_), vram, set_ or [], console)
    run(source_of(photos), out, settings, store or default_store(), console)


@app.command()
def evaluate(
    dataset: Annotated[
        str | None, typer.Argument(help="A scene or a folder of scenes; default: what params.yaml says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the results; default: runs/DATASET-1, -2, ...")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Same as -S views.split=...")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="A protocol such as easy-re10k or llff (docs/protocols.md); or posed, intrinsics, unposed."),
    ] = None,
    views: Annotated[int | None, typer.Option(help="Input views, where the protocol leaves a choice.")] = None,
    index: Annotated[Path | None, typer.Option(help="Views per scene, in pixelSplat's format.")] = None,
    scenes: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every scene; adds mean and spread over them.")] = 1,
    ablation: Annotated[bool, typer.Option("--ablation", help="The seven rows of the paper's Table V.")] = False,
    preset: PresetOption = None,
    set_: SetOption = None,
    vram: VramOption = None,
    store: StoreOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Scenes that run side by side; beside GPUs: processes without one.")
    ] = None,
    dask: DaskOption = None,
    verify: VerifyOption = False,
    gpus: Annotated[
        str | None, typer.Option(metavar="all|N", help="A process for each GPU of this machine, --workers beside them.")
    ] = None,
    gpu_slots: Annotated[int, typer.Option("--gpu-slots", min=1, help="Scenes at a time on a GPU.")] = 1,
    stage_timeout: Annotated[
        str | None, typer.Option("--stage-timeout", metavar="30m", help="A stage that takes longer fails; the others go on.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="By which compare will judge this run (docs/compare.md)."),
    ] = None,
    pages: Annotated[
        bool | None, typer.Option("--pages/--no-pages", help="scene.html of every scene; default: of at most 50 scenes.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Score another method's pictures or Gaussians instead (docs/bundles.md)."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="What that method is called; default: the name of its folder.")] = None,
) -> None:
    """Reconstruct and score every scene of a dataset; exit code 1 if a scene failed."""
    from flows.evaluate import checked_rule, make_request, results_folder, split_names
    from flows.evaluate import evaluate as run
    from flows.execution.memory import apply_vram
    from flows.execution.run import default_store
    from flows.execution.workers import choose_workers

    read_anew(verify)
    overrides = ([f"views.split={split}"] if split else []) + (set_ or [])
    only = split_names(scenes) if scenes is not None else ()
    if label is not None and predictions is None:
        raise UserError("--label names another method's --predictions; name a row of a table by LABEL=RUN there.")
    request = make_request(dataset, preset, overrides, protocol, views, index, only, seeds, ablation)
    if predictions is not None:
        unused = {
            "--ablation": ablation, "--seeds": seeds > 1, "--vram": vram, "--workers": workers, "--dask": dask, "--gpus": gpus,
            "--gpu-slots": gpu_slots > 1, "--stage-timeout": stage_timeout, "--pages": pages, "--rule": rule,
        }  # fmt: skip
        evaluate_predictions(request, predictions, label, out, store, set_ or [], unused)
        return
    settings = apply_vram(request.settings, vram, overrides, console)
    request = replace(request, settings=settings, pages=pages, rule=checked_rule(rule))
    crew = choose_workers(workers, dask, gpus, gpu_slots, stage_timeout)
    with results_folder(out, request.dataset) as folder:
        failed = run(request, folder, store or default_store(), console, crew)
    if failed:
        raise typer.Exit(1)


def evaluate_predictions(
    request: EvaluationRequest, predictions: Path, label: str | None, out: Path | None, store: Path | None,
    changes: list[str], unused: dict[str, Any],
) -> None:  # fmt: skip
    """Score what another method made; ``unused``: by their names, values of options that would have no effect."""
    from flows.evaluate import results_folder
    from flows.execution.run import default_store
    from flows.predictions import require_no_method, score_predictions

    if given := [option for option, value in unused.items() if value]:
        raise UserError(f"{', '.join(given)}: not with --predictions, by which nothing is reconstructed.")
    require_no_method(changes)
    with results_folder(out, request.dataset) as folder:
        failed = score_predictions(request, predictions, label, folder, store or default_store(), console)
    if failed:
        raise typer.Exit(1)


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="tiny, paper-image, paper-structure, extrapolate, or a YAML file.")] = "tiny",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for checkpoints, samples and the model.")] = Path("training"),
    set_: Annotated[list[str] | None, typer.Option("--set", "-S", metavar="KEY=VALUE", help="Change one setting.")] = None,
    store: StoreOption = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Clips that are made side by side.")] = 1,
    dask: DaskOption = None,
    verify: VerifyOption = False,
) -> None:
    """Train the video model on clips with true cameras; the same command goes on from the newest checkpoint."""
    from flows.execution.run import default_store
    from flows.train import resolve_train_settings
    from flows.train import train as run

    read_anew(verify)
    run(resolve_train_settings(preset, set_), out, store or default_store(), console, workers, dask)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A run's folder, or its name or id in MLflow.")],
    b: Annotated[str, typer.Argument(help="The other run.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[C ...]", help="Further runs; each is compared with A.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="PAGE.html", help="Also as a page, with pictures.")] = None,
    rule: Annotated[
        str | None,
        typer.Option(metavar="RULE|FILE", help="Such as 'mean difference > 0.1 dB with 95 % confidence' (docs/compare.md)."),
    ] = None,
) -> None:
    """The difference between runs, paired by scene, with 95 % intervals, and what differs in settings, weights and code.

    Exit code 1 where a rule does not hold.
    """
    from flows.evaluation.compare import compare as run

    if not run([a, b, *(more or [])], console, out, rule):
        raise typer.Exit(1)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="easy, hard, cross, multiview or ablation.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|LABEL=RUN]...", help="Runs' folders, names or ids; default: of every method the newest in MLflow."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for NAME.md, NAME.csv and NAME.tex.")] = Path("tables"),
) -> None:
    """A table of the paper, our runs' rows beside the published figures; every cell says which run it is of."""
    from flows.evaluation.paper_tables import table as run

    run(name, runs or [], out, console)


@app.command()
def render(
    scene: Annotated[Path, typer.Argument(help="scene.ply, or the folder it is in.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A clip (.mp4), or a folder for PNGs; default: render.mp4 beside the scene."),
    ] = None,
    cameras: Annotated[
        Path | None, typer.Option(help="Cameras that a smooth path leads through; default: those of the scene's photos.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Along the smooth path; default 120.")] = None,
    path: Annotated[
        Path | None, typer.Option("--path", help="A camera path (docs/paths.md): a frame for each of its cameras.")
    ] = None,
) -> None:
    """Frames along a camera path."""
    from flows.scene import render as run
    from flows.scene import render_file

    if path is None:
        run(scene, out, cameras, frames or 120, console)
    elif cameras is not None:
        raise UserError("--path and --cameras exclude each other: frames at the cameras of a file, or on a path through them.")
    elif frames is not None:
        raise UserError(
            "--path makes a frame for each camera of the file; give --cameras to have --frames along a path through them."
        )
    else:
        render_file(scene, out, path, console)


@app.command()
def export(
    scene: Annotated[Path, typer.Argument(help="scene.ply, or the folder it is in.")],
    out: Annotated[
        Path, typer.Argument(help="Where to; the ending says which format: .ply, .compressed.ply, .spz, .glb or .splat.")
    ],
    max_gaussians: Annotated[
        int | None, typer.Option("--max-gaussians", min=1, metavar="N", help="Only those that add most to the pictures.")
    ] = None,
    min_opacity: Annotated[
        float | None, typer.Option("--min-opacity", min=0, max=1, metavar="X", help="Only those at least this opaque.")
    ] = None,
    mesh: Annotated[bool, typer.Option("--mesh", help="A coloured mesh of the surfaces (.ply or .glb) instead.")] = False,
    detail: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Of a mesh: cells along the scene's longest side; default 256.")
    ] = None,
    cameras: Annotated[
        Path | None, typer.Option(help="transforms.json to choose and to look from; default: cameras/ beside the scene.")
    ] = None,
) -> None:
    """The scene in another format, with fewer Gaussians, or as a mesh (docs/export.md)."""
    if mesh and (max_gaussians, min_opacity) != (None, None):
        raise UserError("--max-gaussians and --min-opacity choose Gaussians, of which a mesh has none: leave out one of them.")
    if detail is not None and not mesh:
        raise UserError("--detail is of a mesh: add --mesh, or leave it out.")
    from flows import export as run

    if mesh:
        run.mesh(scene, out, console, detail, cameras)
    else:
        run.convert(scene, out, console, max_gaussians, min_opacity, cameras)


@app.command()
def view(
    scene: Annotated[Path, typer.Argument(help="scene.ply, or the folder it is in.")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the page (.html) to here instead.")] = None,
) -> None:
    """The scene in the browser: look around, go to the cameras, make camera paths."""
    from flows.view import view as run

    run(scene, port, out, console)


@app.command()
def backends() -> None:
    """What every stage can be done with, and what that needs."""
    from flows.doctor import print_backends

    print_backends(console)


@app.command()
def gc(
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, and say what would be removed.")] = False,
    older_than: Annotated[
        str | None, typer.Option(metavar="30d", help="Only what was made that long ago: hours (h), days (d) or weeks (w).")
    ] = None,
    forget: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="A run whose folder cannot be seen, and is gone for good.")
    ] = None,
) -> None:
    """Remove from the store what no remaining run, branch or experiment refers to."""
    from flows.execution.run import default_store
    from flows.runs.garbage import age_of, collect_garbage, print_garbage

    age = age_of(older_than) if older_than is not None else 0.0
    print_garbage(collect_garbage(store or default_store(), dry_run, age, forget or ()), dry_run, console)


@app.command()
def status(
    out: Annotated[Path | None, typer.Argument(help="A run's folder; default: the newest run with the store.")] = None,
    store: StoreOption = None,
) -> None:
    """How far a run has come: per stage what is done, failed and to do, and the errors."""
    from flows.runs.status import status as run

    run(out, store, console)


@app.command()
def why(
    scene: Annotated[str, typer.Argument(help="A scene's name in the run.")],
    stage: Annotated[
        str,
        typer.Argument(
            help="views, pointcloud, condition, video, confidence, splats or metrics; of rounds also join, and 'video 3'."
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="OUT", help="The run's folder; default: the newest with the scene.")
    ] = None,
    row: Annotated[str | None, typer.Option(help="Of the ablation, where rows do not share the stage.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where the run has several.")] = None,
    store: StoreOption = None,
) -> None:
    """Why a stage of a scene was computed or reused: what changed in settings, photos, code, weights or earlier stages."""
    from flows.runs.explain import why as explain

    explain(scene, stage, run, store, console, row, seed)


@app.command()
def doctor(store: StoreOption = None) -> None:
    """What works on this machine: CUDA, weights, versions, memory, disk."""
    from flows.doctor import doctor as run
    from flows.execution.run import default_store

    run(store or default_store(), console)


class MakesByDefault(TyperGroup):
    """Commands below `bundle`: a first word that is none of them is the run to bundle."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if known else ["make", *args])


bundles = typer.Typer(
    cls=MakesByDefault, no_args_is_help=True, help="A run as one file to hand on: reconx bundle RUN [-o FILE.zip]."
)
app.add_typer(bundles, name="bundle")


@bundles.command("make")
def make_bundle(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.zip", help="Default: bundle.zip in it.")] = None,
    store: StoreOption = None,
) -> None:
    """Renders of the held-out views, scores, settings, versions and SHA-256 of a run, as one zip; `make` may be left out."""
    from flows.bundle import make

    make(run, out, store, console)


@bundles.command("verify")
def verify_bundle(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    data: Annotated[str | None, typer.Option(help="The dataset, to compute the scores from the renders again.")] = None,
) -> None:
    """Check a bundle's digests and means and, with its dataset, its scores; exit code 1 if it does not hold."""
    from flows.bundle import verify

    if not verify(file, data, console):
        raise typer.Exit(1)


@bundles.command("page")
def bundle_page(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Bundles.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PAGE.html")] = Path("leaderboard.html"),
) -> None:
    """Several bundles as one page: a leaderboard over the scenes that all of them have."""
    from flows.bundle import page

    page(files, out, console)


stored = typer.Typer(no_args_is_help=True, help="Where results of stages are kept.")
app.add_typer(stored, name="store")


@stored.command("verify")
def verify_store(store: StoreOption = None) -> None:
    """Read every artifact of the store and name those that are damaged; exit code 1 if any is."""
    from flows.execution.run import default_store
    from flows.runs.verify import verify as run

    read_anew(True)
    if run(store or default_store(), console):
        raise typer.Exit(1)


weights = typer.Typer(no_args_is_help=True, help="Published weights: fetch, verify, convert.")
app.add_typer(weights, name="weights")


@weights.command("fetch")
def fetch_weights(
    name: Annotated[str | None, typer.Argument(help="What to fetch; without it: what there is.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the Hugging Face Hub.")] = "main",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence for non-commercial use without the question.")
    ] = False,
) -> None:
    """Published weights to RECONX_WEIGHTS, LPIPS and from the Hugging Face Hub; nothing else in reconx downloads anything."""
    from flows.weights.fetch import fetch as run
    from flows.weights.fetch import print_published
    from flows.weights.lpips import fetch_lpips

    if name is None:
        print_published(console)
    elif name.lower() == "lpips":
        fetch_lpips(console)
    else:
        run(name, revision, accept_licence, console)


@weights.command("verify")
def verify_weights(
    path: Annotated[Path, typer.Argument(help="A file or folder of weights, itself or in RECONX_WEIGHTS.")],
) -> None:
    """Compare weights with what their network needs, and with their recorded SHA-256; exit code 2 if they differ."""
    from flows.weights.convert import verify as run

    run(path, console)


@weights.command("convert")
def convert_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A downloaded file of DynamiCrafter, ViewCrafter or DUSt3R.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="New folder; default: one in RECONX_WEIGHTS.")] = None,
    variant: Annotated[str | None, typer.Option(help="i2v, interp or viewcrafter; default: what the file's name says.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: as in the file.")] = None,
    config: Annotated[Path | None, typer.Option(help="Upstream's YAML of a model of other than the published sizes.")] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of CLIP-ViT-H-14, for the towers and the tokenizer that the checkpoint lacks.")
    ] = None,
) -> None:
    """A published checkpoint to a folder that the backends load; nothing is downloaded."""
    from flows.weights.convert import convert as run

    run(checkpoint, out, variant, dtype, config, clip, console)


@app.command(hidden=True)
def stage(name: str, store: StoreOption = None) -> None:
    """One stage over the dataset in params.yaml, or `inputs`, for dvc.yaml."""
    from flows.execution.run import default_store
    from flows.stage import INPUTS, run_stage, write_inputs

    root = store or default_store()
    if name == INPUTS:
        write_inputs(root)
    else:
        run_stage(name, root, console)


if __name__ == "__main__":
    main()
