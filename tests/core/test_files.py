"""Files are replaced whole, and with the permissions that the user's umask leaves."""

import os
import stat

import pytest

from zoopt_nas._files import replacing


@pytest.mark.skipif(os.name != "posix", reason="umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"
