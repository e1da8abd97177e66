"""The page of all settings; ``python tests/test_settings_page.py`` writes it."""

from __future__ import annotations

from pathlib import Path

from zoopt_nas.nas.settings.config import RunConfig, SearchConfig, TrainConfig
from zoopt_nas.nas.settings.setting import GROUPS, settings_of

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
INTRODUCTION = """\
# Settings

This page lists every setting of a search and of a retraining. The name is the field of \
`nas.SearchConfig` or `nas.TrainConfig`, and the key in a TOML file for `--config`. A dash in the \
column of options means that the setting has no command-line option.

A default depends on the kind of run, the data set, the method and the space. The tables show the \
default for image data sets with `mgs`, and for the bundled digits if it differs. \
`zoopt_nas/nas/settings/defaults.py` has the other defaults for ImageNet and for other methods, \
with their sources. A setting that you leave out has the same default in Python, in a file and on \
the command line.

Sources: *paper* is ZARTS (Wang et al., 2022), *released* its published scripts, *DARTS* is Liu et \
al. (2019) with its code, and *zoopt-nas* is a choice of this package.
"""


def page() -> str:
    """Return the text of the page."""
    shared = settings_of(RunConfig)
    parts = [INTRODUCTION, "## Search\n", *tables(SearchConfig, set()), "## Retraining\n"]
    same = {name for name in shared if line(SearchConfig, name) == line(TrainConfig, name)}
    names = ", ".join(f"`{name}`" for name in shared if name in same)
    parts += [f"As in a search: {names}.\n", *tables(TrainConfig, same)]
    return "\n".join(parts)


def tables(cls: type[RunConfig], left_out: set[str]) -> list[str]:
    """Return the tables of a config's settings, one for each group."""
    found = []
    for group in GROUPS:
        own = [name for name, one in settings_of(cls).items() if one.group == group]
        lines = [line(cls, name) for name in own if name not in left_out]
        if lines:
            header = [
                "| setting | option | default | what it does | source, notes |",
                "|---" * 5 + "|",
            ]
            found.append("\n".join([f"### {group}\n", *header, *lines, ""]))
    return found


def line(cls: type[RunConfig], name: str) -> str:
    """Return the row of a setting."""
    known = settings_of(cls)[name]
    option = f"`{known.option or '--' + name.replace('_', '-')}`" if known.has_option else "–"
    default = cls.shown_default(name)
    return f"| `{name}` | {option} | {default} | {known.help} | {known.note} |"


def test_the_page_of_settings_is_as_generated():
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/test_settings_page.py"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
