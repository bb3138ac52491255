"""Stage `views`: a scene of a dataset, or a folder of photos -> input and target views."""

import json
from pathlib import Path
from typing import Any

from reconx_core import datasets, views
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    capture = datasets.read(Path(job.source))
    split = views.split_name(capture, job.settings.views)
    return {"views": views.views_of(capture, job.settings.views), "split.json": json.dumps({"split": split}).encode()}
