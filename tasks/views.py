"""Stage `views`: a scene of a dataset, or a folder of photos -> input and target views."""

from typing import Any

from reconx_core import views
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    return {"views": views.load_views(job.source, job.settings.views)}
