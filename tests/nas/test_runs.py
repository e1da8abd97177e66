"""Run folders: what is written is whole or absent, and what is read is checked."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from zoopt_nas.errors import RunError
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS, RunFolder
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

CPU = torch.device("cpu")
CONFIG = SearchConfig()
STATE = {"epoch": 1, "own": {"w": torch.arange(6.0).view(2, 3), "name": "x", "none": None}}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------ create and open


def test_create_makes_parents_and_writes_the_config(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "b", CONFIG.replace(seed=7))
    assert folder.path == tmp_path / "a" / "b"
    assert names(folder.path) == ["config.toml"]
    assert names(tmp_path / "a") == ["b"]  # no temporary folder is left
    assert folder.path.stat().st_mode & 0o777 == 0o755
    assert (folder.path / "config.toml").stat().st_mode & 0o777 == 0o644
    found = RunFolder.open(tmp_path / "a" / "b")
    assert found.kind == "search"
    assert found.config(SearchConfig) == CONFIG.replace(seed=7)


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link", "dangling link"])
def test_create_touches_nothing_that_exists(kind, tmp_path):
    path = tmp_path / "run"
    if kind.endswith("folder"):
        path.mkdir()
        if kind == "folder":
            (path / "mine.txt").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    elif kind == "link":
        (tmp_path / "target").mkdir()
        path.symlink_to(tmp_path / "target")
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = [(p, p.lstat().st_mtime_ns, p.lstat().st_mode) for p in tmp_path.rglob("*")]
    with pytest.raises(RunError, match=r"run exists already; name another run folder"):
        RunFolder.create(path, CONFIG)
    assert before == [(p, p.lstat().st_mtime_ns, p.lstat().st_mode) for p in tmp_path.rglob("*")]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failed_creation_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(RunError, match=r"cannot write .*run: No space left on device"):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert names(tmp_path) == []


def test_an_interrupted_creation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/run", "cannot make the run folder"), ("x" * 300, "File name too long")],
)
def test_a_place_where_no_folder_can_be_is_one_error(name, reason, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=reason):
        RunFolder.create(tmp_path / name, CONFIG)
    assert names(tmp_path) == ["file"]


def test_open_wants_a_config(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunError, match=r"is not a run folder: it has no config\.toml"):
            RunFolder.open(path)


@pytest.mark.parametrize("content", [b"epochs = ", b"epochs = 3", b"\xff\xfe"])
def test_a_damaged_config_is_named(content, folder):
    (folder.path / "config.toml").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.toml") as caught:
        _ = folder.kind
    assert "\n" not in str(caught.value)


def test_a_config_of_another_kind_is_refused(folder):
    with pytest.raises(RunError, match=r"config\.toml: config must be of kind train, got search"):
        folder.config(TrainConfig)


# ------------------------------------------------------------------------ files, whole or not


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(call, folder, monkeypatch):
    folder.write("genotype.json", "old")
    folder.save_checkpoint(STATE)
    old = (folder.path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(OSError, match="No space left"):
        folder.write("genotype.json", "new")
    with pytest.raises(OSError, match="No space left"):
        folder.save_checkpoint({"epoch": 2})
    assert (folder.path / "genotype.json").read_text() == "old"
    assert (folder.path / "checkpoint.pt").read_bytes() == old
    assert names(folder.path) == ["checkpoint.pt", "config.toml", "genotype.json"]


def test_a_checkpoint_that_fails_halfway_keeps_the_old_one(folder):
    folder.save_checkpoint(STATE)
    old = (folder.path / "checkpoint.pt").read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        folder.save_checkpoint({"big": torch.zeros(1000), "bad": lambda: None})
    assert (folder.path / "checkpoint.pt").read_bytes() == old
    assert names(folder.path) == ["checkpoint.pt", "config.toml"]


def test_a_file_is_on_disk_before_it_takes_its_name(folder, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    folder.write("genotype.json", "text")
    assert order == ["fsync", "replace"]
    assert (folder.path / "genotype.json").read_text() == "text"


# ------------------------------------------------------------------------ rows


def test_rows_come_back_as_they_were_appended(folder):
    rows = [{"epoch": 0, "loss": 0.1 + 0.2, "sigma": None}, {"epoch": 1, "loss": 1e-300, "n": 3}]
    assert folder.rows(METRICS) == []
    for row in rows:
        folder.append(METRICS, row)
    assert folder.rows(METRICS) == rows
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append(METRICS, {"epoch": 2, "loss": float("nan")})
    assert folder.rows(METRICS) == rows


@pytest.mark.parametrize("cut", [1, 2, 9, 20])
def test_a_torn_last_line_is_left_out_and_cut_away(cut, folder):
    for epoch in range(3):
        folder.append(METRICS, {"epoch": epoch, "loss": 0.5})
    path = folder.path / METRICS
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole[:-cut])
    kept = 3 if cut == 1 else 2  # without its newline a row is still whole
    assert [row["epoch"] for row in folder.rows(METRICS)] == list(range(kept))
    folder.cut(3)
    assert path.read_bytes() == b"".join(lines[:kept])


@pytest.mark.parametrize("line", ["", "{", '{"epoch": 1, "lo', "5", "[]", '{"loss": 1.0}', "null"])
def test_a_damaged_line_in_the_middle_is_refused(line, folder):
    path = folder.path / METRICS
    path.write_text(f'{{"epoch": 0}}\n{line}\n{{"epoch": 2}}\n')
    for read in (lambda: folder.rows(METRICS), lambda: folder.cut(1)):
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged in line 2"):
            read()
    assert line in path.read_text()  # nothing was cut


def test_cut_drops_later_epochs_of_both_files_and_nothing_else(folder):
    for epoch in range(4):
        folder.append(METRICS, {"epoch": epoch, "loss": epoch / 3})
        folder.append(ARCHITECTURES, {"epoch": epoch, "alpha": [epoch / 7]})
    before = {name: (folder.path / name).read_bytes() for name in (METRICS, ARCHITECTURES)}
    folder.cut(4)
    assert before == {name: (folder.path / name).read_bytes() for name in before}
    folder.cut(2)
    for name, text in before.items():
        kept = b"".join(text.splitlines(keepends=True)[:2])
        assert (folder.path / name).read_bytes() == kept
    folder.cut(0)
    assert (folder.path / METRICS).read_bytes() == b""


def test_cut_removes_what_a_kill_in_the_middle_of_a_write_left(folder, monkeypatch):
    folder.append(METRICS, {"epoch": 0})
    monkeypatch.setattr(os, "replace", disk_full)
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # killed: no clean-up
    with pytest.raises(OSError, match="No space left"):
        folder.save_checkpoint(STATE)
    monkeypatch.undo()
    assert len(names(folder.path)) == 3
    folder.cut(1)
    assert names(folder.path) == ["config.toml", METRICS]


def test_the_genotype_of_an_unfinished_retraining_is_the_one_being_trained(tmp_path):
    folder = RunFolder.create(tmp_path / "train", TrainConfig(genotype="DARTS_V1"))
    assert folder.genotype() == GENOTYPES["DARTS_V1"]


# ------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_comes_back(folder):
    assert folder.load_checkpoint(CPU) is None
    folder.save_checkpoint(STATE)
    state = folder.load_checkpoint(CPU)
    assert state.pop("format") == "zoopt-nas-checkpoint-1"
    assert torch.equal(state["own"].pop("w"), STATE["own"]["w"])
    assert state == {"epoch": 1, "own": {"name": "x", "none": None}}


class Attack:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class SystemAttack(Attack):
    def __reduce__(self):
        return (subprocess.check_call, (["touch", str(self.path)],))


def foreign_files(tmp_path: Path, good: bytes) -> dict[str, bytes]:
    def saved(value: object, **options) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("hello.txt", "hello")
    target = tmp_path / "attacked"
    wrong = {"format": "zoopt-nas-checkpoint-0", "epoch": 1}
    return {
        "empty": b"",
        "text": b"epoch 1",
        "zip": zipped.getvalue(),
        "tensor": saved(torch.zeros(3)),
        "list": saved([1, 2]),
        "other dict": saved({"epoch": 1}),
        "other version": saved(wrong),
        "module": saved(torch.nn.Linear(2, 2)),
        "pickle": pickle.dumps({"epoch": 1}, protocol=4),
        "torch attack": saved({"format": "zoopt-nas-checkpoint-1", "x": Attack(target)}),
        "old torch attack": saved(SystemAttack(target), _use_new_zipfile_serialization=False),
        "bare attack": pickle.dumps(SystemAttack(target)),
        "doubled": good + good,
    }


def test_a_foreign_or_malicious_checkpoint_is_one_error_and_nothing_of_it_runs(folder, tmp_path):
    folder.save_checkpoint(STATE)
    path = folder.path / "checkpoint.pt"
    files = foreign_files(tmp_path, path.read_bytes())
    # The attacks do attack where nothing protects.
    pickle.loads(files["bare attack"])  # noqa: S301
    assert (tmp_path / "attacked").exists()
    (tmp_path / "attacked").unlink()

    for kind, content in files.items():
        path.write_bytes(content)
        if kind == "doubled":  # a zip file is read from its end; both halves are ours
            continue
        with pytest.raises(RunError, match=r"checkpoint\.pt is ") as caught:
            folder.load_checkpoint(CPU)
        assert "\n" not in str(caught.value), kind
        assert not (tmp_path / "attacked").exists(), kind
        assert path.read_bytes() == content, kind


def test_a_truncated_checkpoint_is_one_error_at_every_length(folder):
    folder.save_checkpoint(STATE)
    path = folder.path / "checkpoint.pt"
    good = path.read_bytes()
    for length in [*range(40), *range(40, len(good) - 40, 23), *range(len(good) - 40, len(good))]:
        path.write_bytes(good[:length])
        with pytest.raises(RunError, match=r"checkpoint\.pt is truncated or not a checkpoint"):
            folder.load_checkpoint(CPU)
    path.write_bytes(good)
    assert folder.load_checkpoint(CPU) is not None


def test_a_damaged_pickle_is_one_error_or_still_a_checkpoint(folder):
    state = {"format": "zoopt-nas-checkpoint-1", "rows": [1, 2, (3, "a")]}
    good = pickle.dumps(state, protocol=2)
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        places = torch.randint(len(good), (3,), generator=generator).tolist()
        values = torch.randint(256, (3,), generator=generator).tolist()
        for place, value in zip(places, values, strict=True):
            damaged[place] = value
        (folder.path / "checkpoint.pt").write_bytes(damaged)
        try:
            assert folder.load_checkpoint(CPU)["format"] == "zoopt-nas-checkpoint-1"
        except RunError:  # any other error fails the test
            refused += 1
    assert refused > 200


def test_an_unreadable_checkpoint_is_named(folder, monkeypatch):
    folder.save_checkpoint(STATE)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(RunError, match=r"cannot read .*checkpoint\.pt: Permission denied"):
        folder.load_checkpoint(CPU)


# ------------------------------------------------------------------------ the genotype of a run


def test_the_genotype_is_that_of_the_end_or_else_of_the_last_epoch(folder):
    first, second = GENOTYPES["DARTS_V1"], GENOTYPES["DARTS_V2"]
    with pytest.raises(RunError, match="has no genotype yet: no epoch has ended"):
        folder.genotype()
    folder.append(ARCHITECTURES, {"epoch": 0, "genotype": second.to_dict()})
    folder.append(ARCHITECTURES, {"epoch": 1, "genotype": first.to_dict()})
    with (folder.path / ARCHITECTURES).open("a") as file:
        file.write('{"epoch": 2, "geno')
    assert folder.genotype() == first
    folder.write("genotype.json", second.to_json())
    assert folder.genotype() == second


def test_the_genotype_of_a_retraining_is_known_from_its_start(tmp_path):
    config = TrainConfig.for_dataset("digits", "DARTS_V1")
    assert RunFolder.create(tmp_path / "t", config).genotype() == GENOTYPES["DARTS_V1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("genotype.json", "{"),
        ("genotype.json", '{"normal": []}'),
        (ARCHITECTURES, '{"epoch": 0}\n'),
        (ARCHITECTURES, json.dumps({"epoch": 0, "genotype": {"normal": 3}}) + "\n"),
    ],
)
def test_a_damaged_genotype_is_named(name, text, folder):
    (folder.path / name).write_text(text)
    with pytest.raises(RunError, match=name.replace(".", r"\.")) as caught:
        folder.genotype()
    assert "\n" not in str(caught.value)
