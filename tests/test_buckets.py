"""Workdirs in buckets, on a stand-in for Google's storage that gcsfs, Orbax and TensorStore all
talk to by HTTP."""

import functools
import http.server
import importlib.util
import io
import logging
import os
import signal
import threading
import time
import urllib.parse
from pathlib import Path

import jax
import pytest
from helpers import each_step_once, flags_of, left_by, strike

from mujax import main
from mujax.errors import UserError
from mujax.storage import locks
from mujax.storage.files import any_path, read_jsonl, set_aside, write_json
from mujax.storage.locks import locked
from mujax.training.logs import RunLog

NEEDED = ("gcsfs", "gcp_storage_emulator")
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)), reason=f"needs {' and '.join(NEEDED)}"
)
ENVIRONMENT = {
    # the stand-in has no such buckets; read when gcsfs is imported
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore's: it asks for no other
}


class Server(http.server.HTTPServer):
    """One request after the other; `written` names the objects that were, each time."""

    request_queue_size = 128
    written: list[str]
    failing: tuple[str, int] = "", 0  # requests that name this are answered so

    def handle_error(self, request, client_address):  # a client that does not wait for the answer
        pass


@pytest.fixture(scope="module")
def server():
    import fsspec.config
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import buckets as own
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.storage import Storage

    # What it lacks and TensorStore relies on: generations of what is read, and writing only if
    # there is no newer one
    download, upload = objects.download, objects._media_upload

    def download_with_generation(request, response, storage, *args):
        download(request, response, storage, *args)
        if response.status < 300:
            response["x-goog-generation"] = storage.get_file_obj(**names(request))["generation"]

    def upload_if_unchanged(request, response, storage):
        name = request.query["name"][0]
        try:
            present = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except NotFound:
            present = "0"
        if request.query.get("ifGenerationMatch", [present])[0] != present:
            response.status = http.HTTPStatus.PRECONDITION_FAILED
        else:
            upload(request, response, storage)

    def names(request):
        return {
            "bucket_name": request.params["bucket_name"],
            "file_name": request.params["object_id"],
        }

    storage, create_file = Storage(use_memory_fs=True), Storage.create_file

    def create_and_note(self, bucket_name, file_name, *args):
        httpd.written.append(file_name)
        return create_file(self, bucket_name, file_name, *args)

    class Handler(emulator.RequestHandler):
        def do_GET(self):
            self.handle_unless_failing(super().do_GET)

        def do_POST(self):
            if "/moveTo/" in self.path:  # it has no such thing; gcsfs copies and deletes then
                self.send_error(400)
            else:
                self.handle_unless_failing(super().do_POST)

        def handle_unless_failing(self, handle):
            what, status = httpd.failing
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if what and what in urllib.parse.unquote(self.path) + content[:500].decode(
                errors="replace"
            ):
                self.send_error(status)
            else:
                self.rfile = io.BytesIO(content)
                handle()

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", download_with_generation)
        patch.setattr(objects, "_media_upload", upload_if_unchanged)
        patch.setattr(Storage, "create_file", create_and_note)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        own.create_bucket("bucket", storage)
        httpd = Server(("localhost", 0), functools.partial(Handler, storage))
        httpd.written = []
        url = f"http://localhost:{httpd.server_port}"
        for name, value in {
            **ENVIRONMENT,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "STORAGE_EMULATOR_HOST": url,
        }.items():
            patch.setenv(name, value)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.shutdown()
        httpd.server_close()


def test_a_run_in_a_bucket(server, text_file, tmp_path, monkeypatch, capsys):
    """Interrupted, its newest checkpoint damaged, gone on with: it leaves what a run in a folder
    leaves."""

    def start_trace(folder):  # a real one takes long to begin
        (Path(folder) / "plugins").mkdir(parents=True)
        (Path(folder) / "plugins" / "trace").touch()

    monkeypatch.setattr(jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    options = {"train__steps": 20, "checkpoint__interval": 8, "checkpoint__best": "False"}
    options |= {"monitor__profile_step": 12, "monitor__profile_steps": 1}
    assert main.run(flags_of(text_file, tmp_path, **options)) == 0
    args, root = flags_of(text_file, "gs://bucket/a/run", **options), any_path("gs://bucket/a/run")
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main.run(args) == 75
    # all before the checkpoint
    assert [record["step"] for record in read_jsonl(root / "metrics.jsonl")][-1] == 11
    latest = root / "checkpoints" / "latest"
    assert sorted(path.name for path in latest.iterdir()) == ["12", "8"]
    for part in (latest / "12" / "params" / "d").iterdir():
        part.unlink()
    capsys.readouterr()
    assert main.run(args) == 0
    err = capsys.readouterr().err
    assert f"{latest}/12 is damaged" in err and "going on from step 8" in err
    assert (root / "checkpoints" / "damaged" / "12" / "params" / "_METADATA").exists()
    each_step_once(root, 20)
    assert left_by(root, 20) == left_by(tmp_path, 20)
    assert main.run(args) == 0  # finished: left alone

    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.iterdir()} - {"lock"}
    assert {path.name for path in root.iterdir()} == left
    assert len((root / "performance.jsonl").read_text().splitlines()) == 3  # step 10 twice
    assert (root / "profile" / "plugins" / "trace").exists()
    # Three evaluations, two checkpoints and going on, before and after: not one a line
    assert server.written.count("a/run/metrics.jsonl") <= 8
    assert (
        main.run(["sample", "--workdir=gs://bucket/a/run", "--prompt=def ", "--num_tokens=4"]) == 0
    )
    assert "\ndef " in capsys.readouterr().out


def test_evaluations_are_seen_at_once(server):
    """The first, before there is any speed to report, and each one where there is one a step."""
    log = RunLog(any_path("gs://bucket/log"), is_writer=True)
    log.metrics({"step": 0, "loss": 2.0})
    assert not (any_path("gs://bucket/log") / "metrics.jsonl").exists()
    log.metrics({"step": 0, "eval_loss": 2.0})
    assert len([*read_jsonl(any_path("gs://bucket/log") / "metrics.jsonl")]) == 2


@pytest.fixture(scope="module")
def one_run(server, text_file):
    """The command line of a run that has ended, but for its result."""
    root = "gs://bucket/one/run"
    args = flags_of(text_file, root, train__steps=8, train__eval_interval=4, checkpoint__interval=4)
    assert main.run(args) == 0
    (any_path(root) / "result.json").unlink()
    return args


@pytest.mark.parametrize(
    "what, status, code, message",
    [
        ("latest/8/record/metadata", 503, 70, "latest/8 cannot be read now (HttpError: "),
        ("latest/8/record/metadata", 502, 70, "latest/8 cannot be read now (ProxyError: "),
        ("latest/8/record/metadata", 403, 2, "latest/8 may not be read (OSError: Forbidden: "),
        ("latest/8/record/metadata", 401, 2, "latest/8 may not be read (HttpError: "),
        ("latest/8/params/manifest.ocdbt", 403, 2, "latest/8 may not be read (ValueError: "),
        ("latest/8/params/manifest.ocdbt", 401, 2, "latest/8 may not be read (ValueError: "),
        ("latest/8/params/_METADATA", 503, 70, "latest/8 cannot be read now (HttpError: "),
        ("one/run/checkpoints/latest", 503, 70, "503"),
        ("one/run/lock", 503, 70, "503"),
        ("one/run/result.json", 503, 70, "503"),
        ("one/run/metrics.jsonl", 429, 70, "429"),
        ("one/run/.write_probe", 503, 70, "503"),
        ("one/run/.write_probe", 403, 2, "--workdir=gs://bucket/one/run cannot be written: "),
    ],
)
# TensorStore, as in test_checkpoint
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_service_that_fails_for_a_while(
    what, status, code, message, server, one_run, monkeypatch, capsys
):
    """The run ends, to be started again unless it is refused; what could not be read is not taken
    for damaged."""
    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, "min", lambda *seconds: 0.0, raising=False)  # that it waits
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(server, "failing", (what, status))
    assert main.run(one_run) == code
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1] and "Traceback" not in err
    monkeypatch.setattr(server, "failing", ("", 0))
    assert not (any_path("gs://bucket/one/run") / "checkpoints" / "damaged").exists()


def test_one_process_at_a_time(server, monkeypatch, capsys):
    """A second one is refused while the first lives, and goes on when it was killed; the lock goes
    with its holder."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    root = any_path("gs://bucket/locked")
    with locked(root):
        with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .*, seen at "):
            with locked(root):
                pass
    assert not (root / "lock").exists() and not capsys.readouterr().err.endswith("has left\n")
    (root / "lock").write_bytes(b"process 1 on elsewhere, seen at noon")
    with locked(root):
        assert "process 1 on elsewhere, seen at noon; waiting 0 s" in capsys.readouterr().err
        before = (root / "lock").read_bytes()
        time.sleep(0.5)
        assert (root / "lock").read_bytes() != before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lock_that_is_lost(server, monkeypatch, capsys):
    """A holder that was cut off, and finds another's name in the lock, ends its process and leaves
    the lock to the other."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    ended = []

    def end(code):
        ended.append(code)
        raise SystemExit  # of the thread that watches

    monkeypatch.setattr(locks.os, "_exit", end)
    lock = any_path("gs://bucket/lost") / "lock"
    with locked(lock.parent):
        time.sleep(0.3)
        assert not ended
        deadline = time.monotonic() + 30
        while not ended and time.monotonic() < deadline:
            # a beat that was under way may write over it once
            lock.write_bytes(b"process 1 on elsewhere, seen at noon")
            time.sleep(0.3)
        assert ended == [75]
        assert (
            "gs://bucket/lost was taken over by process 1 on elsewhere, seen at noon;"
            in capsys.readouterr().err
        )
    assert lock.read_bytes() == b"process 1 on elsewhere, seen at noon"


def test_what_is_there_is_set_aside(server):
    root = any_path("gs://bucket/aside")
    write_json(root / "result.json", {"run": 1})
    for _ in range(2):
        set_aside(root, ("config.json", "result.json"))
        write_json(root / "result.json", {"run": 2})
    aside = sorted(str(path) for path in root.glob("earlier/*/*"))
    assert aside == [f"{root}/earlier/{n}/result.json" for n in (1, 2)]
    assert '"run": 1' in (root / "earlier" / "1" / "result.json").read_text()


@pytest.mark.parametrize(
    "name", ["gs:///run", "gs://", "s3://bucket/run", "gs://bucket/run[1]", "gs://bucket/*/run"]
)
def test_no_place_in_a_bucket(name):
    """gcsfs takes [1] for a pattern, and would delete what belongs to run1."""
    with pytest.raises(
        UserError, match="is neither a folder nor gs://BUCKET/PATH|no name may have"
    ):
        any_path(name)


def test_a_bucket_that_is_not_there(server, text_file, capsys):
    assert main.run(flags_of(text_file, "gs://none/run")) == 2
    assert "mujax: --workdir=gs://none/run cannot be written: " in capsys.readouterr().err
