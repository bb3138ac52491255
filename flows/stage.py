"""What `dvc repro` runs: the flow up to one stage over the dataset in params.yaml, and that stage's view of the store.

Before the stages, `inputs` writes down the digests of the dataset and the weights, which lie anywhere, so that DVC sees them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.evaluate import find_scenes
from flows.execution.plan import ScenePlan, SceneRun
from flows.execution.run import load_params, run_stages
from flows.runs import registry
from reconx_core.errors import UserError
from reconx_core.io.checked import find_object
from reconx_core.io.files import write_json
from reconx_core.names import quoted, shown
from reconx_core.reporting.numbers import mean_scores
from reconx_core.settings import STAGES, Settings

ARTIFACTS = Path(registry.ARTIFACTS)
INPUTS = "inputs"  # the stage before the first, and its folder
REPORT = "report"
SCORES = "scores.json"  # of the whole dataset, in the folder of `metrics`


def run_stage(stage: str, root: Path, console: Console, artifacts: Path = ARTIFACTS) -> None:
    """Run up to ``stage`` and lay ``artifacts/<stage>/<scene>/`` and its index. Failed scenes are named in the index.

    After `metrics` the scores are printed, and a report is written to ``artifacts/report/``.

    Raises:
        UserError: wrong params.yaml, or every scene failed.
    """
    if stage not in STAGES:
        raise UserError(f"There is no stage '{stage}'; there are {', '.join((INPUTS, *STAGES))}.")
    started = time.time()
    dataset, settings = load_params()
    if settings.condition.rounds > 1:
        raise UserError(
            "dvc repro knows the seven stages, not rounds of them; condition.rounds is for reconstruct and evaluate."
        )

    def plans() -> list[ScenePlan]:
        adopt(artifacts, root)
        return [ScenePlan(name, source, settings) for name, source in find_scenes(dataset)]

    from tasks.execute import stages_before

    runs = run_stages(plans, root, console, stages_before(stage))

    from flows.execution.flow import describe_error

    # First of all: what is laid out below must not be removed meanwhile.
    references = [reference for run in runs for reference in run.references.values()]
    registry.register_project(root, project_folder(), references)
    registry.register_stage(root, artifacts / stage, references)  # the artifacts of the other stages are other runs' to keep
    folder = artifacts / stage
    shutil.rmtree(folder, ignore_errors=True)
    done = {run.name: run.references[stage] for run in runs if run.error is None}
    for name, reference in done.items():
        lay(reference.folder(root), folder / name)
    failed = {run.name: f"{run.failed_stage}: {describe_error(run.error)}" for run in runs if run.error is not None}
    write_json(folder / registry.INDEX, {"scenes": {name: ref.digest for name, ref in done.items()}, "failed": failed})
    if stage == "metrics":
        write_json(folder / SCORES, dataset_scores([folder / name for name in done]))
        report(runs, root, settings, {"dataset": dataset, "started": started}, artifacts / REPORT, console)
    else:
        for name, error in failed.items():
            console.print(f"[red]{escape(f'{name} failed in {error}')}[/red]", soft_wrap=True)
    if not done:
        raise UserError(f"Every scene failed: {'; '.join(failed.values())}")


def report(runs: list[SceneRun], root: Path, settings: Settings, about: dict[str, Any], out: Path, console: Console) -> None:
    """Scores on the terminal, and a page with them in ``out``. ``about``: see :func:`flows.runs.results.write_run`."""
    from flows.evaluation import score_tables
    from flows.runs import results

    title = os.environ.get("DVC_EXP_NAME") or project_folder().name
    shutil.rmtree(out, ignore_errors=True)
    scenes = [results.scene_record(run, root) for run in runs]
    score_tables.print_scores(console, results.write_run(out, shown(title), runs, scenes, root, settings, about))
    console.print(f"The report: {out / 'report.html'}", soft_wrap=True, markup=False)


def project_folder() -> Path:
    """The DVC project: DVC names it to what it runs, in the temporary copy of a queued experiment, too."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def write_inputs(root: Path, artifacts: Path = ARTIFACTS) -> None:
    """Write ``artifacts/inputs/<stage>.json``: digests of the scenes for `views`, of a file of cameras for `condition`, of the
    weights for the other stages.

    What cannot be read has None; the stage that needs it says why. Files keep their bytes where nothing has changed.
    ``root``: of the store that remembers digests.

    Raises:
        UserError: wrong params.yaml, or no scene.
    """
    from tasks.execute import PARENTS, path_digests, source_digest, weights_digests

    dataset, settings = load_params()
    scenes = {name: _digest_of(source_digest, source, root) for name, source in find_scenes(dataset)}
    weights = {stage: _digest_of(weights_digests, stage, settings, root) for stage in STAGES if PARENTS[stage]}
    cameras = {"condition": _digest_of(path_digests, "condition", settings, root)}
    for stage, digests in {"views": scenes, **weights, **cameras}.items():
        write_json(artifacts / INPUTS / f"{stage}.json", digests)


def _digest_of(digests: Callable[..., dict[str, str] | str], *arguments: Any) -> dict[str, str] | str | None:
    try:
        found = digests(*arguments)
    except UserError:
        return None
    return found if isinstance(found, dict) else hashlib.sha256(found.encode()).hexdigest()


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
    """Take into the store what `dvc checkout` or `dvc pull` has brought into ``artifacts`` and the store lacks.

    Raises:
        UserError: a manifest names a place that is none of its stage's.
    """
    from reconx_core.cache import store

    for manifest in artifacts.glob(f"*/*/{store.MANIFEST}"):
        about = find_object(manifest)  # a damaged one is computed anew
        if not about:
            continue
        stage, key = str(about.get("stage")), str(about.get("key"))
        if stage != manifest.parents[1].name or not store.is_place(stage, key):
            raise UserError(
                f"'{manifest}' is of no artifact of reconx (stage {quoted(stage)}, key {quoted(key)}); nothing of it is taken "
                "into the store. Delete its folder, or pull it again from a place that you trust."
            )
        if not (root / stage / key).exists():
            store.adopt(root, stage, key, lambda folder, source=manifest.parent: lay(source, folder))


def link_or_copy(source: Path, target: Path) -> None:
    """A hardlink, or a copy where the two are on different file systems or the source is a link into DVC's cache."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
