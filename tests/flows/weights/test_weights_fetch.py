"""`reconx weights fetch` and `verify`, with the real client of the Hugging Face Hub against a small hub in this process."""

import argparse
import hashlib
import json
import shutil
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_pipeline
from upstream import file

from flows import cli
from flows.weights import fetch
from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.dust3r import DUSt3R, dust3r_config
from reconx_core.pointcloud.networks.vggt import VGGT, vggt_config
from reconx_core.video.checkpoints.convert import schedule_buffers
from reconx_core.video.diffusion.scheduler import ReconXScheduler

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DUST3R = {
    "img_size": [64, 64], "enc_embed_dim": 16, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 8, "dec_depth": 2,
    "dec_num_heads": 2, "head_type": "linear",
}  # fmt: skip
VGGT_SETTINGS = {
    "img_size": 28, "embed_dim": 16, "depth": 1, "num_heads": 2, "dino": {"depth": 1, "num_heads": 2},
    "camera_head": {"trunk_depth": 1, "num_heads": 2},
    "dpt": {"features": 8, "out_channels": [4, 4, 4, 4], "intermediate_layer_idx": [0, 0, 0, 0]},
}  # fmt: skip
DUST3R_REPOSITORY = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
DUST3R_FOLDER = "DUSt3R_ViTLarge_BaseDecoder_512_dpt"


class Hub(ThreadingHTTPServer):
    """Repositories of files, served as the Hugging Face Hub does; what goes wrong can be set."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories, self.gated, self.cut, self.spoilt, self.requests = {}, set(), set(), set(), []
        self.interrupted, self.released, self.late = set(), threading.Event(), False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        path = self.path.partition("?")[0].removeprefix("/")
        if "/resolve/" in path or path.startswith("api/models/"):
            self.server.requests.append((self.command, path))
        if path.startswith("api/models/"):
            repository, _, revision = path.removeprefix("api/models/").partition("/revision/")
            return self.describe(repository, revision)
        repository, _, rest = path.partition("/resolve/")
        return self.give(repository, *rest.split("/", 1), body) if rest else self.refuse(404, "")

    def describe(self, repository, revision):
        if repository not in self.server.repositories:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest(),
             **({"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
                if name.endswith((".safetensors", ".pt", ".ckpt")) else {})}
            for name, content in self.server.repositories[repository].items()
        ]  # fmt: skip
        text = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}).encode()
        return self.send(200, {"Content-Type": "application/json"}, text)

    def give(self, repository, revision, name, body):
        assert revision == COMMIT  # what is fetched is one revision, whatever happens to its branch meanwhile
        if repository in self.server.gated:
            return self.refuse(403, "GatedRepo")
        if name in self.server.interrupted and body:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            self.server.late = not self.server.released.wait(5)
            return None
        content = self.server.repositories[repository][name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        whole, start = len(content), 0
        if (wanted := self.headers.get("Range")) and body:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        sent = content[start:]
        if name in self.server.spoilt:
            sent = bytes(len(sent))
        if name in self.server.cut and body:
            sent = sent[: len(sent) // 2]
        return self.send(206 if start else 200, headers, sent if body else b"", whole - start)

    def refuse(self, status, code):
        self.send(status, {"X-Error-Code": code, "X-Error-Message": "no"}, b"")

    def send(self, status, headers, content, length=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    point_at(monkeypatch, server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def point_at(monkeypatch, url):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def weights(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def reconx(monkeypatch, capsys, weights):
    """Run `reconx weights ...` in this process; returns the exit code, what is printed, and the sentence of an error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reconx", "weights", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        sentences = [line for line in captured.err.splitlines() if line.startswith("reconx: ")]
        return int(ended.value.code or 0), captured.out, sentences[0] if sentences else ""

    return run


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Small networks in the layouts of the real repositories."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("repositories")
    save_file(DUSt3R(dust3r_config(DUST3R)).state_dict(), folder / "dust3r.safetensors")
    vggt = VGGT(vggt_config(VGGT_SETTINGS)).state_dict()
    save_file(vggt, folder / "vggt.safetensors")
    torch.save(vggt, folder / "vggt.pt")
    bytes_of = {file.name: file.read_bytes() for file in folder.iterdir()}
    settings = json.dumps(VGGT_SETTINGS).encode()
    return {
        DUST3R_REPOSITORY: {
            "config.json": json.dumps(DUST3R).encode(), "model.safetensors": bytes_of["dust3r.safetensors"],
            "README.md": b"# DUSt3R", ".gitattributes": b"*.safetensors filter=lfs",
        },
        "facebook/VGGT-1B": {
            "config.json": settings, "model.safetensors": bytes_of["vggt.safetensors"], "model.pt": bytes_of["vggt.pt"],
        },
        "facebook/VGGT-1B-Commercial": {"config.json": settings, "vggt_1B_commercial.pt": bytes_of["vggt.pt"]},
    }  # fmt: skip


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- fetch -------------------------------------------------------------------------------------------------------------


def test_fetch_records_revision_and_digests_and_what_arrived_is_verified(hub, repositories, reconx, weights):
    hub.repositories = repositories
    code, printed, error = reconx("fetch", "dust3r", "--accept-licence")
    assert (code, error) == (0, "")
    folder = weights / DUST3R_FOLDER
    assert names(weights) == sorted(
        [f"{DUST3R_FOLDER}/{name}" for name in ("README.md", "config.json", "fetched.json", "model.safetensors")]
        + [fetch.ACCEPTED]
    )
    record = json.loads((folder / "fetched.json").read_text())
    assert (record["repository"], record["revision"]) == (DUST3R_REPOSITORY, COMMIT)
    assert set(record["files"]) == {"README.md", "config.json", "model.safetensors"}
    for name, entry in record["files"].items():
        content = repositories[DUST3R_REPOSITORY][name]
        assert (folder / name).read_bytes() == content
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert f"Licence of {DUST3R_REPOSITORY}: CC BY-NC-SA 4.0: non-commercial use only\n" in printed
    assert f"revision {COMMIT}\n" in printed
    assert "DUSt3R, 64 pixels, linear head: " in printed
    assert printed.endswith("Next: -S pointcloud.backend=dust3r\n")
    code, printed, _ = reconx("verify", DUST3R_FOLDER)  # by its name in RECONX_WEIGHTS
    assert code == 0
    assert f"SHA-256 of model.safetensors: {record['files']['model.safetensors']['sha256']} (as recorded)\n" in printed


def test_each_repository_gives_the_files_that_it_has(hub, repositories, reconx, weights):
    hub.repositories = repositories
    assert reconx("fetch", "facebook/VGGT-1B", "--accept-licence")[0] == 0
    assert names(weights / "VGGT-1B") == ["config.json", "fetched.json", "model.safetensors"]
    for alone in (["vggt_1B_commercial.pt"], ["model.pt"], ["model.safetensors"]):
        assert fetch.choose_files(fetch.find("vggt-commercial"), [*alone, "more.bin"]) == alone
    pipeline = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "assets/a.png"]
    pipeline += [f"{part}/a.json" for part in ("scheduler", "text_encoder", "tokenizer", "transformer")]
    assert fetch.choose_files(fetch.find("wan-vace"), pipeline) == sorted(set(pipeline) - {"assets/a.png"})
    with pytest.raises(UserError, match="does not have the files"):
        fetch.choose_files(fetch.find("wan-vace"), pipeline[:3])


def test_a_second_fetch_finds_the_first(hub, repositories, reconx):
    hub.repositories = repositories
    reconx("fetch", "dust3r", "--accept-licence")
    hub.requests.clear()
    code, printed, _ = reconx("fetch", "dust3r")
    assert (code, hub.requests) == (0, [])
    assert f"already, revision {COMMIT}" in printed
    assert reconx("fetch", "dust3r", "--revision", COMMIT)[0] == 0
    assert f"holds revision {COMMIT}; remove it" in reconx("fetch", "dust3r", "--revision", "v2")[2]


def test_a_folder_of_the_user_is_left_alone(hub, reconx, weights):
    (weights / DUST3R_FOLDER).mkdir(parents=True)
    code, _, error = reconx("fetch", "dust3r", "--accept-licence")
    assert code == 2
    assert "is there already" in error
    assert hub.requests == []


def test_an_interrupted_fetch_goes_on_where_it_was(hub, repositories, reconx, weights, monkeypatch):
    hub.repositories = repositories
    real = huggingface_hub.hf_hub_download

    def interrupted(repository, file, **options):
        if file == "model.safetensors":
            raise KeyboardInterrupt
        return real(repository, file, **options)

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "hf_hub_download", interrupted)
        assert reconx("fetch", "dust3r", "--accept-licence")[0] == 130
    assert not (weights / DUST3R_FOLDER).exists()
    hub.requests.clear()
    assert reconx("fetch", "dust3r")[0] == 0
    assert [path.rpartition("/")[2] for command, path in hub.requests if command == "GET"] == ["main", "model.safetensors"]
    assert not list(weights.glob(".*"))


def test_ctrl_c_does_not_wait_for_the_file_that_is_on_its_way(hub, repositories, reconx, weights):
    hub.repositories = repositories
    hub.interrupted.add("model.safetensors")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's processes ignore it
    try:
        assert reconx("fetch", "dust3r", "--accept-licence")[0] == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert not hub.late
    hub.released.set()
    assert not (weights / DUST3R_FOLDER).exists()


@pytest.mark.parametrize("fault", ["cut", "spoilt"])
def test_a_file_that_arrives_damaged_is_never_taken(fault, hub, repositories, reconx, weights, monkeypatch):
    hub.repositories = repositories
    getattr(hub, fault).add("model.safetensors")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's, before it tries again
    code, _, error = reconx("fetch", "dust3r", "--accept-licence")
    assert code == 2
    assert "run the same command again" in error
    assert not (weights / DUST3R_FOLDER).exists()
    getattr(hub, fault).clear()
    assert reconx("fetch", "dust3r")[0] == 0
    assert reconx("verify", DUST3R_FOLDER)[0] == 0


def test_the_licence_is_accepted_once(hub, repositories, reconx, weights, monkeypatch):
    hub.repositories = repositories
    code, printed, error = reconx("fetch", "dust3r")
    assert code == 2
    assert "non-commercial" in printed
    assert "--accept-licence" in error
    assert hub.requests == []
    monkeypatch.setattr(sys, "stdin", argparse.Namespace(isatty=lambda: True, readline=lambda: ""))
    answers = iter(["n", "y"])
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: next(answers))
    assert reconx("fetch", "dust3r")[0] == 2
    assert reconx("fetch", "dust3r")[0] == 0
    assert json.loads((weights / fetch.ACCEPTED).read_text()) == {DUST3R_REPOSITORY: "CC BY-NC-SA 4.0: non-commercial use only"}
    shutil.rmtree(weights / DUST3R_FOLDER)
    assert reconx("fetch", "dust3r")[0] == 0  # there is no third answer
    row = fetch.find("dust3r")
    changed = fetch.Published(**{**vars(row), "licence": "other terms"})
    monkeypatch.setattr(fetch, "PUBLISHED", (changed,))
    shutil.rmtree(weights / DUST3R_FOLDER)
    monkeypatch.setattr(sys, "stdin", argparse.Namespace(isatty=lambda: False))
    assert reconx("fetch", "dust3r")[0] == 2


def test_free_weights_are_fetched_without_a_question(hub, repositories, reconx, weights):
    hub.repositories = repositories
    assert reconx("fetch", "vggt-commercial")[0] == 0
    assert names(weights) == [f"VGGT-1B-Commercial/{name}" for name in ("config.json", "fetched.json", "vggt_1B_commercial.pt")]


def test_what_the_hub_refuses_is_said(hub, repositories, reconx, weights):
    code, _, error = reconx("fetch", "vggt-commercial")
    assert code == 2
    assert "has no facebook/VGGT-1B-Commercial" in error
    hub.repositories = repositories
    assert "no revision 'v9'" in reconx("fetch", "vggt-commercial", "--revision", "v9")[2]
    hub.gated.add("facebook/VGGT-1B-Commercial")
    code, _, error = reconx("fetch", "vggt-commercial")
    assert code == 2
    assert "hf auth login" in error
    assert "https://huggingface.co/facebook/VGGT-1B-Commercial" in error
    assert not (weights / "VGGT-1B-Commercial").exists()
    code, _, error = reconx("fetch", "everything")
    assert code == 2
    assert "dust3r, vggt, vggt-commercial, da3-small, da3-base, wan-vace, viewcrafter, dynamicrafter" in error


def test_an_unreachable_hub_is_one_sentence(hub, reconx, monkeypatch, weights):
    point_at(monkeypatch, "http://127.0.0.1:9")
    code, _, error = reconx("fetch", "vggt-commercial")
    assert code == 2
    assert "cannot be reached" in error
    assert list(weights.rglob("*")) == []


def test_a_full_disk_is_reported_before_anything_is_fetched(hub, repositories, reconx, monkeypatch):
    hub.repositories = repositories
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    code, _, error = reconx("fetch", "vggt-commercial")
    assert code == 2
    assert "GB are free" in error
    assert [command for command, path in hub.requests if "/resolve/" in path] == []


def test_the_table_names_everything_with_its_licence(reconx, monkeypatch, weights):
    monkeypatch.setattr(cli.console, "_width", 200)
    (weights / "VGGT-1B").mkdir(parents=True)
    code, printed, _ = reconx("fetch")
    assert code == 0
    for row in fetch.PUBLISHED:
        line = next(line for line in printed.splitlines() if line.split()[0] == row.name)
        assert row.licence in line
        assert line.split()[-1] == ("yes" if row.name == "vggt" else "no")
        assert f"{row.repository} " in printed
    assert {row.name for row in fetch.PUBLISHED if row.commercial} == {
        "vggt-commercial", "da3-small", "da3-base", "wan-vace", "viewcrafter",
    }  # fmt: skip


# --- verify and convert ------------------------------------------------------------------------------------------------


def test_verify_compares_with_the_record(hub, repositories, reconx, weights):
    hub.repositories = repositories
    reconx("fetch", "dust3r", "--accept-licence")
    file = weights / DUST3R_FOLDER / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, error = reconx("verify", weights / DUST3R_FOLDER)
    assert code == 2
    assert f"'{file}' is not the file that was recorded" in error
    file.write_bytes(repositories[DUST3R_REPOSITORY]["model.safetensors"])
    (weights / DUST3R_FOLDER / "README.md").unlink()
    assert "lacks 'README.md'" in reconx("verify", weights / DUST3R_FOLDER)[2]
    for text in ('{"files": 3}', '{"files": {"a": 3}}', '{"files": {"../a": {"sha256": "0"}}}'):
        (weights / DUST3R_FOLDER / "fetched.json").write_text(text)
        assert "is damaged" in reconx("verify", weights / DUST3R_FOLDER)[2]


def test_dust3r_converts_and_the_result_verifies(repositories, reconx, weights, tmp_path):
    network = DUSt3R(dust3r_config(DUST3R))
    arguments = ", ".join(f"{name}={value!r}" for name, value in DUST3R.items())
    whole = {"args": argparse.Namespace(model=f"AsymmetricCroCo3DStereo({arguments})"), "model": network.state_dict()}
    torch.save(whole, tmp_path / "DUSt3R_Small.pth")
    code, printed, _ = reconx("convert", tmp_path / "DUSt3R_Small.pth")
    assert code == 0
    assert f"DUSt3R, bit by bit as in DUSt3R_Small.pth, in {weights}/DUSt3R_Small\n" in printed
    assert "non-commercial" in printed
    code, printed, _ = reconx("verify", "DUSt3R_Small")
    assert code == 0
    count, numbers = len(network.state_dict()), sum(value.numel() for value in network.state_dict().values())
    assert f"{count} tensors, {numbers:,} parameters, float32, in {weights}/DUSt3R_Small/model.safetensors\n" in printed
    assert printed.count("(as recorded)") == 2
    code, printed, _ = reconx("verify", tmp_path / "DUSt3R_Small.pth")
    digest = hashlib.sha256((tmp_path / "DUSt3R_Small.pth").read_bytes()).hexdigest()
    assert f"SHA-256 of DUSt3R_Small.pth: {digest} (not recorded)\n" in printed
    assert "--dtype is for the video models" in reconx("convert", tmp_path / "DUSt3R_Small.pth", "--dtype", "float16")[2]
    (tmp_path / "vggt.pt").write_bytes(repositories["facebook/VGGT-1B"]["model.pt"])
    assert "used as they are" in reconx("convert", tmp_path / "vggt.pt")[2]


def test_a_wrong_file_ends_with_one_sentence(reconx, tmp_path):
    (tmp_path / "DUSt3R.pth").write_bytes(b"PK\x03\x04 and no more")
    for command in ("verify", "convert"):
        code, _, error = reconx(command, tmp_path / "DUSt3R.pth")
        assert code == 2
        assert "truncated, damaged or not a checkpoint" in error
    assert "There is no" in reconx("verify", tmp_path / "nowhere")[2]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "small"
    small_pipeline().save_pretrained(folder)
    return folder


def test_a_video_folder_is_compared_with_its_networks(pipeline, reconx):
    code, printed, _ = reconx("verify", pipeline)
    assert code == 0
    assert printed.startswith("ReconXPipeline: ")
    assert printed.count("(not recorded)") == 5


@pytest.mark.parametrize(
    ("part", "file"), [("unet", "diffusion_pytorch_model.safetensors"), ("image_encoder", "model.safetensors")]
)
def test_what_is_wrong_in_a_video_folder_is_named(part, file, pipeline, reconx, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    whole = load_file(folder / part / file)
    key = list(whole)[3]
    for changed, words in (
        ({name: value for name, value in whole.items() if name != key}, f"lacks the tensor '{key}'"),
        ({**whole, key: torch.zeros(*whole[key].shape, 2)}, f"'{key}'"),
        ({**whole, "more": torch.zeros(2)}, "'more'"),
    ):
        save_file(changed, folder / part / file)
        code, _, error = reconx("verify", folder)
        assert code == 2
        assert words in error
        assert f"{folder / part / file}" in error
    (folder / part / file).unlink()
    assert f"'{folder / part}' holds no weights" in reconx("verify", folder)[2]
    shutil.rmtree(folder / part)
    assert f"'{folder}' lacks '{part}'" in reconx("verify", folder)[2]


def test_another_pipeline_is_read_and_not_called_complete(pipeline, reconx, tmp_path):
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanVACEPipeline"}))
    assert "WanVACEPipeline (its keys are checked when it is loaded)" in reconx("verify", folder)[1]
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["os", "system"]}))
    assert "no part of the video models" in reconx("verify", folder)[2]


@pytest.mark.slow
def test_a_video_checkpoint_that_was_not_converted_yet_golden(reconx, tmp_path):
    listed = file("keys/viewcrafter/inference_pvd_1024.json")
    buffers = schedule_buffers(ReconXScheduler(rescale_base=0.3))
    shapes = json.loads(listed.read_text())["state_dict"]
    tensors = {
        name: buffers[name].float() if name in buffers else torch.zeros(()).expand(shape) for name, shape in shapes.items()
    }
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    code, printed, _ = reconx("verify", tmp_path)
    assert code == 0
    assert "DynamiCrafter or ViewCrafter, class 1024, to be converted" in printed
    assert f"{len(tensors):,} tensors" in printed
    tensors["image_proj_model.latents"] = torch.zeros(1, 2, 3)
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    assert "'image_proj_model.latents' has the shape [1, 2, 3]" in reconx("verify", tmp_path)[2]
