"""Searches by P-DARTS: in every space, what they record, how they resume, and what reads them."""

from __future__ import annotations

import pytest
import torch
from stopping import StopAt

from zoopt_nas.errors import RunError, RunInterrupted
from zoopt_nas.nas.analyses.landscape.compute import compute_landscape
from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings
from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.drawing.plots import draw_alpha
from zoopt_nas.nas.networks.architectures import architecture_from_dict
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.operations import SkipDropout
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.methods import progressive
from zoopt_nas.nas.search.methods.progressive import DROPPED
from zoopt_nas.nas.search.run import resume_search, run_search

CPU = torch.device("cpu")
KEPT = {8: (8, 5, 3), 7: (7, 5, 3), 5: (5, 4, 2), 3: (3, 2, 2), 2: (2, 2, 2)}


@pytest.fixture
def config(search_config):
    def make(**fields):
        return search_config("p_darts", **{"epochs": 6, "warmup_epochs": 1, **fields})

    return make


@pytest.mark.parametrize("space", SPACES)
def test_a_search_in_every_space_ends_with_one_of_its_architectures(space, config, tmp_path):
    n_cells, cells = (3, (3, 9, 15)) if space == "nasbench201" else (1, (1, 3, 5))
    found = run_search(
        config(space=space, epochs=3, warmup_epochs=0, n_train=32, n_cells=n_cells),
        run_dir=tmp_path / "run",
    )
    kind = SPACES[space].kinds[0]
    operations = [name for name, _, _ in found.genotype.cells[kind].edges]
    there = {name for names in SPACES[space].candidates(kind) for name in names}
    assert set(operations) <= (there if space == "nasbench201" else there - {"none"})
    assert operations.count("skip_connect") <= 2
    assert [row["updates"] for row in found.metrics] == [1, 1, 1]
    assert all(0 < row["val_loss"] < 10 for row in found.metrics)
    # Every row has alpha in the whole space, and the last supernet has the last depth.
    sizes = SPACES[space].sizes
    for stage, row in enumerate(RunFolder.open(tmp_path / "run").rows("architectures.jsonl")):
        alpha = torch.tensor(row["alpha"])
        parts = torch.split(alpha, list(sizes))
        left = [int((part != DROPPED).sum()) for part in parts]
        assert left == [KEPT[size][stage] for size in sizes]
    state = RunFolder.open(tmp_path / "run").load_checkpoint(CPU)["own"]["supernet"]
    assert len({name.split(".")[1] for name in state if name.startswith("cells.")}) == cells[2]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 5])  # a stage has two
def test_a_search_resumes_bit_for_bit_in_each_stage(n_steps, config, tmp_path, without_seconds):
    config = config(epochs=3, warmup_epochs=0, skip_dropout=(0.2, 0.4, 0.7))
    whole = run_search(config, run_dir=tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(n_steps))
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert again.genotype == whole.genotype
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)
    files = [tmp_path / name / "architectures.jsonl" for name in ("whole", "run")]
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.parametrize("n_steps", [3, 5])
def test_it_resumes_in_nasbench201(n_steps, config, tmp_path, without_seconds):
    config = config(space="nasbench201", epochs=3, warmup_epochs=0, n_cells=3, n_train=40)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(n_steps))
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)


def test_a_resumed_finished_search_gives_its_result(config, tmp_path):
    whole = run_search(config(), run_dir=tmp_path / "run")
    (tmp_path / "run" / "genotype.json").unlink()
    again = resume_search(tmp_path / "run")
    assert again.genotype == whole.genotype
    assert RunFolder.open(tmp_path / "run").genotype() == whole.genotype


def test_weights_and_alpha_are_trained_with_dropout_of_the_rate_of_the_epoch(config):
    """In the supernet and in the copy in which alpha has its gradient."""
    first = (0.0, 0.4, 0.7)
    seen = []

    class Watched(Search):
        def train_step(self):
            networks = (self.supernet, self._objective._training.scratch)
            seen.append(
                [
                    {float(m.rate) for m in network.modules() if isinstance(m, SkipDropout)}
                    for network in networks
                ]
            )
            return super().train_step()

    made = config(epochs=9)
    Watched(made, prepare(made)).run()
    for step, (own, other) in enumerate(seen):
        stage, epoch = divmod(step // 2, 3)
        rate = progressive.dropout_rate(first[stage], epoch, 3, 1)
        assert own == other
        assert sorted(own) == ([] if stage == 0 else [pytest.approx(rate, rel=1e-6)])


def test_rows_have_the_architecture_of_alpha_and_the_last_has_few_skips(
    config, tmp_path, monkeypatch
):
    """Here all edges have skip connections in every epoch, and the result has one."""
    space = SPACES["small_s3"]
    skips = torch.tensor([0.0, 1.0, 0.0]).repeat(10)  # two cells of five edges
    monkeypatch.setattr(DartsSpace, "init_alpha", lambda self, **_: skips)
    monkeypatch.setattr(progressive, "MAX_SKIPS", 1)
    result = run_search(config(), run_dir=tmp_path / "run")
    rows = RunFolder.open(tmp_path / "run").rows("architectures.jsonl")
    found = [architecture_from_dict(row["genotype"]) for row in rows]
    plain = [space.discretize(torch.tensor(row["alpha"])) for row in rows]
    assert found[:-1] == plain[:-1]
    assert found[-1] == result.genotype
    assert found[-1].reduce == plain[-1].reduce
    assert [row["skip_connections"] for row in result.metrics] == [4] * 5 + [1]
    # The heat map frames the result.
    figure = draw_alpha(space, rows)
    frames = [p for p in figure.axes[0].patches if p.get_gid().startswith("normal-chosen")]
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    chosen = [names[round(patch.get_center()[0])] for patch in frames]
    assert chosen == [name for name, _ in result.genotype.normal]


def test_a_finished_search_has_a_landscape(config, tmp_path):
    run_search(config(), run_dir=tmp_path / "run")
    search = Snapshot(RunFolder.open(tmp_path / "run"))
    assert len(search.supernet.cells) == 5
    # Dropped candidates weigh nothing, wherever alpha is in the plane.
    moved = search.alpha + torch.randn(search.alpha.shape)
    weights = search.supernet.edge_weights(moved)
    table = search.supernet.alpha_table(search.alpha) == DROPPED
    assert table.any()
    assert not weights[table].any()
    settings = LandscapeSettings(
        inner=("first", "2"), step=1.0, val_batches=2, paths=("darts1", "gld"), n_updates=2
    )
    landscape = compute_landscape(tmp_path / "run", settings)
    assert all(panel.shape == (3, 3) for panel in landscape.panels.values())
    assert set(landscape.tracks) == {"darts1", "gld"}


def test_another_method_cannot_continue_a_supernet_that_has_grown(config, search_config, tmp_path):
    run_search(config(), run_dir=tmp_path / "run")
    other = search_config("darts_pt", supernet=str(tmp_path / "run"))
    with pytest.raises(RunError, match=r"the supernet in .* does not fit"):
        run_search(other)
