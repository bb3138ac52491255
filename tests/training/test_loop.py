"""The training loop: it learns, resumes exactly, and trains the parameters of its phase."""

import json

import pytest
import torch
from small_models import small_pipeline

from reconx_core.errors import UserError
from reconx_core.training.batches import draw_batch, prepared_clips, reads_of
from reconx_core.training.checkpoints import PROGRESS, remove, whole_checkpoints
from reconx_core.training.loop import EpochClips, lr_lambda, train
from reconx_core.training.objective import Objective, choose_parameters, draw_timesteps, drop_conditions, freeze_unreached
from reconx_core.training.samples import sample_grid
from reconx_core.training.schedule import make_schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.training.validation import validation_loss

pytestmark = pytest.mark.long


def settings(**changes):
    given = {"model": "tiny", "crop": (48, 64), "frames": 4, "points": 256, "steps": 4, "warmup": 0}
    given |= {"terminal_share": 0.5, "ema": 0.9}
    return TrainSettings(**{**given, **changes})


def only(clip):
    return EpochClips(1, lambda epoch: [lambda: clip])


def draws(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def run(out, clip, **changes):
    log = Losses()
    made = train(small_pipeline(), only(clip), settings(**changes), out, log)
    return log.losses, torch.cat([p.detach().flatten() for p in made.unet.parameters()])


class Losses:
    """A log that keeps the losses, and ends the run at step ``last``."""

    def __init__(self, last=None):
        self.losses, self.last = [], last

    def step(self, number, loss):
        if number == self.last:
            raise KeyboardInterrupt
        self.losses.append(loss)

    def sample(self, number, objective):
        pass


@pytest.mark.long
def test_resuming_from_a_checkpoint_changes_nothing(tmp_path, clip):
    straight, weights = run(tmp_path / "a", clip, checkpoint_every=2)
    run(tmp_path / "b", clip, steps=2, checkpoint_every=2, decay=False)
    (tmp_path / "b").rename(tmp_path / "unused")
    interrupted(tmp_path / "c", clip)
    rest, resumed = run(tmp_path / "c", clip, checkpoint_every=2)
    assert rest == straight[2:]
    assert torch.equal(resumed, weights)


def interrupted(out, clip):
    """A run that ends after its first checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        train(small_pipeline(), only(clip), settings(checkpoint_every=2), out, Losses(last=2))
    assert [folder.name for folder in whole_checkpoints(out)] == ["000002"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, clip):
    run(tmp_path, clip, steps=1)
    with pytest.raises(UserError, match="learning_rate"):
        run(tmp_path, clip, steps=2, learning_rate=0.5)


@pytest.mark.long
def test_a_checkpoint_with_earlier_names_of_settings_is_resumed(tmp_path, clip):
    run(tmp_path, clip, steps=1)
    progress = whole_checkpoints(tmp_path)[0] / PROGRESS
    saved = json.loads(progress.read_text())
    saved["settings"]["vary"] = saved["settings"].pop("augment")
    saved["settings"]["kept_clips"] = saved["settings"].pop("clip_cache")
    progress.write_text(json.dumps(saved))
    losses, _ = run(tmp_path, clip, steps=2)
    assert len(losses) == 1


@pytest.mark.long
def test_a_checkpoint_that_is_older_than_some_settings_is_resumed(tmp_path, clip):
    """It was made on renders, and its data had no frame rate."""
    told = {"renders": True, "data": [{"path": "procedural:hall?seed=1"}]}
    run(tmp_path, clip, steps=1, **told)
    progress = whole_checkpoints(tmp_path)[0] / PROGRESS
    saved = json.loads(progress.read_text())
    for key in ("renders", "sample_steps"):
        del saved["settings"][key]
    del saved["settings"]["data"][0]["fps"]
    progress.write_text(json.dumps(saved))
    assert len(run(tmp_path, clip, steps=2, **told)[0]) == 1
    with pytest.raises(UserError, match="renders"):
        run(tmp_path, clip, steps=3, **told | {"renders": False})


def test_without_clips_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no clip"):
        train(small_pipeline(), EpochClips(0, lambda epoch: []), settings(), tmp_path)
    with pytest.raises(UserError, match="no clip"):  # all that were drawn could not be made
        train(small_pipeline(), EpochClips(2, lambda epoch: []), settings(), tmp_path)


def test_phases_train_what_they_say():
    objective = Objective(small_pipeline(), settings())
    names = {id(parameter): name for name, parameter in objective.networks.named_parameters()}
    chosen = {phase: {names[id(p)] for p in choose_parameters(objective, phase)} for phase in ("image", "structure", "all")}
    assert chosen["all"] == set(names.values())
    assert all("_ip." in name or name.startswith("image_projector") for name in chosen["image"])
    assert any("structure_gate" in name for name in chosen["structure"])
    assert any(name.startswith("structure_encoder") for name in chosen["structure"])
    assert not any("temp_" in name or "transformer_in" in name or "image_encoder" in name for name in chosen["structure"])


def test_conditions_are_dropped_with_their_probability():
    present, absent = torch.ones(4000, 1, 1), torch.zeros(4000, 1, 1)
    tokens = {"image": (present, absent), "text": (present, None)}
    kept = drop_conditions(tokens, {"image": 0.25}, draws(4000))
    assert kept["image"].mean() == pytest.approx(0.75, abs=0.03)
    assert (kept["text"] == 1).all()


def test_the_last_timestep_has_its_share():
    drawn = draw_timesteps(0.5, draws(4000))
    assert (drawn == 999).float().mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.min() < 10


def test_the_learning_rate_rises_and_falls():
    chosen = settings(steps=100, warmup=10)
    rates = [lr_lambda(step, chosen) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, abs=0.01)


def test_a_sample_grid_shows_truth_render_and_frames(clip):
    grid, scores = sample_grid(small_pipeline(), [clip, clip], settings())
    assert grid.shape == (6 * 48, 4 * 64, 3)
    assert scores.keys() == {"points_psnr", "psnr"}


@pytest.mark.slow
def test_one_clip_is_overfitted(tmp_path, clip):
    """The network, its conditions and the loss fit together: frames of a clip it has seen come out above 30 dB."""
    chosen = settings(steps=200, learning_rate=3e-3, terminal_share=1.0, ema=0, drop_image=0, drop_structure=0, augment=False)
    log = Losses()
    made = train(small_pipeline(), only(clip), chosen, tmp_path, log)
    _, scores = sample_grid(made, [clip], chosen)
    assert sum(log.losses[-20:]) < 0.2 * sum(log.losses[:20])
    assert scores["psnr"] > 30 > scores["points_psnr"]


@pytest.mark.parametrize("phase", ["all", "image", "structure"])
@pytest.mark.parametrize("blends", [True, False])
def test_every_parameter_that_learns_has_a_gradient(clip, phase, blends):
    """Several processes would wait for the gradient of one that has none."""
    chosen = settings(phase=phase, drop_image=0.5, drop_structure=0.5)
    pipeline = small_pipeline(blends)
    objective = Objective(pipeline, chosen)
    choose_parameters(objective, phase)
    freeze_unreached(pipeline)
    reads = reads_of(pipeline, chosen)
    ready = prepared_clips([lambda: clip], reads, 1)
    objective(draw_batch(ready, make_schedule(chosen, 1, 1, 0), 0, 0, chosen, reads)).backward()
    learning = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
    assert learning
    assert [name for name in learning if objective.get_parameter(name).grad is None] == []


def test_accumulated_steps_are_those_of_a_larger_batch(tmp_path, clip):
    """And they count as one: the warm-up, too, is in updates."""
    shared = {"steps": 2, "warmup": 2, "terminal_share": 0.0, "learning_rate": 1e-3}
    at_once, weights = run(tmp_path / "a", clip, batch=4, **shared)
    in_parts, accumulated = run(tmp_path / "b", clip, batch=1, accumulate=4, **shared)
    assert len(at_once) == len(in_parts) == 2
    assert in_parts == pytest.approx(at_once, rel=1e-5)
    assert (accumulated - weights).abs().max() < 1e-5
    further, _ = run(tmp_path / "b", clip, batch=2, accumulate=2, **shared | {"steps": 3})
    assert len(further) == 1
    with pytest.raises(UserError, match="4 clips per update, here 2"):
        run(tmp_path / "b", clip, batch=2, **shared | {"steps": 4})


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept_and_the_newest_whole_one_is_resumed(tmp_path, clip):
    kept = {"checkpoint_every": 1, "checkpoints": 2, "decay": False}
    _, weights = run(tmp_path, clip, steps=4, **kept)
    newest, before = whole_checkpoints(tmp_path)
    assert [newest.name, before.name] == ["000004", "000003"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000003", "000004"]
    (newest / PROGRESS).unlink()  # as where it was killed while it wrote or removed
    losses, again = run(tmp_path, clip, steps=4, **kept)
    assert len(losses) == 1
    assert torch.equal(again, weights)
    remove(newest)
    before.rename(tmp_path / "last")  # where earlier versions had theirs
    assert len(run(tmp_path, clip, steps=4, **kept)[0]) == 1
    assert [folder.name for folder in whole_checkpoints(tmp_path)] == ["000004", "last"]


def test_the_validation_loss_is_the_same_every_time_and_sees_the_weights(clip):
    objective = Objective(small_pipeline(), settings(drop_image=1.0, drop_structure=1.0, frames=9, crop=(640, 640))).eval()
    ready = prepared_clips([lambda: clip], reads_of(objective.pipeline, objective.settings), 1)
    first, second = (validation_loss(objective, ready, objective.settings) for _ in range(2))
    assert first == second
    other = Objective(objective.pipeline, settings(frames=9, crop=(640, 640))).eval()
    assert validation_loss(other, ready, other.settings) == first, "nothing is dropped"
    torch.nn.init.normal_(objective.pipeline.unet.conv_out.weight)
    assert validation_loss(objective, ready, objective.settings) != first


def test_every_epoch_has_clips_of_its_own(tmp_path, clip):
    asked = []
    clips = EpochClips(2, lambda epoch: asked.append(epoch) or [lambda: clip])
    chosen = settings(steps=3, new_clips=True, batch=1)
    train(small_pipeline(), clips, chosen, tmp_path)
    assert asked == [0, 1]
    asked.clear()
    train(small_pipeline(), clips, chosen.model_copy(update={"steps": 4, "decay": True}), tmp_path)
    assert asked == [1], "it goes on in the middle of an epoch"
