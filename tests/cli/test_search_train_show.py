"""The commands doing their work: from a search to pictures, and who overrides whom."""

from __future__ import annotations

import json
import re
import tomllib
import warnings

import pytest
import torch
from zoopt_nas_cli import console

from zoopt_nas import nas

TINY = ("--epochs", 2, "--init-channels", 2, "--n-cells", 1, "--batch-size", 16)
SEARCH = (*TINY, "--inner-steps", 1, "--device", "cpu")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x1b]")


def config_of(run) -> dict:
    return tomllib.loads((run / "config.toml").read_text())


def rows_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_from_a_search_on_digits_to_pictures(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = ("--n-train", 64, "--seed", 3)
    found = cli("search", "--space", "s3", "--algo", "darts1", *digits, *SEARCH, "--run-dir", "run")
    assert (found.code, found.err) == (0, "")
    memory, *lines = found.out.splitlines()
    assert re.fullmatch(r"about 0\.\d GB of memory, \d+\.\d GB free on cpu", memory)
    assert re.fullmatch(
        r"epoch 1: loss \d\.\d{4}, accuracy [\d.]+%, val loss \d\.\d{4}, "
        r"val accuracy [\d.]+%, skips [0-8], [\d.]+ s",
        lines[0],
    )
    assert lines[1].startswith("epoch 2: ")
    genotype = nas.Genotype.from_string(lines[2])
    assert genotype == nas.Genotype.from_json((tmp_path / "run" / "genotype.json").read_text())
    last = rows_of(tmp_path / "run")[-1]
    assert lines[3:] == [
        f"supernet validation accuracy {last['val_accuracy']:.2%}, "
        f"{genotype.count('skip_connect')} of 8 normal edges are skip connections",
        "reduced size: dataset digits, n_train 64, epochs 2 of 50, n_cells 1 of 8, "
        "init_channels 2 of 16",
        "run folder: run",
        "next: zoopt-nas train run, zoopt-nas show run",
    ]
    assert not CONTROL.search(found.out)  # plain lines when piped

    trained = cli("train", "run", *TINY, "--run-dir", "run/train")
    assert (trained.code, trained.err) == (0, "")
    result = json.loads((tmp_path / "run" / "train" / "result.json").read_text())
    taken = "from run: the genotype, dataset digits, seed 3, device cpu"
    assert trained.out.splitlines()[0] == taken
    assert trained.out.splitlines()[4:] == [
        f"test accuracy {result['test_accuracy']:.2%} (loss {result['test_loss']:.4f}) "
        f"with {result['n_parameters']:,} parameters and "
        f"{result['n_multiply_adds'] / 1e6:.1f} M multiply-adds after {result['seconds']:.0f} s",
        "reduced size: dataset digits, epochs 2 of 600, n_cells 1 of 20, init_channels 2 of 36",
        "run folder: run/train",
    ]
    assert result["genotype"] == str(genotype)
    # The data and the seed are those of the search; the rest are a retraining's own defaults.
    config = config_of(tmp_path / "run" / "train")
    assert (config["dataset"], config["seed"], "n_train" in config) == ("digits", 3, False)
    assert (config["device"], config["epochs"], config["lr_min"]) == ("cpu", 2, 0.0)
    assert not CONTROL.search(trained.out)

    shown = cli("show", "run", "--json")
    assert (shown.code, shown.err) == (0, "")
    output = json.loads(shown.out)
    assert nas.Genotype.from_dict(output["genotype"]) == genotype
    assert output["last_epoch"] == last
    names = ["normal", "reduction", "curves", "alpha"]
    expected = [f"run/pictures/{name}.{form}" for name in names for form in ("svg", "png")]
    assert sorted(output["pictures"]) == sorted(expected)
    for picture in output["pictures"]:
        start = (tmp_path / picture).read_bytes()[:300]
        assert b"<svg" in start or b"<?xml" in start or start.startswith(b"\x89PNG")


def test_show_prints_both_cells_as_tables(cli, tmp_path):
    result = cli("show", "DARTS_V2", "--out", tmp_path / "p")
    assert (result.code, result.err) == (0, "")
    cells = [
        tuple(cell.strip() for cell in line.split("│")[1:-1])
        for line in result.out.splitlines()
        if line.startswith("│")
    ]
    genotype = nas.GENOTYPES["DARTS_V2"]
    names = ["c_{k-2}", "c_{k-1}", "0", "1", "2", "3"]
    assert cells == [
        (str(i // 2), names[source], operation)
        for kind in ("normal", "reduce")
        for i, (operation, source) in enumerate(genotype.edges(kind))
    ]
    assert "normal cell" in result.out
    assert "reduction cell" in result.out
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        *("normal.png", "normal.svg", "reduction.png", "reduction.svg")
    ]
    assert not CONTROL.search(result.out)


def test_a_random_architecture_needs_no_epoch(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cli("search", "--algo", "random", "--n-train", 64, *SEARCH, "--run-dir", "run")
    assert (found.code, found.err) == (0, "")
    _memory, genotype, *rest = found.out.splitlines()
    assert nas.Genotype.from_string(genotype) == nas.RunFolder.open("run").genotype()
    assert rest == ["run folder: run", "next: zoopt-nas train run, zoopt-nas show run"]
    again = cli("search", "--resume", "run", "--json")
    assert json.loads(again.out)["genotype"] == nas.RunFolder.open("run").genotype().to_dict()
    shown = cli("show", "run", "--json")
    assert json.loads(shown.out)["last_epoch"] is None


def test_an_own_npz_from_search_to_show(cli, npz, tmp_path):
    run = tmp_path / "a run"  # with a space: the commands to go on with are quoted
    few = ("--n-train", 48)
    found = cli(
        "search", "--dataset", npz, *few, "--algo", "gld", *SEARCH, "--run-dir", run, "--json"
    )
    assert (found.code, found.err) == (0, "")
    assert found.out.count("\n") == 1
    output = json.loads(found.out)
    last = rows_of(run)[-1]
    assert output.pop("run_dir") == str(run)
    genotype = nas.Genotype.from_dict(output.pop("genotype"))
    assert output.pop("reduced") == [
        *(f"dataset {npz}", "n_train 48", "epochs 2 of 50", "n_cells 1 of 8"),
        *("init_channels 2 of 16", "inner_steps 1 of 10"),
    ]
    assert output == last
    assert {"val_accuracy", "evaluations", "skip_connections", "seconds"} <= output.keys()

    trained = cli("train", run, *TINY, "--json")
    (folder,) = run.glob("train-*-seed0")
    result = json.loads(trained.out)
    assert result.pop("run_dir") == str(folder)
    reduced = result.pop("reduced")
    assert reduced[:2] == [f"dataset {npz}", "epochs 2 of 600"]
    assert result == json.loads((folder / "result.json").read_text())
    assert result["genotype"] == str(genotype)
    assert config_of(folder)["dataset"] == str(npz)
    # The search used a part of the images; the network is trained on all of them.
    assert config_of(run)["n_train"] == 48
    assert "n_train" not in config_of(folder)

    again = cli("train", "--resume", folder, "--json")
    assert json.loads(again.out) == {
        **{"run_dir": str(folder), **result},
        "reduced": reduced,
    }
    assert cli("search", "--resume", run).out.splitlines()[-1] == (
        f"next: zoopt-nas train '{run}', zoopt-nas show '{run}'"
    )
    shown = json.loads(cli("show", folder, "--json").out)  # of a retraining: no alpha
    assert {path.rsplit("/", 1)[1] for path in shown["pictures"]} == {
        f"{name}.{form}" for name in ("normal", "reduction", "curves") for form in ("svg", "png")
    }


def test_how_a_search_was_executed_is_kept_and_taken_over_by_its_retraining(cli, npz, tmp_path):
    run = tmp_path / "run"
    how = ("--threads", 2, "--amp", "bf16", "--compile", "off", "--channels-last", "off")
    found = cli("search", "--dataset", npz, "--algo", "darts1", *SEARCH, *how, "--run-dir", run)
    assert (found.code, found.err) == (0, "")
    expected = {"threads": 2, "amp": "bf16", "compile": "off", "channels_last": "off"}
    assert config_of(run).items() >= expected.items()
    trained = cli("train", run, *TINY, "--amp", "off", "--run-dir", run / "train")
    assert (trained.code, trained.err) == (0, "")
    assert config_of(run / "train").items() >= (expected | {"amp": "off"}).items()


def test_a_step_that_cannot_be_compiled_is_one_warning(cli, npz, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no compiler\n[for] this machine")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(console.err, "_width", 40)  # of the terminal: the line is not wrapped
    arguments = ("--dataset", npz, "--compile", "on", *TINY, "--run-dir", tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = cli("train", "DARTS_V2", "--device", "cpu", *arguments)
    assert result.code == 0
    line = "warning: weight steps are not compiled: no compiler [for] this machine\n"
    assert result.err == line


def test_a_search_whose_candidates_all_fail_is_one_line(cli, npz, tmp_path):
    run = tmp_path / "run"
    bad = ("--algo", "gld", "--inner-lr", 1e30, "--warmup-epochs", 1, "--n-samples", 2)
    for arguments in (("--dataset", npz, *SEARCH, *bad, "--run-dir", run), ("--resume", run)):
        ended = cli("search", *arguments)
        assert ended.code == 2
        assert ended.err == (
            "error: all 6 candidates of epoch 2 failed: none is finite; start again with a lower "
            "inner_lr or lr\n"
        )
        assert [row["epoch"] for row in rows_of(run)] == [0]
    assert not (run / "genotype.json").exists()


def test_failed_candidates_are_shown(cli, npz, tmp_path, monkeypatch):
    plain = nas.BilevelObjective.__call__

    def call(self, alphas, draw=None):
        values = plain(self, alphas, draw)
        return values.index_fill(0, torch.tensor([1]), torch.nan)

    monkeypatch.setattr(nas.BilevelObjective, "__call__", call)
    few = ("--algo", "gld", "--n-samples", 2, "--warmup-epochs", 1, "--dataset", npz, *SEARCH)
    found = cli("search", *few, "--run-dir", tmp_path / "run")
    assert (found.code, found.err) == (0, "")
    first, second = (line for line in found.out.splitlines() if line.startswith("epoch"))
    assert "failed" not in first
    assert ", failed candidates 2, " in second
    shown = cli("show", tmp_path / "run")
    assert "failed candidates: 2 in epoch 2\n" in shown.out
    shown = json.loads(cli("show", tmp_path / "run", "--json").out)
    assert shown["failures"] == {"1": 2}
    assert shown["last_epoch"]["failures"] == 2


def test_a_preset_and_what_overrides_it(cli, npz, tmp_path):
    few = ("--dataset", npz, *SEARCH[:-4], "--device", "cpu")
    preset = ("--preset", "paper", "--inner-lr", 0.5, "--n-samples", 2)
    found = cli("search", *few, *preset, "--run-dir", tmp_path / "run", "--json")
    assert (found.code, found.err) == (0, "")
    reduced = json.loads(found.out)["reduced"]
    assert reduced[:2] == [f"dataset {npz}", "epochs 2 of 50"]
    config = config_of(tmp_path / "run")
    assert (config["inner_steps"], config["warmup_epochs"]) == (10, 0)
    assert "update_period" not in config  # which is M then
    assert (config["inner_lr"], config["inner_momentum"]) == (0.5, False)
    assert config["solver"]["weighting"] == "exact"
    assert config["solver"]["n_samples"] == 2


def test_default_run_folders_say_what_they_are(cli, npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", npz, "--epochs", 1, *TINY[2:])
    search = cli("search", *arguments, "--algo", "darts1", "--space", "s2", "--seed", 5, "--json")
    assert re.fullmatch(r"runs/\d{8}-\d{6}-s2-bars-darts1-seed5", json.loads(search.out)["run_dir"])
    train = cli("train", "DARTS_V1", *arguments, "--json")
    assert re.fullmatch(r"runs/\d{8}-\d{6}-train-bars-seed0", json.loads(train.out)["run_dir"])


def test_options_override_the_config_file_and_the_file_the_defaults(
    cli, npz, tmp_path, monkeypatch
):
    def run_search(config, *, run_dir, observer):
        resolved.append(config)
        raise KeyboardInterrupt

    resolved: list[nas.SearchConfig] = []
    from zoopt_nas.nas.search import run as search

    monkeypatch.setattr(search, "run_search", run_search)
    (tmp_path / "c.toml").write_text(
        'space = "s2"\nalgo = "gld"\nepochs = 7\nseed = 3\nalpha_betas = [0.4, 0.9]\n'
        "[solver]\nmax_radius = 3.0\nn_samples = 6\n"
    )
    file = ("--config", tmp_path / "c.toml")
    for arguments in (
        file,
        (*file, "--epochs", 20, "--seed", 0, "--n-samples", 2, "--solver-option", "max_radius=1.5"),
        (*file, "--algo", "darts1"),
        ("--dataset", npz),
        ("--dataset", "cifar10", "--algo", "mgs", "--solver-option", "weighting=exact"),
    ):
        assert cli("search", *arguments).code == 130
    by_file, by_flags, gradient, own_data, cifar = resolved
    assert (by_file.space, by_file.algo, by_file.epochs, by_file.seed) == ("s2", "gld", 7, 3)
    assert by_file.alpha_betas == (0.4, 0.9)
    own = {"schedule": "search", "min_radius": 0.25}
    assert by_file.solver == own | {"max_radius": 3.0, "n_samples": 6}
    assert (by_file.warmup_epochs, by_file.n_cells) == (1, 3)  # a fifth of 7; digits
    assert (by_flags.space, by_flags.epochs, by_flags.seed) == ("s2", 20, 0)
    assert by_flags.solver == own | {"max_radius": 1.5, "n_samples": 2}
    assert by_flags.warmup_epochs == 4
    assert (gradient.algo, gradient.warmup_epochs, gradient.epochs) == ("darts1", 0, 7)
    assert (own_data.epochs, own_data.init_channels, own_data.n_cells) == (50, 16, 8)
    assert cifar.solver["weighting"] == "exact"
    assert (cifar.epochs, cifar.inner_steps, cifar.batch_size) == (50, 10, 64)


def test_train_takes_a_config_file_too(cli, npz, tmp_path, monkeypatch):
    def run_training(config, *, run_dir, observer, processes):
        resolved.append((config, run_dir))
        raise KeyboardInterrupt

    resolved: list = []
    from zoopt_nas.nas.retraining import retrain

    monkeypatch.setattr(retrain, "run_training", run_training)
    (tmp_path / "c.toml").write_text(f'dataset = "{npz}"\ndrop_path = 0.1\nepochs = 9\n')
    (tmp_path / "g.json").write_text(nas.GENOTYPES["DARTS_V1"].to_json())
    arguments = ("--config", tmp_path / "c.toml", "--epochs", 4, "--run-dir", tmp_path / "r")
    assert cli("train", tmp_path / "g.json", *arguments, "--no-auxiliary").code == 130
    ((config, run_dir),) = resolved
    assert (config.dataset, config.drop_path, config.epochs) == (str(npz), 0.1, 4)
    assert (config.auxiliary, config.cutout, config.n_cells) == (False, 16, 20)
    assert config.genotype == str(nas.GENOTYPES["DARTS_V1"])
    assert run_dir == tmp_path / "r"


@pytest.mark.parametrize(
    ("algo", "per_sample", "fixed"), [("rs", 2, 0), ("mgs", 1, 0), ("gld", 1, 1)]
)
def test_n_samples_sets_the_evaluations_of_an_update(algo, per_sample, fixed, cli, npz, tmp_path):
    arguments = ("--dataset", npz, *SEARCH, "--warmup-epochs", 1, "--algo", algo, "--json")
    for n in (1, 3):
        output = json.loads(
            cli("search", *arguments, "--n-samples", n, "--run-dir", tmp_path / str(n)).out
        )
        assert output["updates"] == 2
        assert output["evaluations"] == 2 * (per_sample * n + fixed)
        assert config_of(tmp_path / str(n))["solver"]["n_samples"] == n


def test_train_follows_a_protocol_and_the_space_of_its_search(cli, npz, tmp_path, refused):
    few = ("--epochs", 1, "--batch-size", 16, "--device", "cpu")
    search = (*few, "--init-channels", 2, "--n-cells", 1, "--dataset", npz, "--algo", "darts1")
    assert cli("search", "--space", "s2", *search, "--run-dir", tmp_path / "run").code == 0
    # rdarts has no size for data of one's own; the space comes from the search.
    assert refused("train", tmp_path / "run", "--protocol", "rdarts") == (
        f"dataset must be one of cifar10, cifar100, svhn for protocol rdarts, got {npz}"
    )
    no_files = refused("train", tmp_path / "run", "--protocol", "rdarts", "--dataset", "cifar10")
    assert "space must be" not in no_files
    assert "cifar-10" in no_files
    assert refused("train", "DARTS_V1", "--protocol", "rdarts", "--dataset", "cifar10") == (
        "space must be one of s1, s2, s3, s4 for protocol rdarts, got none"
    )
    size = ("--init-channels", 2, "--n-cells", 1, "--no-auxiliary")
    train = ("--dataset", npz, *few, *size, "--run-dir", tmp_path / "train")
    trained = cli("train", "DARTS_V1", "--protocol", "imagenet", *train)
    assert (trained.code, trained.err) == (0, "")
    config = config_of(tmp_path / "train")
    assert (config["epochs"], config["n_cells"], config["auxiliary"]) == (1, 1, False)
    assert (config["schedule"], config["lr"], config["weight_decay"]) == ("linear", 0.5, 3e-5)


def test_the_best_epoch_is_labelled(cli, npz, tmp_path):
    how = ("--dataset", npz, *TINY, "--device", "cpu", "--report", "best")
    trained = cli("train", "DARTS_V1", *how, "--run-dir", tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["selected_on_test_set"] is True
    assert result["test_accuracy"] == max(row["test_accuracy"] for row in rows)
    assert trained.out.splitlines()[-4] == (
        f"best test accuracy, of epoch {result['epoch'] + 1} and selected on the test set; "
        f"the last epoch has {rows[-1]['test_accuracy']:.2%}"
    )
    assert f"best on the test set {rows[-1]['best_on_test_set']:.2%}" in trained.out
    last = cli("train", "DARTS_V1", *how[:-2], "--json")
    assert json.loads(last.out)["selected_on_test_set"] is False


@pytest.mark.parametrize("form", ["name", "json", "json file", "published", "pasted", "file"])
def test_a_genotype_comes_in_every_published_form(cli, npz, tmp_path, form):
    genotype = nas.GENOTYPES["DARTS_V1"]
    # As the DARTS repository has it: other spaces, line breaks, range().
    pasted = (
        f"Genotype(normal={list(genotype.normal)}, normal_concat=range(2, 6),\n"
        f"  reduce={list(genotype.reduce)},\n  reduce_concat=range(2, 6))"
    )
    (tmp_path / "g.json").write_text(genotype.to_json())
    (tmp_path / "g.txt").write_text(f"DARTS_V1 = {pasted}\n")
    source = {
        "name": "DARTS_V1",
        "json": genotype.to_json(),
        "json file": tmp_path / "g.json",
        "published": str(genotype),
        "pasted": f"DARTS_V1 = {pasted}",
        "file": tmp_path / "g.txt",
    }[form]
    few = ("--epochs", 1, *TINY[2:], "--dataset", npz, "--device", "cpu", "--json")
    trained = cli("train", source, *few, "--run-dir", tmp_path / "run")
    assert (trained.code, trained.err) == (0, "")
    assert nas.Genotype.from_string(json.loads(trained.out)["genotype"]) == genotype


def test_show_prints_the_size_of_the_published_networks(cli, tmp_path):
    lines = cli("show", "DARTS_V2", "--out", tmp_path / "p").out.splitlines()
    assert lines[-6:-4] == [
        "CIFAR-10, 20 cells, 36 channels, 32x32: 3.35 M parameters, 528.4 M multiply-adds",
        "ImageNet, 14 cells, 48 channels, 224x224: 4.72 M parameters, 529.9 M multiply-adds",
    ]
    sizes = json.loads(cli("show", "DARTS_V2", "--out", tmp_path / "p", "--json").out)["sizes"]
    assert sizes["CIFAR-10"] == {"n_parameters": 3_349_342, "n_multiply_adds": 528_359_040}
    assert sizes["ImageNet"]["n_parameters"] == 4_718_752
