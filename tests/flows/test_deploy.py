"""The flow that Prefect users deploy: the same run as the command line's, seen on Prefect's server with names and tags."""

import pytest
from prefect import get_client
from prefect.context import TaskRunContext
from prefect.exceptions import FailedRun, ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from standins import write_folder

from flows.deploy import reconx_evaluate
from flows.execution import flow as execution
from flows.execution.plan import ScenePlan
from reconx_core.settings import STAGES, Settings


@pytest.fixture
def dataset(tmp_path):
    write_folder(tmp_path / "data" / "attic")
    return str(tmp_path / "data")


@pytest.fixture
def seen(monkeypatch):
    """The task runs that Prefect makes, as on a machine with a GPU: by name, with their tags and flow run."""
    runs, execute = {}, execution.execute

    def record(*given):
        run = TaskRunContext.get().task_run
        runs[run.name] = set(run.tags), run.flow_run_id
        return execute(*given)

    monkeypatch.setattr(execution, "execute", record)
    monkeypatch.setattr(execution, "device_class", lambda: "cuda 12.6")  # not that of the keys
    return runs


@pytest.mark.slow
def test_flow_runs_as_the_command_does(reconx, tiny, seen, dataset, tmp_path):
    out, store = tmp_path / "runs" / "nightly", tmp_path / "store"
    state = reconx_evaluate(dataset, str(out), store=str(store), overrides=["splats.steps=3"], return_state=True)
    assert state.is_completed()
    assert state.result()["psnr"] > 20
    assert (out / "attic" / "scene.ply").exists()
    assert set(seen) == {f"{stage} attic" for stage in STAGES}
    for name, (tags, _) in seen.items():
        stage = name.split()[0]
        assert tags == {stage, "attic"} | ({"gpu"} if stage in ("video", "splats", "metrics") else set())
    with get_client(sync_client=True) as client:
        outer = client.read_flow_run(state.state_details.flow_run_id)
        (inner,) = {client.read_flow_run(flow_run).parent_task_run_id for _, flow_run in seen.values()}
    assert outer.name == "data into nightly"
    assert inner is not None  # the stages' flow run belongs to the deployed one's
    assert len(tiny()) == len(STAGES)
    assert reconx("evaluate", dataset, "-o", tmp_path / "other", "--store", store, "-S", "splats.steps=3").code == 0
    assert tiny() == []


def test_runs_with_a_server_of_their_own_have_no_tags(monkeypatch):
    """Prefect asks for the limits of each task with tags, and nobody can have set any there."""
    (step, *_) = execution.make_steps([execution.SceneRun(ScenePlan("attic", "procedural:room", Settings()))], STAGES)
    for own, tags in ((False, {"views", "attic"}), (True, set())):
        monkeypatch.setattr(execution, "has_own_server", lambda own=own: own)
        assert execution.tags_of(step) == tags


def test_flow_of_a_failed_scene_has_failed(tiny, server, dataset, tmp_path):
    write_folder(tmp_path / "data" / "broken")
    with pytest.raises(FailedRun, match="1 of 2 scenes failed"):  # whatever the number of seeds
        reconx_evaluate(dataset, str(tmp_path / "out"), store=str(tmp_path / "store"), seeds=2)
    assert (tmp_path / "out" / "attic" / "seed-0" / "scene.ply").exists()


def test_mistakes_are_found_before_anything_runs(tiny, server, dataset, tmp_path):
    with pytest.raises(ParameterTypeError, match="workers"):
        reconx_evaluate(dataset, str(tmp_path / "out"), workers=0)
    state = reconx_evaluate(dataset, str(tmp_path / "out"), preset="defualt", return_state=True)
    assert state.is_failed()
    assert state.message.startswith("There is no preset 'defualt'")
    state = reconx_evaluate(str(tmp_path / "nowhere"), str(tmp_path / "out"), return_state=True)
    assert state.message.startswith("There is no")
    assert not (tmp_path / "out").exists()


def test_deployment_has_the_parameters_and_the_schedule(server):
    deployment = reconx_evaluate.to_deployment(
        "nightly", cron="0 3 * * *", parameters={"dataset": "/data", "output": "/runs/n"}
    )
    schema = deployment._parameter_openapi_schema.model_dump()
    assert schema["required"] == ["dataset", "output"]
    assert schema["properties"]["workers"]["minimum"] == 1
    with get_client(sync_client=True) as client:
        found = client.read_deployment(deployment.apply())
    assert found.entrypoint.endswith("flows/deploy.py:reconx_evaluate")
    assert found.schedules[0].schedule.cron == "0 3 * * *"
    loaded = load_flow_from_entrypoint(found.entrypoint)  # as a worker does
    assert loaded.validate_parameters({"dataset": "/data", "output": "/runs", "workers": 2})["workers"] == 2
    with pytest.raises(ParameterTypeError, match="workers"):
        loaded.validate_parameters({"dataset": "/data", "output": "/runs", "workers": 0})
