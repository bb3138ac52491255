"""Eq. 9 compared with upstream step by step, and its results on rooms with known geometry."""

import pytest
import torch
from upstream import assert_close, cases, fixtures, load

from reconx_core.datasets import procedural
from reconx_core.geometry.transforms import (
    depth_of,
    fit_similarity,
    pixel_grid,
    quaternion_to_matrix,
    rotation_angle,
    transform,
    unproject,
)
from reconx_core.pointcloud.global_alignment import refine as alignment_refine
from reconx_core.pointcloud.global_alignment.align import align_pointmaps, clean_confidence
from reconx_core.pointcloud.global_alignment.refine import (
    Descent,
    Held,
    Similarity,
    State,
    Variables,
    backpropagate,
    decode,
    descend,
    encode,
    evaluate,
    pack,
    slopes,
)
from reconx_core.pointcloud.global_alignment.start import fit_focal
from reconx_core.types import Cameras

pytestmark = pytest.mark.long

FIXTURES = "dust3r_global_alignment*"


# --- upstream's numbers ------------------------------------------------------------------------------------------------


def golden_cases(holds):
    """Those that ``holds`` is true of, by the fixture's tensors and the case's name and description."""
    return [p for p in cases(FIXTURES) if p.values[0] is None or holds(load(p.values[0])[0], p.values[1], about(*p.values))]


def about(path, case):
    description = load(path)[1]["cases"].get(case)
    return description if isinstance(description, dict) else {}


def inputs(path, case):
    """Pairs, pointmaps and confidences; some cases share another one's."""
    tensors = load(path)[0]
    name = about(path, case).get("inputs", case).split()[-1]
    points, confidence = (torch.stack([tensors[f"{name}.in.{key.format(v)}"] for v in "ij"], 1) for key in MAPS)
    return name, tensors[f"{name}.in.edges"], points, confidence


MAPS = ("pred_{}_pts3d", "conf_{}")


def upstream_cameras(path, poses, focals):
    """Upstream's pixels have whole coordinates: in ours its principal point, W / 2, lies half a pixel further on."""
    height, width = map(int, load(path)[1]["image_hw"])
    intrinsics = torch.eye(3).repeat(len(poses), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = torch.as_tensor(focals)
    intrinsics[:, :2, 2] = torch.tensor([width / 2, height / 2]) + 0.5
    return Cameras(intrinsics, poses.float(), width, height)


def principal_points(path, n):
    return upstream_cameras(path, torch.eye(4).repeat(n, 1, 1), 1.0).intrinsics[:, :2, 2]


def wxyz(rows):
    return torch.cat([rows[:, 3:4], rows[:, :3], rows[:, 4:]], 1)


def variables(tensors, prefix):
    """Upstream's parameters, or their gradients, as ours."""
    depth, poses, focals, edges = (tensors[f"{prefix}.{k}"] for k in ("im_depthmaps", "im_poses", "im_focals", "pw_poses"))
    return Variables(*(t.clone().requires_grad_() for t in (depth, wxyz(poses), focals[:, 0], wxyz(edges))))


def problem(path, case):
    """The inputs of the optimisation from upstream's stored start."""
    tensors = load(path)[0]
    start = variables(tensors, f"{case}.init")
    cameras = upstream_cameras(path, torch.eye(4).repeat(len(start.poses), 1, 1), 1.0)
    _, pairs, points, confidence = inputs(path, case)
    return cameras, start, slopes(cameras), pack(pairs, points, confidence.log())


def relative(poses):
    return torch.linalg.inv(poses[0]) @ poses


def angle_between(poses, others):
    return float(rotation_angle(relative(poses)[:, :3, :3], relative(others)[:, :3, :3]).max())


@pytest.mark.parametrize(("path", "case"), golden_cases(lambda tensors, case, _: f"{case}.out.loss_history" in tensors))
def test_golden_steps(path, case):
    """Gradients, every loss and the variables after several numbers of steps."""
    tensors, reference = load(path)[0], about(path, case)
    cameras, moving, slope, predictions = problem(path, case)
    backpropagate(moving, slope, predictions, Held())
    for ours, theirs in zip(moving, variables(tensors, f"{case}.init_grad")):
        assert_close(ours.grad, theirs, 1e-5)
    losses, snapshots = [evaluate(moving, slope, predictions, Held())], {}

    def note(done, total):
        losses.append(evaluate(moving, slope, predictions, Held()))
        snapshots[done] = Variables(*(part.detach().clone() for part in moving))

    descend(
        moving,
        slope,
        predictions,
        Held(),
        Descent(reference["niter"], reference["lr"], reference["schedule"], reference["lr_min"]),
        note,
    )
    assert_close(torch.tensor(losses[:-1]).double(), tensors[f"{case}.out.loss_history"], 1e-5)
    for steps in (1, 5, 20, 60):
        theirs = variables(tensors, f"{case}.after_{steps}")
        assert_close(snapshots[steps].log_depth.exp(), theirs.log_depth.exp(), 5e-4)
        for ours, other in zip(snapshots[steps][1:], theirs[1:]):
            assert_close(ours, other, 1e-5)
    end = decode(moving, cameras, Held())
    assert_close(end.cameras.cam_to_world, tensors[f"{case}.out.cam_to_world"], 1e-5)
    assert_close(end.cameras.intrinsics[:, :1, 0], tensors[f"{case}.out.focals"], 1e-5)
    assert_close(end.edges.scale, tensors[f"{case}.out.pw_scale"], 1e-5)
    assert_close(unproject(end.depth, end.cameras), tensors[f"{case}.out.pts3d"], 5e-4)


WHOLE = golden_cases(lambda tensors, case, reference: f"{case}.in.edges" in tensors and "schedule" in reference)


@pytest.mark.parametrize(("path", "case"), WHOLE)
def test_golden_minimum_from_upstreams_start(path, case):
    """Loosely: at that start residuals are rounding, and so are the signs of Adam's first steps."""
    tensors, reference = load(path)[0], about(path, case)
    cameras, moving, slope, predictions = problem(path, case)
    assert evaluate(moving, slope, predictions, Held()) == pytest.approx(reference["loss_init"], rel=1e-5)
    descend(
        moving,
        slope,
        predictions,
        Held(),
        Descent(reference["niter"], reference["lr"], reference["schedule"], reference["lr_min"]),
    )
    assert evaluate(moving, slope, predictions, Held()) == pytest.approx(reference["loss_after"], rel=0.01)
    end = decode(moving, cameras, Held())
    assert angle_between(end.cameras.cam_to_world, tensors[f"{case}.out.cam_to_world"]) < 0.2
    torch.testing.assert_close(end.cameras.intrinsics[:, :1, 0], tensors[f"{case}.out.focals"], rtol=0.01, atol=0)


@pytest.mark.parametrize(("path", "case"), WHOLE)
def test_golden_world_from_our_start(path, case):
    tensors, reference = load(path)[0], about(path, case)
    _, pairs, points, confidence = inputs(path, case)
    aligned = align_pointmaps(
        pairs, points, confidence, iterations=reference["niter"], weight=confidence.log(), schedule=reference["schedule"],
        principal_points=principal_points(path, reference["n"]),
    )  # fmt: skip
    assert angle_between(aligned.cameras.cam_to_world, tensors[f"{case}.gt.cam_to_world"].float()) < 0.1
    assert angle_between(aligned.cameras.cam_to_world, tensors[f"{case}.out.cam_to_world"]) < 0.3
    true_focal = torch.tensor(float(load(path)[1]["focal_gt"]))
    torch.testing.assert_close(aligned.cameras.intrinsics[:, 0, 0], true_focal.expand(reference["n"]), rtol=0.005, atol=0)
    ours, theirs = aligned.points_world.reshape(1, -1, 3), tensors[f"{case}.out.pts3d"].reshape(1, -1, 3)
    laid = Similarity(*fit_similarity(ours, theirs, torch.ones(ours.shape[:2])))(ours)
    assert ((laid - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median() < 0.01


@pytest.mark.parametrize(("path", "case"), golden_cases(lambda _, case, reference: "preset_focal" in reference))
def test_golden_known_cameras(path, case):
    tensors, reference = load(path)[0], about(path, case)
    name, pairs, points, confidence = inputs(path, case)
    known = upstream_cameras(path, tensors[f"{name}.gt.cam_to_world"], reference["preset_focal"])
    aligned = align_pointmaps(pairs, points, confidence, known, iterations=reference["niter"], weight=confidence.log())
    assert aligned.cameras is known
    theirs = tensors[f"{case}.out.depthmaps"]
    off = (depth_of(aligned.points_world, known) / theirs - 1).abs()
    # Upstream's points shrink a little against the held poses; ours do not.
    assert off.median() < 3e-3
    assert off.quantile(0.99) < 2e-2
    truth = tensors[f"{name}.gt.depth"].float()
    assert (depth_of(aligned.points_world, known) / truth - 1).abs().median() < 1.05 * (theirs / truth - 1).abs().median()


@pytest.mark.parametrize("path", fixtures(FIXTURES))
def test_golden_two_views(path):
    """Upstream lays two views on each other without descending: our start."""
    tensors = load(path)[0]
    _, pairs, points, confidence = inputs(path, "pair")
    aligned = align_pointmaps(pairs, points, confidence, iterations=0, principal_points=principal_points(path, 2))
    assert angle_between(aligned.cameras.cam_to_world, tensors["pair.out.cam_to_world"]) < 0.2
    torch.testing.assert_close(aligned.cameras.intrinsics[:, 0, 0], tensors["pair.out.focals"], rtol=1e-3, atol=0)
    ratio = depth_of(aligned.points_world, aligned.cameras) / tensors["pair.out.depthmaps"]
    assert (ratio / ratio.median() - 1).abs().median() < 0.005


@pytest.mark.parametrize("path", fixtures(FIXTURES))
def test_golden_closed_forms(path):
    """Weiszfeld's focals, the weighted similarity fit."""
    tensors = load(path)[0]
    points = tensors["n3_linear.in.pred_i_pts3d"].flatten(1, 2)
    height, width = map(int, load(path)[1]["image_hw"])
    pixel = pixel_grid(height, width).flatten(0, 1) - principal_points(path, 1)
    focals = torch.stack([fit_focal(pixel, map_, torch.ones(len(map_))) for map_ in points])
    assert_close(focals, tensors["focal.weiszfeld"], 1e-4)
    source, target = (tensors[f"pair.in.pred_{v}_pts3d"][0].flatten(0, 1) for v in "ij")
    ours = Similarity(*fit_similarity(source[None], target[None] * 1.3 + 0.2, tensors["pair.in.conf_i"][:1].flatten(1)))
    theirs = Similarity(tensors["procrustes.scale"], tensors["procrustes.R"][None], tensors["procrustes.T"][None])
    assert_close(ours(source[None]), theirs(source[None]), 1e-5)


@pytest.mark.parametrize(("path", "case"), WHOLE)
def test_golden_cleaning(path, case):
    tensors = load(path)[0]
    cameras = upstream_cameras(path, tensors[f"{case}.out.cam_to_world"], tensors[f"{case}.out.focals"][:, 0])
    clean = clean_confidence(tensors[f"{case}.out.pts3d"], tensors[f"{case}.out.im_conf"], cameras)
    theirs = tensors[f"{case}.out.im_conf_clean"]
    assert (theirs == 0).any()
    # A point may lie on the border of a pixel, where rounding decides.
    assert (clean != theirs).float().mean() < 2e-3


# --- rooms -------------------------------------------------------------------------------------------------------------


def room(views, width=64, seed=1, kind="hall"):
    """Cameras of a procedural room and its exact depth."""
    photos = procedural.read(
        f"procedural:{kind}?seed={seed}&views={views}&targets=0&width={width}&height={width * 3 // 4}"
    ).photos
    intrinsics, poses = (torch.stack([getattr(p, name) for p in photos]) for name in ("intrinsics", "cam_to_world"))
    cameras = Cameras(intrinsics, poses, width, width * 3 // 4)
    return cameras, torch.stack([photo.load_depth() for photo in photos])


def both_ways(n):
    return torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j])


def predictions(cameras, depth, pairs, noise=0.01, outliers=0.1, lateral=False, seed=0):
    """Exact pointmaps in the first view's frame, each pair in its own units, with noise (of depth, along the ray or in all
    directions) and with outliers anywhere, which the confidence does not show."""
    draw = torch.Generator().manual_seed(seed)
    world = unproject(depth, cameras)[pairs]
    points = transform(cameras.world_to_cam[pairs[:, 0]], world.flatten(1, 3)).reshape(world.shape)
    if lateral:
        points = points + noise * depth[pairs][..., None] * torch.randn(points.shape, generator=draw)
    else:
        points = points * (1 + noise * torch.randn((*points.shape[:-1], 1), generator=draw))
    wild = torch.rand((*points.shape[:-1], 1), generator=draw) < outliers
    points = torch.where(wild, 3 * torch.randn(points.shape, generator=draw), points)
    scales = torch.exp(0.5 * torch.randn((len(pairs), 1, 1, 1, 1), generator=draw))
    return points * scales, torch.full(points.shape[:-1], 3.0)


def errors(found, truth, depth):
    """Largest rotation (degrees), centre (of the mean depth) and focal (of itself) that is off, in the first camera's frame."""
    ours, theirs = relative(found.cam_to_world), relative(truth.cam_to_world)
    centres, true = ours[:, :3, 3], theirs[:, :3, 3]
    scale = (centres * true).sum() / (centres * centres).sum()
    focal = found.intrinsics[:, 0, 0] / truth.intrinsics[:, 0, 0] - 1
    distance = (scale * centres - true).norm(dim=-1).max() / depth.mean()
    return angle_between(found.cam_to_world, truth.cam_to_world), float(distance), float(focal.abs().max())


@pytest.mark.parametrize(
    ("views", "width", "kind", "seed", "lateral"),
    [
        (2, 64, "hall", 1, False),
        pytest.param(3, 64, "room", 4, False, marks=pytest.mark.slow),
        pytest.param(5, 64, "hall", 2, False, marks=pytest.mark.slow),
        pytest.param(3, 128, "room", 4, True, marks=pytest.mark.slow),
    ],
)
def test_noise_and_outliers(views, width, kind, seed, lateral):
    truth, depth = room(views, width, seed, kind)
    pairs = both_ways(views)
    points, confidence = predictions(truth, depth, pairs, lateral=lateral)
    aligned = align_pointmaps(pairs, points, confidence, weight=confidence.log())
    degrees, share, focal = errors(aligned.cameras, truth, depth)
    assert degrees < 0.1
    assert share < 1e-3
    assert focal < 5e-3
    ratio = depth_of(aligned.points_world, aligned.cameras) / depth
    assert (ratio / ratio.median() - 1).abs().median() < 0.01


def test_the_descent_improves_on_its_start():
    truth, depth = room(3, seed=2)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs, lateral=True)
    start, end = (align_pointmaps(pairs, points, confidence, iterations=steps).cameras for steps in (0, 300))
    assert errors(end, truth, depth)[0] < 0.5 * errors(start, truth, depth)[0]
    assert errors(end, truth, depth)[1] < 0.5 * errors(start, truth, depth)[1]


@pytest.mark.parametrize("refine_focals", [False, True])
def test_a_shared_focal_is_one(refine_focals):
    truth, depth = room(3)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs)
    options = {"shared_focal": True, "refine_focals": refine_focals}
    focals = align_pointmaps(pairs, points, confidence, **options).cameras.intrinsics[:, [0, 1], [0, 1]]
    assert len(focals.unique()) == 1
    torch.testing.assert_close(focals, truth.intrinsics[:, [0, 1], [0, 1]], rtol=5e-3, atol=0)


def test_refined_focals_move_on_their_own():
    truth, depth = room(3)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs)
    read, refined = (
        align_pointmaps(pairs, points, confidence, refine_focals=r).cameras.intrinsics[:, 0, 0] for r in (False, True)
    )
    assert (read != refined).all()
    torch.testing.assert_close(refined, truth.intrinsics[:, 0, 0], rtol=5e-3, atol=0)


def in_units(cameras, factor):
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= factor
    return Cameras(cameras.intrinsics, poses, cameras.width, cameras.height)


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_known_first_cameras_stay_and_give_frame_and_units(factor):
    truth, depth = room(4)
    pairs = both_ways(4)
    points, confidence = predictions(truth, depth, pairs)
    known = in_units(truth, factor)
    aligned = align_pointmaps(pairs, points, confidence, known[:2])
    assert torch.equal(aligned.cameras.cam_to_world[:2], known.cam_to_world[:2])
    assert torch.equal(aligned.cameras.intrinsics[:2], known.intrinsics[:2])
    off = (aligned.cameras.cam_to_world[:, :3, 3] - known.cam_to_world[:, :3, 3]).norm(dim=-1) / factor
    assert off[2:].max() < 1e-3 * depth.mean()
    assert rotation_angle(aligned.cameras.cam_to_world[:, :3, :3], known.cam_to_world[:, :3, :3]).max() < 0.1
    assert ((aligned.points_world / factor - unproject(depth, truth)).norm(dim=-1) / depth).median() < 0.01


def test_one_known_camera_gives_the_frame():
    truth, depth = room(3)
    pairs = both_ways(3)
    aligned = align_pointmaps(pairs, *predictions(truth, depth, pairs), truth[:1])
    assert torch.equal(aligned.cameras.cam_to_world[0], truth.cam_to_world[0])
    assert errors(aligned.cameras, truth, depth)[0] < 0.1


def test_all_cameras_known_leaves_depth_and_the_edges_transforms():
    """Pairs that are tilted as a whole: a free T_e absorbs that; one fixed to the camera's pose cannot."""
    truth, depth = room(3)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs)
    tilt = quaternion_to_matrix(torch.tensor([1.0, 0.02, -0.03, 0.01]))
    points[::2] = points[::2] @ tilt.T
    found = [align_pointmaps(pairs, points, confidence, truth, iterations=steps) for steps in (0, 300)]
    assert all(aligned.cameras is truth for aligned in found)
    start, end = ((depth_of(a.points_world, truth) / depth - 1).abs().median() for a in found)
    assert end < 0.006
    assert end < 0.7 * start


def test_known_intrinsics_stay():
    truth, depth = room(3)
    pairs = both_ways(3)
    aligned = align_pointmaps(pairs, *predictions(truth, depth, pairs), intrinsics=truth.intrinsics, refine_focals=True)
    assert torch.equal(aligned.cameras.intrinsics, truth.intrinsics)
    assert errors(aligned.cameras, truth, depth)[:2] < (0.1, 1e-3)


def test_principal_points_need_not_be_in_the_middle():
    truth, depth = room(3)
    shift = torch.tensor([6.0, -4.0])
    intrinsics = truth.intrinsics.clone()
    intrinsics[:, :2, 2] += shift  # of every camera and of every ray: the same points at the same pixels, another lens
    turned = Cameras(intrinsics, truth.cam_to_world, truth.width, truth.height)
    pairs = both_ways(3)
    points, confidence = predictions(turned, depth, pairs)
    aligned = align_pointmaps(pairs, points, confidence, principal_points=intrinsics[:, :2, 2])
    degrees, share, focal = errors(aligned.cameras, turned, depth)
    assert (degrees < 0.1, share < 1e-3, focal < 5e-3) == (True, True, True)


def test_the_order_of_the_pairs_changes_nothing():
    truth, depth = room(3)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs)
    other = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))
    one = align_pointmaps(pairs, points, confidence, iterations=40)
    two = align_pointmaps(pairs[other], points[other], confidence[other], iterations=40)
    assert torch.equal(one.points_world, two.points_world)
    assert torch.equal(one.confidence, two.confidence)
    assert torch.equal(one.cameras.cam_to_world, two.cameras.cam_to_world)


def plain_loss(moving, cameras, pairs, points, weight):
    """Eq. 9 edge by edge, as MODELS.md 5 states it."""
    pixel = pixel_grid(cameras.height, cameras.width).flatten(0, 1) - cameras.intrinsics[0, :2, 2]
    rays = torch.nn.functional.pad(pixel / (moving.focal[:, None, None] / 20).exp(), (0, 1), value=1.0)
    turn, shift = quaternion_to_matrix(moving.poses[:, :4]), moving.poses[:, 4:].sign() * moving.poses[:, 4:].abs().expm1()
    world = (rays * moving.log_depth.exp()[..., None]) @ turn.mT + shift[:, None]
    scale = 0.5 * (moving.edges[:, 7] - moving.edges[:, 7].mean()).exp()
    loss = 0.0
    for e, pair in enumerate(pairs.tolist()):
        own = moving.edges[e, 4:7]
        for side, view in enumerate(pair):
            moved = points[e, side].flatten(0, 1) @ quaternion_to_matrix(moving.edges[e, :4]).T + own.sign() * own.abs().expm1()
            loss += (weight[e, side].flatten() * (world[view] - scale[e] * moved).norm(dim=-1)).mean()
    return loss / len(pairs)


@pytest.mark.parametrize("block", [1, 30_000, 2**24])
def test_loss_and_gradients_are_those_of_a_loop_over_the_edges(block, monkeypatch):
    monkeypatch.setitem(alignment_refine.BLOCK, "cpu", block)
    cameras, depth = room(3, width=32)
    pairs = both_ways(3)
    points, confidence = predictions(cameras, depth, pairs)
    edges = Similarity(torch.linspace(0.4, 0.6, 6), torch.eye(3).expand(6, 3, 3), torch.zeros(6, 3))
    fast, slow = (encode(State(depth, cameras, edges)) for _ in range(2))
    with torch.no_grad():  # to where the parametrisation's normalisations do something
        for part, other in zip(fast, slow):
            part += 0.1 * torch.randn(part.shape, generator=torch.Generator().manual_seed(part.numel()))
            other.copy_(part)
    loss = backpropagate(fast, slopes(cameras), pack(pairs, points, confidence), Held())
    expected = plain_loss(slow, cameras, pairs, points, confidence)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    for ours, theirs in zip(fast, slow):
        assert_close(ours.grad, theirs.grad, 1e-5)


def test_progress_is_told():
    truth, depth = room(2)
    reports = []
    pairs = both_ways(2)
    align_pointmaps(pairs, *predictions(truth, depth, pairs), iterations=5, progress=lambda *now: reports.append(now))
    assert reports == [(k, 5) for k in range(1, 6)]


def test_a_network_that_knows_nothing_still_gets_a_world():
    """Random weights: no two pointmaps are consistent, and no camera fits any."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(6, 2, 12, 16, 3, generator=draw)
    aligned = align_pointmaps(both_ways(3), points, 1 + torch.rand(6, 2, 12, 16, generator=draw), iterations=30)
    for part in (aligned.points_world, aligned.confidence, aligned.cameras.cam_to_world, aligned.cameras.intrinsics):
        assert part.isfinite().all()


def test_a_pair_without_any_confidence_is_ignored():
    truth, depth = room(3)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs)
    points[2], confidence[2] = 7.0, 0.0
    aligned = align_pointmaps(pairs, points, confidence)
    degrees, share, focal = errors(aligned.cameras, truth, depth)
    assert (degrees < 0.1, share < 1e-3, focal < 5e-3) == (True, True, True)


def test_floaters_lose_their_confidence():
    cameras, depth = room(2)
    floating = depth.clone()
    floating[0, 20:28, 30:38] *= 0.5
    confidence = torch.full(depth.shape, 0.9)
    confidence[0] = 0.5
    clean = clean_confidence(unproject(floating, cameras), confidence, cameras, tolerance=0.05)
    assert (clean[0, 20:28, 30:38] == 0).all()
    assert torch.equal(clean[1], confidence[1])
    assert (clean[0] == 0).float().mean() < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_gpu_finds_the_same_world():
    truth, depth = room(3)
    pairs = both_ways(3)
    points, confidence = predictions(truth, depth, pairs)
    there, here = (align_pointmaps(pairs.to(d), points.to(d), confidence.to(d)) for d in ("cuda", "cpu"))
    assert there.points_world.is_cuda
    assert angle_between(there.cameras.cam_to_world.cpu(), here.cameras.cam_to_world) < 0.01
    off = (there.points_world.cpu() - here.points_world).norm(dim=-1)
    assert off.median() < 1e-3
