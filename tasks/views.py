"""Stage `views`: a scene of a dataset, or a folder of photos -> input and target views."""

import json
from pathlib import Path
from typing import Any

from reconx_core import datasets, views
from tasks.execute import Inputs, Job, also_measured


def run(job: Job, read: Inputs) -> dict[str, Any]:
    capture = datasets.read(Path(job.source))
    made, depth = views.views_with_depth(capture, job.settings.views)
    also_measured(photos=int((~made.is_target).sum()), pixels=made.images.shape[1] * made.images.shape[2])
    split = views.split_name(capture, job.settings.views)
    results: dict[str, Any] = {"views": made, "split.json": json.dumps({"split": split}).encode()}
    if depth is not None:
        results["depth"] = depth
    # Where cameras are estimated, the scene is in a frame of its own. No file where there is no offset: most artifacts lack it.
    if made.protocol == "posed" and any(capture.origin):
        results["origin.json"] = json.dumps({"origin": capture.origin}).encode()
    return results
