"""Trackers say what the record says, under its ids, and can neither stop nor outlive a sweep."""

import resource
import struct
import sys
import types

import pytest

from mujax.errors import UserError
from mujax.sweep.trackers import open_trackers

ROW = {"id": "0123456789ab", "status": "ok", "final_loss": 2.5, "best_loss": 2.25, "steps": 8}
ROW |= {"learning_rate": 0.25, "weight_decay": 0.0, "width": 64, "parameterization": "mup"}
RECORDS = [
    {"step": 0, "eval_loss": 4.0},
    {"step": 0, "loss": 4.125, "grad_norm": None, "learning_rate": 0.0},
    {"step": 4, "loss": 3.0, "grad_norm": 1.5, "learning_rate": 0.25},
    {"step": 8, "eval_loss": 2.5},
]
CONFIG = {"model": {"d_model": 64}}


def read_events(file) -> list:
    """TFRecords: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def curves(events) -> list:
    values = [(event.step, value) for event in events for value in event.summary.value]
    return [
        (step, value.tag, value.simple_value)
        for step, value in values
        if value.HasField("simple_value")
    ]


def test_tensorboard_holds_the_record_once(tmp_path):
    (tracker,) = open_trackers(tmp_path, "study", tensorboard=True, wandb_mode="")
    tracker.point({**ROW, "final_loss": None}, RECORDS[:2], CONFIG)
    tracker.point(ROW, RECORDS, CONFIG)
    tracker.point({**ROW, "id": "another"}, [], CONFIG)
    assert {file.name for file in (tmp_path / "tensorboard").iterdir()} == {ROW["id"], "another"}
    (file,) = (tmp_path / "tensorboard" / ROW["id"]).iterdir()
    assert "tfevents" in file.name
    events = read_events(file)
    assert events[0].file_version == "brain.Event:2"
    assert curves(events) == [
        (0, "eval/loss", 4.0),
        (0, "train/loss", 4.125),
        (0, "train/learning_rate", 0.0),
        (4, "train/loss", 3.0),
        (4, "train/grad_norm", 1.5),
        (4, "train/learning_rate", 0.25),
        (8, "eval/loss", 2.5),
        (8, "final_loss", 2.5),
    ]


def test_tensorboard_hparams(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    (tracker,) = open_trackers(tmp_path, "study", tensorboard=True, wandb_mode="")
    tracker.point({**ROW, "status": "diverged", "final_loss": None}, RECORDS, CONFIG)
    events = read_events(tmp_path / "tensorboard" / ROW["id"] / "events.out.tfevents")
    assert "final_loss" not in [tag for _, tag, _ in curves(events)]
    contents = {
        value.tag: value.metadata.plugin_data.content
        for event in events
        for value in event.summary.value
    }
    start = HParamsPluginData.FromString(
        contents["_hparams_/session_start_info"]
    ).session_start_info.hparams
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}
    assert found == {
        "learning_rate": 0.25,
        "weight_decay": 0.0,
        "width": 64,
        "parameterization": "mup",
    }
    experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["final_loss"]


def test_a_full_disk_costs_a_line_and_leaves_the_earlier_copy(tmp_path, capsys):
    (tracker,) = open_trackers(tmp_path, "study", tensorboard=True, wandb_mode="")
    tracker.point(ROW, RECORDS, CONFIG)
    file = tmp_path / "tensorboard" / ROW["id"] / "events.out.tfevents"
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        tracker.point(ROW, RECORDS * 100, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"TensorBoard tracker, point {ROW['id']}: OSError: ")
    tracker.point(ROW, RECORDS, CONFIG)
    assert [f.name for f in file.parent.iterdir()] == [file.name]


class FakeWandb(types.ModuleType):
    """Records what it is told; `unreachable` fails online as the real one does."""

    def __init__(self, unreachable: bool = False, key: bool = True):
        super().__init__("wandb")
        self.unreachable, self.key, self.runs = unreachable, key, []

    def login(self):
        return self.key

    def init(self, **settings):
        self.runs.append(FakeRun(settings))
        if self.unreachable and settings["mode"] == "online":
            raise OSError("no route\nto host")
        return self.runs[-1]


class FakeRun:
    def __init__(self, settings):
        self.settings, self.logged, self.summary, self.finished = settings, [], {}, False

    def log(self, values, step):
        self.logged.append((step, values))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch):
    def install(**how) -> FakeWandb:
        monkeypatch.setitem(sys.modules, "wandb", FakeWandb(**how))
        return sys.modules["wandb"]

    return install


def test_wandb_runs_are_the_points(tmp_path, fake_wandb, capsys):
    wandb = fake_wandb()
    (tracker,) = open_trackers(tmp_path, "study", tensorboard=False, wandb_mode="offline")
    tracker.point(ROW, RECORDS, CONFIG)
    tracker.point({**ROW, "id": "another", "status": "diverged", "final_loss": None}, [], CONFIG)
    run, diverged = wandb.runs
    identity = {
        "id": ROW["id"],
        "group": "study",
        "project": "mujax",
        "mode": "offline",
        "resume": None,
    }
    assert identity.items() <= run.settings.items()
    assert run.settings["config"] == CONFIG and run.settings["dir"] == str(tmp_path)
    assert run.settings["reinit"] == "create_new"
    assert run.logged == [
        (0, {"eval/loss": 4.0}),
        (0, {"train/loss": 4.125, "train/learning_rate": 0.0}),
        (4, {"train/loss": 3.0, "train/grad_norm": 1.5, "train/learning_rate": 0.25}),
        (8, {"eval/loss": 2.5}),
    ]
    assert run.summary == {"status": "ok", "final_loss": 2.5, "best_loss": 2.25}
    assert diverged.settings["id"] == "another"
    assert (diverged.summary["status"], diverged.summary["final_loss"]) == ("diverged", None)
    assert run.finished and diverged.finished
    assert capsys.readouterr() == ("", "")


def test_wandb_out_of_reach_costs_a_line_and_one_wait(tmp_path, fake_wandb, capsys):
    wandb = fake_wandb(unreachable=True)
    (tracker,) = open_trackers(tmp_path, "study", tensorboard=False, wandb_mode="online")
    tracker.point(ROW, RECORDS, CONFIG)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"W&B tracker, point {ROW['id']}: ") and "OSError: no route to host" in line
    )
    tracker.point({**ROW, "id": "next"}, RECORDS, CONFIG)
    tried = [tuple(run.settings[name] for name in ("id", "mode", "resume")) for run in wandb.runs]
    assert tried == [(ROW["id"], "online", "allow"), ("next", "offline", None)]
    assert capsys.readouterr().err == ""


def test_real_wandb_accepts_this_and_prints_nothing(tmp_path, capfd):
    pytest.importorskip("wandb")
    (tracker,) = open_trackers(tmp_path, "study", tensorboard=False, wandb_mode="offline")
    tracker.point(ROW, RECORDS, CONFIG)
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{ROW['id']}/run-{ROW['id']}.wandb"))) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "tensorboard, mode, message",
    [
        (True, "", r"--tensorboard needs tensorboardX: pip install 'mujax\[tensorboard\]'$"),
        (False, "offline", r"--wandb_mode needs wandb: pip install 'mujax\[wandb\]'$"),
        (False, "onlin", r"--wandb_mode=onlin is unknown; allowed: offline, online, or ''"),
    ],
)
def test_what_is_missing_is_said_at_the_start(tmp_path, monkeypatch, tensorboard, mode, message):
    for name in (
        "tensorboardX",
        "wandb",
        *(name for name in sys.modules if name.startswith("tensorboardX.")),
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=message):
        open_trackers(tmp_path, "study", tensorboard, mode)
    assert open_trackers(tmp_path, "study", tensorboard=False, wandb_mode="") == []


def test_a_folder_of_wandb_runs_is_not_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(UserError, match="needs wandb"):
        open_trackers(tmp_path, "study", tensorboard=False, wandb_mode="offline")


def test_online_without_a_key_is_said_at_the_start(tmp_path, fake_wandb):
    fake_wandb(key=False)
    with pytest.raises(UserError, match="--wandb_mode=online is not logged in"):
        open_trackers(tmp_path, "study", tensorboard=False, wandb_mode="online")
