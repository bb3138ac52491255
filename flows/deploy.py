"""`reconx evaluate` as a Prefect flow, to be deployed and scheduled (docs/scale.md).

Import it where Prefect's settings name the server that the flow is to run on: the tasks of the stages go there, too.
"""

# No annotations from __future__: where Prefect loads the flow from this file, pydantic could not look their names up.

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field
from rich.console import Console

from flows.evaluate import evaluate, make_request
from flows.execution.run import default_store
from flows.execution.workers import choose_workers
from reconx_core.errors import UserError
from reconx_core.reporting.numbers import mean_scores

Count = Annotated[int, Field(ge=1)]


def _run_name() -> str:
    given = flow_run.parameters
    return f"{Path(given['dataset']).name} into {Path(given['output']).name}"


@flow(name="reconx-evaluate", flow_run_name=_run_name, persist_result=False)
def reconx_evaluate(
    dataset: str,
    output: str,
    preset: str = "default",
    overrides: list[str] | None = None,
    protocol: str | None = None,
    views: int | None = None,
    scenes: list[str] | None = None,
    seeds: Count = 1,
    store: str | None = None,
    workers: Count = 1,
    dask: str | None = None,
    gpus: str | None = None,
    stage_timeout: str | None = None,
) -> State[Any]:
    """What `reconx evaluate DATASET -o OUTPUT` does, with the same results.

    The result is the run's mean scores. Where a scene fails, or nothing can be run, the state is failed, with a sentence. Paths
    are best absolute: a worker starts the flow in a folder of its own.
    """
    only, root = tuple(scenes or ()), Path(store) if store else default_store()
    console = Console(file=_LogLines(get_run_logger()), width=128, highlight=False, emoji=False)
    try:
        request = make_request(dataset, preset, overrides or [], protocol, views, only=only, seeds=seeds)
        with _server_of_this_flow():
            evaluate(request, Path(output), root, console, choose_workers(workers, dask, gpus, limit=stage_timeout))
    except UserError as error:
        return Failed(message=str(error))
    done = json.loads((Path(output) / "run.json").read_text())["scenes"].values()
    failed = sum(scene["error"] is not None for scene in done)  # not per seed, as `evaluate` counts
    if failed:
        return Failed(message=f"{failed} of {len(done)} scenes failed; {output}/report.html says how.")
    return Completed(data=mean_scores(scene["summary"] for scene in done))


@contextmanager
def _server_of_this_flow() -> Iterator[None]:
    """Name the server that Prefect's settings or profile choose where :func:`prefect_server` looks for it."""
    before = os.environ.get("PREFECT_API_URL")
    with get_client(sync_client=True) as client:
        os.environ["PREFECT_API_URL"] = str(client.api_url).rstrip("/")
    try:
        yield
    finally:
        os.environ.pop("PREFECT_API_URL")
        if before is not None:
            os.environ["PREFECT_API_URL"] = before


class _LogLines(io.StringIO):
    """What is printed, line by line as the flow run's log."""

    def __init__(self, logger: Logger | LoggerAdapter[Logger]) -> None:
        super().__init__()
        self._logger, self._open = logger, ""

    def write(self, text: str, /) -> int:
        *lines, self._open = (self._open + text).split("\n")
        for line in lines:
            if line.strip():
                self._logger.info(line.rstrip())
        return len(text)
