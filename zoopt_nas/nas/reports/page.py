"""Write a report: one HTML page without any other file, and the same numbers as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from zoopt_nas import __version__
from zoopt_nas._files import replacing
from zoopt_nas.errors import RunError
from zoopt_nas.nas.reports.collect import Collection, Group, Run
from zoopt_nas.nas.reports.pictures import Gallery, NoPictures, Picture
from zoopt_nas.nas.reports.tables import FULL_SIZE, Table, make_tables, name_groups
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.tabular.table import TRUE_ACCURACIES

# Numbers of one result: key, name, unit, digits.
_NUMBERS = (
    ("test_error", "test error %", 100.0, 2),
    *((name, f"{name.replace('_', ' ')} %", 100.0, 2) for name in TRUE_ACCURACIES),
    ("n_parameters", "parameters (M)", 1e-6, 2),
    ("n_multiply_adds", "multiply-adds (M)", 1e-6, 1),
    ("skip_connections", "skip connections", 1.0, 0),
    ("seconds", "search s", 1.0, 1),
)


@dataclass(frozen=True)
class RunSet:
    """What a report says about a group.

    ``settings`` are those that differ from their defaults; ``rows`` have the seed, the numbers in
    the order of ``columns``, and the runs of one result each.
    """

    group: Group
    name: str
    settings: list[str]
    sweeps: list[str]
    columns: list[str]
    rows: list[tuple[int, list[str], list[Run]]]
    pictures: list[Picture]

    @property
    def number(self) -> int:
        """The number that the tables refer to."""
        return self.group.number

    @property
    def size(self) -> str:
        """What is smaller than in the paper, in words."""
        return "; ".join(self.group.size) or FULL_SIZE

    @property
    def hardware(self) -> str:
        """The hardware of all runs, in words."""
        return "; ".join(self.group.machines)


@dataclass(frozen=True)
class Report:
    """The content of a report, before its form."""

    found: Collection
    tables: list[Table]
    sets: list[RunSet]
    unfinished: list[tuple[Run, list[Picture]]]
    figures: list[Picture]

    @classmethod
    def of(
        cls, found: Collection, gallery: Gallery | None, *, only_measured: bool = False
    ) -> Report:
        """Return the report of what was found.

        Args:
            found: the runs.
            gallery: draws the pictures; None leaves them out.
            only_measured: leave out published figures without a measured number.
        """
        names, tables = name_groups(found.groups), make_tables(found)
        if only_measured:
            tables = [table.only_measured() for table in tables if table.n_measured]
        gallery = gallery or NoPictures()
        return cls(
            found,
            tables,
            [_run_set(group, names[group.number], gallery) for group in found.groups],
            [(run, gallery.of_run(run)) for run in found.runs if not run.is_finished],
            gallery.of_files(found.figures),
        )

    def to_html(self, *, refresh: float | None = None) -> str:
        """Return the page; a browser loads it again every ``refresh`` seconds."""
        return self._render("page.html.jinja", autoescape=True, refresh=refresh)

    def to_markdown(self) -> str:
        """Return the tables and run sets as Markdown, without pictures."""
        return self._render("page.md.jinja", autoescape=False)

    def _render(self, template: str, *, autoescape: bool, **more: Any) -> str:
        environment = Environment(
            autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            keep_trailing_newline=True,
        )  # fmt: skip
        environment.filters["cell"] = _markdown_cell
        text = files(__package__).joinpath(template).read_text(encoding="utf-8")
        return environment.from_string(text).render(
            report=self,
            version=__version__,
            written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}",
            **more,
        )


def write_report(report: Report, page: Path, *, refresh: float | None = None) -> list[Path]:
    """Write the page and, beside it, the Markdown; return both paths.

    Raises:
        RunError: the folder cannot be written.
    """
    texts = {page: report.to_html(refresh=refresh), page.with_suffix(".md"): report.to_markdown()}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with replacing(path) as file:
                file.write(text.encode())
    except OSError as error:
        raise RunError(f"cannot write {page}: {error.strerror}") from error
    return list(texts)


def _run_set(group: Group, name: str, gallery: Gallery) -> RunSet:
    known = [
        spec for spec in _NUMBERS if any(spec[0] in result.numbers for result in group.results)
    ]
    rows = [
        (
            result.seed,
            [
                f"{unit * result.numbers[key]:.{digits}f}" if key in result.numbers else ""
                for key, _, unit, digits in known
            ],
            result.runs,
        )
        for result in group.results
    ]
    sweeps = [run.sweep.command for one in group.results for run in one.runs if run.sweep]
    return RunSet(
        group,
        name,
        [setting for config in group.configs for setting in _differences(config)],
        [command for command in dict.fromkeys(sweeps) if command],
        [title for _, title, _, _ in known],
        rows,
        gallery.of_group(group),
    )


def _differences(config: RunConfig) -> list[str]:
    """Return the settings that differ from the defaults for their data set, method and space."""
    usual: RunConfig
    if isinstance(config, SearchConfig):
        usual = SearchConfig.for_dataset(config.dataset, config.algo, space=config.space)
        always = [f"algo {config.algo}", f"space {config.space}"]
    else:
        assert isinstance(config, TrainConfig)
        usual, always = TrainConfig.for_dataset(config.dataset, config.genotype), []
    differences = [
        f"{name} {value}"
        for name, value in vars(config).items()
        if name != "seed" and value != getattr(usual, name)
    ]
    settings = [f"dataset {config.dataset}", *always, *differences]
    return [f"{config.kind}: {', '.join(settings)}"]


def _markdown_cell(text: object) -> str:
    """Return a text that stays in its cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")
