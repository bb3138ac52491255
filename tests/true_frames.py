"""An oracle in the place of a video model: true frames of a procedural scene, so that what is wrong is the machinery's.

The seam is `reconx_core.video._generate`, through which every model's frames pass; :func:`install` replaces it. As a script,
with the scene's name and seed before its arguments: reconx with true frames. RECONX_TEST_DIE=TASK:NUMBER then kills it when
that task (`video` or `join`) begins for the NUMBER-th time.
"""

import os
import signal
import sys

import torch

from reconx_core import video
from reconx_core.datasets import procedural
from reconx_core.datasets.raycast import render


def shoot(name, seed, cameras):
    """What the scene looks like from any camera."""
    scene = procedural.build(name, seed)
    shots = [
        render(scene, k, pose, cameras.height, cameras.width)[0] for k, pose in zip(cameras.intrinsics, cameras.cam_to_world)
    ]
    return torch.stack(shots)


def install(name, seed, setattr=setattr):
    """Put the oracle in place of the models; ``setattr`` may be pytest's monkeypatch.setattr."""

    def true_frames(inputs, pointmaps, condition, settings, generator, progress):
        images = shoot(name, seed, condition.cameras)
        return images, torch.ones(images.shape[:3])

    setattr(video, "_generate", true_frames)


def die_at(task, number):
    """Kill this process when ``task`` begins for the ``number``-th time."""
    from tasks import join

    module, name = (video, "_generate") if task == "video" else (join, "join_round")
    work, begun = getattr(module, name), []

    def mortal(*arguments):
        begun.append(task)
        if len(begun) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments)

    setattr(module, name, mortal)


if __name__ == "__main__":
    from flows.cli import main

    scene, number, *arguments = sys.argv[1:]
    install(scene, int(number))
    if "RECONX_TEST_DIE" in os.environ:
        victim, _, time = os.environ["RECONX_TEST_DIE"].partition(":")
        die_at(victim, int(time))
    sys.argv = ["reconx", *arguments]
    main()
