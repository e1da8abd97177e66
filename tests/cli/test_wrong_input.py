"""Whatever is wrong: one line that begins with "error:", exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.runs import setup

TINY = ("--n-train", 64, "--epochs", 1, "--init-channels", 2, "--n-cells", 1, "--batch-size", 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serch", "Did you mean 'search'"),
        ("search --epoch 3", "No such option: --epoch"),
        ("search --spcae s3", "--space"),
        ("search extra", "unexpected extra argument"),
        ("search --seed", "'--seed' requires an argument"),
        ("search --space s33", "unknown space 's33'; did you mean 's3'?"),
        ("search --algo mgd", "unknown method 'mgd'; did you mean 'mgs'?"),
        ("search --dataset digts", "unknown dataset 'digts'; did you mean 'digits'?"),
        ("search --dataset my/data.npz", "dataset my/data.npz: no such file or folder"),
        ("search --dataset notes.txt", "notes.txt: must be an .npz file or a folder of images"),
        ("search --dataset broken.npz", "broken.npz: "),
        ("search --device gpu", "device must be auto or a device that this machine has, got gpu"),
        ("search --threads 0", "threads must be a positive integer, got 0"),
        ("search --amp fp16", "unknown amp 'fp16'; did you mean 'bf16'?"),
        ("train DARTS_V2 --compile yes", "unknown compile 'yes'"),
        ("search --channels-last no", "unknown channels_last 'no'"),
        ("search --resume none --amp off --threads 1", "leave out --amp, --threads"),
        ("search --seed x", "Invalid value for '--seed'"),
        ("search --seed -1", "seed must be at least 0, got -1"),
        ("search --epochs 2.5", "Invalid value for '--epochs'"),
        ("search --epochs 0", "epochs must be a positive integer, got 0"),
        ("search --epochs 2 --warmup-epochs 2", "warmup_epochs must be less than epochs (2)"),
        ("search --batch-size -3", "batch_size must be a positive integer, got -3"),
        ("search --weight-decay nan", "weight_decay must be at least 0, got nan"),
        ("search --inner-steps -1", "inner_steps must be at least 0, got -1"),
        ("search --sigma-schedule cosin", "did you mean 'cosine'?"),
        ("search --n-train 99999", "n_train must be at most 1437"),
        ("search --n-samples 0", "n_samples must be a positive integer, got 0"),
        ("search --algo darts1 --n-samples 3", "solver must have no options with darts1"),
        ("search --solver-option sgma=1", "unknown option of mgs 'sgma'; did you mean 'sigma'?"),
        ("search --solver-option sigma=-1", "sigma must be a positive finite number, got -1"),
        ("search --solver-option sigma=wide", "sigma must be a positive finite number, got 'wide'"),
        ("search --solver-option sigma", "--solver-option must read NAME=VALUE, got sigma"),
        ("search --algo gld --solver-option min_radius=9", "min_radius must be at most max_radius"),
        ("search --config none.toml", "cannot read --config none.toml: No such file"),
        ("search --config .", "cannot read --config .: Is a directory"),
        ("search --config binary.toml", "cannot read --config binary.toml: it is not text"),
        ("search --config bad.toml", "config is not valid TOML"),
        ("search --config typo.toml", "unknown search setting 'epoch'; did you mean 'epochs'?"),
        ("search --config type.toml", "epochs must be of type int, got 'ten'"),
        ("search --config solver.toml", "solver must be of type dict, got 3"),
        ("search --config solver.toml --n-samples 2", "solver must be of type dict, got 3"),
        ("search --config train.toml", "config must be of kind search, got train"),
        ("train DARTS_V2 --config typo.toml", "unknown train setting 'epoch'; did you mean"),
        ("search --resume none", "none is not a run folder: it has no config.toml"),
        ("search --resume folder", "folder is not a run folder: it has no config.toml"),
        ("search --resume none --epochs 3 --seed 0", "leave out --epochs, --seed"),
        ("search --resume none --n-samples 3", "leave out --n-samples"),
        ("search --resume none --solver-option sigma=1", "leave out --solver-option"),
        ("search --resume none --config typo.toml", "leave out --config"),
        ("search --resume none --run-dir x --no-download", "leave out --run-dir, --download"),
        ("search --resume run", "run/config.toml: config must be of kind search, got train"),
        ("search --run-dir folder", "folder exists already; name another run folder, or resume it"),
        ("search --run-dir link", "link exists already"),
        ("search --run-dir notes.txt/run", "cannot make the run folder notes.txt/run"),
        ("train", "give either RUN_OR_GENOTYPE or --resume"),
        ("train DARTS_V2 --resume run", "give either RUN_OR_GENOTYPE or --resume"),
        ("train --resume run --no-auxiliary", "leave out --auxiliary"),
        ("train DARTS_V3", "unknown genotype 'DARTS_V3'; did you mean 'DARTS_V2'?"),
        ("train folder", "folder is not a run folder"),
        ("train started", "started has no genotype yet: no epoch has ended"),
        ("train notes.txt", "genotype must read Genotype(normal="),
        ("train DARTS_V2 --drop-path 1", "drop_path must lie in [0, 1), got 1.0"),
        ("train DARTS_V2 --dataset digts", "did you mean 'digits'?"),
        ("train DARTS_V2 --run-dir folder", "folder exists already"),
        ("show", "Missing argument 'RUN_OR_GENOTYPE'"),
        ("show nonsense", "unknown genotype 'nonsense'; known: DARTS_V1, DARTS_V2, PCDARTS, "),
        ("show folder", "folder is not a run folder"),
        ("show notes.txt", "genotype must read Genotype(normal="),
        ("show binary.toml", "genotype file binary.toml is not text"),
        ("show DARTS_V2 --out notes.txt", "cannot make the folder notes.txt: File exists"),
        ("list solver", "unknown list 'solver'; did you mean 'solvers'?"),
        ("list", "Missing argument"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, refused, tmp_path):
    (tmp_path / "notes.txt").write_text("call mother\n")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.toml").write_text("epochs = \n")
    (tmp_path / "typo.toml").write_text("epoch = 3\n")
    (tmp_path / "type.toml").write_text('epochs = "ten"\n')
    (tmp_path / "solver.toml").write_text("solver = 3\n")
    (tmp_path / "train.toml").write_text('kind = "train"\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, kind in (("run", "train"), ("started", "search")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(f'kind = "{kind}"\n')
    assert message in refused(*arguments.split())


def test_brackets_colons_and_line_breaks_are_printed_as_they_are(refused):
    assert "unknown genotype 'a[red]b:cat:'" in refused("show", "a[red]b:cat:")
    refused("show", "two\nlines")  # still one line


def test_svhn_without_files_says_which_where_and_what_to_do(refused, tmp_path):
    line = refused("search", "--space", "s3", "--dataset", "svhn", "--algo", "gld")
    assert line == (
        "svhn: no file train_32x32.mat in data; "
        "set data_dir to the folder of the data, or download to fetch it"
    )
    line = refused("search", "--dataset", "svhn", "--data-dir", tmp_path / "else")
    assert f"no file train_32x32.mat in {tmp_path / 'else'};" in line


def test_an_npz_that_lacks_something_is_named(refused, tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=np.zeros((4, 8, 8), np.uint8))
    assert "mine.npz: " in refused("search", "--dataset", "mine.npz")


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (
            "search",
            "lower batch_size (32) or init_channels (2), or raise partial_channels (1)",
        ),
        # The test has batches of 256 images, which count for more.
        ("train DARTS_V2", "lower init_channels (2)"),
    ],
)
def test_a_run_that_does_not_fit_is_one_line(command, advice, refused, monkeypatch):
    monkeypatch.setattr(setup, "free_memory", lambda device: 100_000_000)
    assert refused(*command.split(), "--dataset", "digits", "--device", "cpu", *TINY) == (
        f"a step needs about 0.2 GB, and 0.1 GB are free on cpu: {advice}"
    )


@pytest.mark.parametrize("command", ["search", "train"])
def test_divergence_is_one_line_and_keeps_the_run(command, cli, npz, tmp_path):
    source = ["DARTS_V2"] if command == "train" else []
    run = tmp_path / "run"
    result = cli(
        *(command, *source, "--dataset", npz, *TINY, "--batch-size", 16),
        *("--lr", 1e30, "--run-dir", run, "--json"),
    )
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: the training loss is not finite in epoch 1; start again")
    assert result.err.count("\n") == 1
    names = ["config.toml", "data.json", "machine.json"]
    assert sorted(path.name for path in run.iterdir()) == names


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "other run", "rows"])
def test_a_checkpoint_that_cannot_be_used_is_one_line(damage, cli, refused, npz, tmp_path):
    for seed, width in ((0, 2), (1, 3)):
        arguments = ["--dataset", npz, *TINY[:4], "--init-channels", width, *TINY[6:]]
        run = tmp_path / f"run{seed}"
        assert cli("search", *arguments, "--algo", "darts1", "--run-dir", run).code == 0
    path = tmp_path / "run0" / "checkpoint.pt"
    good = path.read_bytes()
    message = "checkpoint.pt is truncated or not a checkpoint"
    if damage == "other run":
        good = (tmp_path / "run1" / "checkpoint.pt").read_bytes()
        message = "does not belong to its config.toml: init_channels must stay 3, got 2; set"
    elif damage == "rows":
        (tmp_path / "run0" / "metrics.jsonl").unlink()
        message = "metrics.jsonl must have a row for each of the 1 epochs"
    path.write_bytes({"truncated": good[:-9], "empty": b"", "foreign": b"hello"}.get(damage, good))
    assert message in refused("search", "--resume", "run0")


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(cli, npz, tmp_path, monkeypatch):
    run = tmp_path / "run"
    fsync, left = os.fsync, [4]  # three files at the start and the first checkpoint fit

    def filling(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    arguments = ("--dataset", npz, *TINY, "--epochs", 3, "--algo", "darts1", "--run-dir", run)
    result = cli("search", *arguments)
    assert (result.code, result.err) == (1, "error: No space left on device\n")
    names = {"checkpoint.pt", "config.toml", "data.json", "machine.json"}
    names |= {"architectures.jsonl", "metrics.jsonl"}
    assert {path.name for path in run.iterdir()} == names
    monkeypatch.setattr(os, "fsync", fsync)
    resumed = cli("search", "--resume", run)
    assert resumed.code == 0
    assert [line[:8] for line in resumed.out.splitlines()[1:3]] == ["epoch 2:", "epoch 3:"]


@pytest.mark.parametrize("command", ["train", "show"])
def test_a_published_string_is_longer_than_a_file_name_may_be(command, cli, npz, tmp_path):
    genotype = str(GENOTYPES["DARTS_V1"])
    assert len(genotype) > 255
    if command == "show":
        result = cli("show", genotype, "--out", tmp_path / "pictures")
    else:
        arguments = ("--dataset", npz, *TINY, "--no-auxiliary", "--run-dir", tmp_path / "run")
        result = cli("train", genotype, *arguments)
    assert (result.code, result.err) == (0, "")
