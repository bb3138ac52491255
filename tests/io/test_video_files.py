"""Written videos play back, at any size, and have the same bytes each time."""

import struct

import av
import pytest
import torch

from reconx_core.errors import UserError
from reconx_core.io import video as video_io


def clip(count: int, height: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    """Smooth random pictures that drift sideways."""
    small = torch.rand(1, 3, height // 8 + 2, width // 8 + 2 + count, generator=torch.Generator().manual_seed(seed))
    big = torch.nn.functional.interpolate(small, (height, width + 8 * count), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    return [big[:, 2 * i : 2 * i + width] for i in range(count)]


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_round_trip(tmp_path, size):
    frames = clip(5, *size)
    video_io.write_mp4(tmp_path / "a.mp4", frames, fps=10)
    back = list(video_io.read_frames(tmp_path / "a.mp4"))
    assert len(back) == 5
    assert all(b.shape == (48, 64, 3) for b in back)
    for frame, read in zip(frames, back):
        assert (frame - read[: size[0], : size[1]]).square().mean() < 3e-3  # colour at half resolution


def test_players_can_show_it(tmp_path):
    video_io.write_mp4(tmp_path / "a.mp4", clip(2, 32, 32), fps=24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)


def test_same_frames_same_bytes(tmp_path):
    # large and long enough for x264's lookahead, whose mbtree made the bytes depend on memory addresses
    frames = clip(12, 449, 799)
    written = set()
    for i in range(3):
        keep = [torch.rand(1000 * i + 17) for _ in range(50)]  # moves later allocations to other addresses
        video_io.write_mp4(tmp_path / "a.mp4", frames)
        written.add((tmp_path / "a.mp4").read_bytes())
        del keep
    assert len(written) == 1


def test_sharpness_finds_the_blurred_frames(tmp_path):
    frames = clip(6, 64, 96)
    blur = torch.nn.AvgPool2d(9, 1, 4, count_include_pad=False)
    frames[1], frames[4] = (blur(frames[i].permute(2, 0, 1)[None])[0].permute(1, 2, 0) for i in (1, 4))
    video_io.write_mp4(tmp_path / "a.mp4", frames)
    sharpness = [s for _, s in video_io.measure_sharpness(tmp_path / "a.mp4")]
    assert sorted(sorted(range(6), key=sharpness.__getitem__)[:2]) == [1, 4]


def test_frames_are_found_again_by_time_stamp(tmp_path):
    video_io.write_mp4(tmp_path / "a.mp4", clip(9, 32, 48))
    frames = list(video_io.read_frames(tmp_path / "a.mp4"))
    stamps = [pts for pts, _ in video_io.measure_sharpness(tmp_path / "a.mp4")]
    assert len(stamps) == 9
    for i in (7, 0, 4):
        assert torch.equal(video_io.read_frame(tmp_path / "a.mp4", stamps[i]), frames[i])


def test_long_videos_are_measured_in_part(tmp_path):
    video_io.write_mp4(tmp_path / "a.mp4", clip(20, 16, 16))
    assert len(video_io.measure_sharpness(tmp_path / "a.mp4", most=7)) == 7


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mpg", "mpeg2video"), (".3gp", "mpeg4"), (".mts", "mpeg2video"), (".WMV", "wmv2")]
)
def test_videos_of_camcorders_and_older_phones(tmp_path, suffix, codec):
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", format={".3gp": "3gp", ".mts": "mpegts", ".WMV": "asf"}.get(suffix)) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in clip(5, 48, 64):
            picture = av.VideoFrame.from_ndarray((frame.clamp(0, 1) * 255).byte().numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert video_io.is_video(path)
    stamps = [stamp for stamp, _ in video_io.measure_sharpness(path)]
    assert len(stamps) == 5
    assert (video_io.read_frame(path, stamps[3]) - clip(5, 48, 64)[3]).abs().mean() < 0.1


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 10])
def test_what_is_no_video_is_named(tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.mp4"):
        video_io.measure_sharpness(tmp_path / "bad.mp4")


def test_no_frames_is_a_programmers_mistake(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        video_io.write_mp4(tmp_path / "a.mp4", [])


def test_a_phones_portrait_video_is_turned_upright(tmp_path):
    """Phones store it sideways, with a display matrix for a clockwise turn (a, b, c, d = 0, 1, -1, 0)."""
    video_io.write_mp4(tmp_path / "a.mp4", clip(2, 32, 48))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    plain, clockwise = ([1, 0, 0, 0, 1, 0], [0, 1, 0, -1, 0, 0])
    assert struct.unpack_from(">6i", data, matrix) == tuple(v << 16 for v in plain)
    struct.pack_into(">6i", data, matrix, *(v << 16 for v in clockwise))
    (tmp_path / "b.mp4").write_bytes(data)
    stored, turned = (next(video_io.read_frames(tmp_path / name)) for name in ("a.mp4", "b.mp4"))
    assert torch.equal(turned, torch.rot90(stored, -1))
