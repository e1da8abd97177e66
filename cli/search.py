"""``zoopt-nas search``: searches an architecture and writes a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.paper_size import reductions

from . import console
from .options import (
    ALPHA,
    DATA,
    MACHINE,
    RUN,
    SUPERNET,
    WEIGHTS,
    WHAT,
    Amp,
    ChannelsLast,
    Compile,
    ConfigFile,
    DataDir,
    Device,
    Download,
    ImageSize,
    Json,
    LearningRate,
    Native,
    NTrain,
    Seed,
    Threads,
    WeightDecay,
    dated,
    given,
    let_threads_sleep,
    parse_pairs,
    read_config_file,
    resume_alone,
    setting,
)


def _field(name: str, help_text: str, panel: str, **more: Any) -> Any:
    return setting(SearchConfig, name, help_text, panel, **more)


def search(
    ctx: typer.Context,
    space: Annotated[str | None, _field("space", "Search space.", WHAT)] = None,
    dataset: Annotated[
        str | None,
        _field("dataset", "Data set: a name, an .npz file or a folder of class folders.", WHAT),
    ] = None,
    algo: Annotated[
        str | None, _field("algo", "Method: rs, mgs, gld, darts1, darts2, ...", WHAT)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="The search of the paper, or of its released scripts: paper, released. "
            "Other options override it.",
            rich_help_panel=WHAT,
            show_default="neither: see the docs, Deviations",
        ),
    ] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to create.",
            rich_help_panel=RUN,
            show_default="runs/<date>-<space>-<dataset>-<algo>-seed<k>",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with this run; needs no other option.", rich_help_panel=RUN),
    ] = None,
    json: Json = False,
    init_channels: Annotated[
        int | None, _field("init_channels", "Width of the first cell.", SUPERNET)
    ] = None,
    n_cells: Annotated[int | None, _field("n_cells", "Number of cells.", SUPERNET)] = None,
    partial_channels: Annotated[
        int | None,
        _field("partial_channels", "K: 1/K of the channels meets the operations.", SUPERNET),
    ] = None,
    edge_normalization: Annotated[
        bool | None, _field("edge_normalization", "Alpha also weighs edges.", SUPERNET)
    ] = None,
    epochs: Annotated[int | None, _field("epochs", "Epochs.", WEIGHTS)] = None,
    batch_size: Annotated[int | None, _field("batch_size", "Images in a batch.", WEIGHTS)] = None,
    lr: LearningRate = None,
    weight_decay: WeightDecay = None,
    drop_path: Annotated[
        float | None,
        _field("drop_path", "Probability to lose an edge at the end.", WEIGHTS),
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs before alpha moves.",
            rich_help_panel=ALPHA,
            show_default="zero-order: a fifth of the epochs; pc: 0.3; others: 0",
        ),
    ] = None,
    n_samples: Annotated[
        int | None,
        typer.Option(
            help="N: samples in an update of alpha (rs: pairs; gld: radii).",
            rich_help_panel=ALPHA,
            show_default="4",
        ),
    ] = None,
    inner: Annotated[
        str | None,
        _field("inner", "Weights of a candidate: sgd, M steps; second; first, none.", ALPHA),
    ] = None,
    inner_steps: Annotated[
        int | None, _field("inner_steps", "M: weight steps for each candidate.", ALPHA)
    ] = None,
    inner_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of those steps.",
            rich_help_panel=ALPHA,
            show_default="the current one of the weights",
        ),
    ] = None,
    inner_amp: Annotated[
        str | None, _field("inner_amp", "Precision of those steps: off, float32; bf16.", ALPHA)
    ] = None,
    update_period: Annotated[
        int | None,
        typer.Option(
            help="Weight steps between two updates of alpha.",
            rich_help_panel=ALPHA,
            show_default="zero-order: M; gradient methods: 1",
        ),
    ] = None,
    val_batches: Annotated[
        int | None, _field("val_batches", "Batches that score a candidate.", ALPHA)
    ] = None,
    sigma_schedule: Annotated[
        str | None, _field("sigma_schedule", "Search width: cosine or constant.", ALPHA)
    ] = None,
    solver_option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE of the solver, for example sigma=0.2; may be repeated.",
            rich_help_panel=ALPHA,
            show_default=False,
        ),
    ] = None,
    alpha_lr: Annotated[
        float | None, _field("alpha_lr", "Adam's learning rate of gradient methods.", ALPHA)
    ] = None,
    track_eigenvalue: Annotated[
        bool | None,
        _field("track_eigenvalue", "Measure the Hessian's eigenvalue in each epoch.", ALPHA),
    ] = None,
    eigenvalue_batches: Annotated[
        int | None, _field("eigenvalue_batches", "Batches over which it is averaged.", ALPHA)
    ] = None,
    min_return_epoch: Annotated[
        int | None,
        _field("min_return_epoch", "es, ada: first epoch, from 0, to return to.", ALPHA),
    ] = None,
    cutout: Annotated[
        int | None, _field("cutout", "Side of the square cut out of images.", DATA)
    ] = None,
    data_dir: DataDir = None,
    download: Download = None,
    n_train: NTrain = None,
    image_size: ImageSize = None,
    device: Device = None,
    threads: Threads = None,
    amp: Amp = None,
    compile: Compile = None,
    channels_last: ChannelsLast = None,
    native: Native = None,
    candidates_per_batch: Annotated[
        int | None,
        typer.Option(
            help="Candidates of an update that are evaluated at once.",
            rich_help_panel=MACHINE,
            show_default="as many as pay and fit into the memory",
        ),
    ] = None,
) -> None:
    """Search an architecture; without options, MGS on the embedded handwritten digits."""
    let_threads_sleep()
    from zoopt_nas import nas  # torch takes a second or two to import: not for --help

    if resume is not None:
        resume_alone(ctx)
    else:
        resolved = SearchConfig.for_dataset(**_fields_of(ctx))
        name = dated(resolved.space, resolved.dataset, resolved.algo, f"seed{resolved.seed}")
        run_dir = run_dir or Path("runs") / name

    resume_with = f"zoopt-nas search --resume {shlex.quote(str(resume or run_dir))}"
    with console.watched(quiet=json, resume_with=resume_with) as observer:
        if resume is not None:
            result = nas.resume_search(resume, observer=observer)
        else:
            result = nas.run_search(resolved, run_dir=run_dir, observer=observer)

    last = result.metrics[-1] if result.metrics else {}  # `random` trains nothing
    done = nas.RunFolder.open(str(result.run_dir)).config(SearchConfig)
    reduced = reductions(done) if last else []
    if json:
        console.say_json(
            {
                "run_dir": str(result.run_dir),
                "genotype": result.genotype.to_dict(),
                "reduced": reduced,
                **last,
            }
        )
        return
    console.say(str(result.genotype))
    if last:
        console.say(
            f"supernet validation accuracy {last['val_accuracy']:.2%}, "
            f"{last['skip_connections']} of 8 normal edges are skip connections"
        )
    console.say_reduced(reduced)
    console.say(f"run folder: {result.run_dir}")
    run = shlex.quote(str(result.run_dir))
    console.say(f"next: zoopt-nas train {run}, zoopt-nas show {run}")


def parse_fields(arguments: list[str]) -> dict[str, Any]:
    """The settings that arguments of this command give, for a command that hands them on."""
    own = typer.Typer(add_completion=False)
    own.command()(search)
    parsed = typer.main.get_command(own).make_context("search", list(arguments))
    return _fields_of(cast(typer.Context, parsed))


def _fields_of(ctx: typer.Context) -> dict[str, Any]:
    """What ``SearchConfig.for_dataset`` is given: the config file, and the options over it."""
    options = parse_pairs(list(ctx.params["solver_option"] or []))
    if ctx.params["n_samples"] is not None:
        options["n_samples"] = ctx.params["n_samples"]
    fields = read_config_file(ctx.params["config"], SearchConfig) | given(ctx, SearchConfig)
    if ctx.params["preset"] is not None:
        fields["preset"] = ctx.params["preset"]
    solver = fields.get("solver", {})
    if options and isinstance(solver, dict):  # anything else is refused by the config
        fields["solver"] = solver | options
    return fields
