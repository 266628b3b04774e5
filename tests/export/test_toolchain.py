"""Tests of what is hidden while a toolchain works."""

import logging
import sys
import warnings

import pytest

from dermedge_export.toolchain import quiet, silence


def test_warnings_and_log_messages_are_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("nncf")
    before = logger.level
    with quiet():
        warnings.warn("not shown", stacklevel=1)
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    assert logger.level == before
    with pytest.warns(UserWarning, match="shown"):
        warnings.warn("shown", stacklevel=1)


def test_quiet_leaves_the_streams_of_the_process_alone(capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with quiet():
        assert (sys.stdout, sys.stderr) == streams
        print("from another thread")
    assert capsys.readouterr().out == "from another thread\n"


def test_silence_hides_both_streams_and_gives_them_back(capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="from inside"), silence():
        print("lost")
        print("lost", file=sys.stderr)
        raise ValueError("from inside")
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr() == ("", "")
