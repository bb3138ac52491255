"""Stage `views`: a scene of a dataset, or a folder of photos -> input and target views."""

import json
from pathlib import Path
from typing import Any

from reconx_core import datasets, views
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    loaded = views.load_views(job.source, job.settings.views)
    split = job.settings.views.split
    if split == "auto":
        split = datasets.read(Path(job.source)).default_split or "all photos"
    return {"views": loaded, "split.json": json.dumps({"split": split}).encode()}
