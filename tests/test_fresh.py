"""The processes that other tests run things in are like new ones."""

import pytest

from tests.fresh import ROOT, python

SEEN = (
    "import os, sys; print(__name__, sys.argv[1:], sys.path[0], os.getcwd(), os.environ.get('A')); "
    "print([name for name in sys.modules if name.startswith(('sj_ottt', 'tests'))])"
)


@pytest.mark.slow
def test_a_fresh_process_has_what_it_is_given_and_nothing_of_ours(tmp_path):
    (tmp_path / "seen.py").write_text(SEEN)
    for args in (("-c", SEEN, "b"), ("-m", "seen", "b"), (tmp_path / "seen.py", "b")):
        said = python(*args, cwd=tmp_path, A="c")
        first = f"__main__ ['b'] {tmp_path} {tmp_path} c"
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.splitlines() == [first, "[]"]
    assert f" {ROOT} None\n" in python("-c", SEEN).stdout
    failed = python("-c", "print(1); raise ValueError(2)")
    assert (failed.returncode, failed.stdout) == (1, "1\n") and "ValueError: 2" in failed.stderr
    assert python("-c", "import sys; sys.exit(3)").returncode == 3
