"""What `dvc repro` runs: the flow up to one stage over the dataset in params.yaml, and that stage's view of the store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.evaluate import find_scenes
from flows.execution.plan import ScenePlan
from flows.execution.run import load_params, run_stages
from reconx_core.errors import UserError
from reconx_core.reporting.numbers import mean_scores
from reconx_core.settings import STAGES

ARTIFACTS = Path("artifacts")
INDEX = "index.json"
SCORES = "scores.json"  # of the whole dataset, in the folder of `metrics`


def run_stage(stage: str, root: Path, console: Console, artifacts: Path = ARTIFACTS) -> None:
    """Run up to ``stage`` and lay ``artifacts/<stage>/<scene>/`` and its index. Failed scenes are named in the index.

    Raises:
        UserError: wrong params.yaml, or every scene failed.
    """
    if stage not in STAGES:
        raise UserError(f"There is no stage '{stage}'; there are {', '.join(STAGES)}.")
    dataset, settings = load_params()

    def plans() -> list[ScenePlan]:
        adopt(artifacts, root)
        return [ScenePlan(name, source, settings) for name, source in find_scenes(dataset)]

    from tasks.execute import stages_before

    runs = run_stages(plans, root, console, stages_before(stage))

    from flows.execution.flow import describe_error
    from flows.runs.registry import register_end
    from reconx_core.io.files import write_json

    folder = artifacts / stage
    shutil.rmtree(folder, ignore_errors=True)
    done = {run.name: run.references[stage] for run in runs if run.error is None}
    for name, reference in done.items():
        lay(reference.folder(root), folder / name)
    failed = {run.name: f"{run.failed_stage}: {describe_error(run.error)}" for run in runs if run.error is not None}
    if stage == "metrics":
        write_json(folder / SCORES, dataset_scores([folder / name for name in done]))
    write_json(folder / INDEX, {"scenes": {name: ref.digest for name, ref in done.items()}, "failed": failed})
    # Under the stage's name: the artifacts of the other stages are other runs' to keep.
    register_end(root, folder, [reference for run in runs for reference in run.references.values()])
    for name, error in failed.items():
        console.print(f"[red]{escape(f'{name} failed in {error}')}[/red]", soft_wrap=True)
    if not done:
        raise UserError(f"Every scene failed: {'; '.join(failed.values())}")


def dataset_scores(scenes: list[Path]) -> dict[str, float]:
    """Means over the scenes of the scores that all of them have, for `dvc metrics` and `dvc exp show`."""
    summaries = [json.loads((scene / "metrics.json").read_text())["summary"] for scene in scenes]
    return {key: mean for key, mean in mean_scores(summaries).items() if mean is not None}


def lay(entry: Path, view: Path) -> None:
    """Show an entry of the store at ``view``, by hardlinks; what was measured stays out, for it differs from run to run."""
    from reconx_core.cache.store import MEASURED, RECORD

    for file in entry.rglob("*"):
        if file.is_file() and file.name not in (MEASURED, RECORD):
            link_or_copy(file, view / file.relative_to(entry))


def adopt(artifacts: Path, root: Path) -> None:
    """Take into the store what `dvc checkout` or `dvc pull` has brought into ``artifacts`` and the store lacks."""
    from reconx_core.cache import store

    for manifest in artifacts.glob(f"*/*/{store.MANIFEST}"):
        about = json.loads(manifest.read_text())
        if not (root / about["stage"] / about["key"]).exists():
            store.adopt(root, about["stage"], about["key"], lambda folder, source=manifest.parent: lay(source, folder))


def link_or_copy(source: Path, target: Path) -> None:
    """A hardlink, or a copy where the two are on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
