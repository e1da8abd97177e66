"""``zoopt-nas minimize`` at a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

BOWL = "def bowl(x): return float(((x - 1) ** 2).sum())\n"


def test_a_terminal_shows_the_run_on_stderr(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bowls.py").write_text(BOWL)
    main = "from zoopt_nas_cli.main import main; main()"
    arguments = ["minimize", "bowls:bowl", "--x0", "3,-2", "--seed", "0"]

    def err_of(*more: str) -> tuple[str, str]:
        shown, terminal = pty.openpty()
        done = subprocess.run(
            [sys.executable, "-c", main, *arguments, "--maxfev", "40", *more],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            check=True,
            text=True,
        )
        os.close(terminal)
        pieces = []
        while True:
            try:
                pieces.append(os.read(shown, 65536))
            except OSError:  # all is read
                break
        os.close(shown)
        return done.stdout, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(pieces).decode())

    out, err = err_of()
    fun = float(re.search(r"^fun: (.*)$", out, re.MULTILINE)[1])
    assert re.search(rf"40/40 evaluations [━╺╸]+ best {fun:.6g} ", err)
    out, err = err_of("--json")
    assert (json.loads(out)["fun"], err) == (fun, "")
