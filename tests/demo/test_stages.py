"""A set-up that is interrupted anywhere goes on where it stopped, and says in one sentence why it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lora_atelier.demo.stages import SetupError, Stages, advice, milestone


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def stages(tmp_path: Path, said: list[str]) -> Stages:
    return Stages(tmp_path, said.append)


def test_a_stage_runs_once_until_its_inputs_change(stages: Stages, said: list[str]) -> None:
    runs: list[int] = []
    assert stages.run("torch", "torch", ["2.13.0"], lambda: runs.append(1))
    assert not stages.run("torch", "torch", ["2.13.0"], lambda: runs.append(2))
    assert stages.run("torch", "torch", ["2.14.0"], lambda: runs.append(3))
    assert runs == [1, 3]
    assert said[0] == "torch ..."
    assert "done in" in said[1]


@pytest.mark.parametrize("failure", [SetupError("no network"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_stage_runs_again_and_the_ones_before_it_do_not(
    failure: BaseException, tmp_path: Path, said: list[str]
) -> None:
    done: list[str] = []

    def set_up(stages: Stages, interrupted: bool) -> None:
        stages.run("venv", "venv", 1, lambda: done.append("venv"))

        def work() -> None:
            done.append("torch")
            if interrupted:
                raise failure

        stages.run("torch", "torch", 1, work)
        stages.run("host", "host", 1, lambda: done.append("host"))

    with pytest.raises(type(failure)):
        set_up(Stages(tmp_path, said.append), interrupted=True)
    set_up(Stages(tmp_path, said.append), interrupted=False)
    assert done == ["venv", "torch", "torch", "host"]


def test_an_interrupted_change_does_not_leave_the_old_stamp(stages: Stages) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    stages.run("torch", "torch", 1, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        stages.run("torch", "torch", 2, interrupted)
    assert not stages.is_done("torch", 1)


def test_a_stage_whose_result_was_deleted_runs_again(stages: Stages, tmp_path: Path) -> None:
    result = tmp_path / "result"
    stages.run("a", "a", 1, result.touch, [result])
    assert not stages.run("a", "a", 1, result.touch, [result])
    result.unlink()
    assert stages.run("a", "a", 1, result.touch, [result])


def test_a_failed_command_leaves_its_words_in_the_log_and_says_what_to_do(stages: Stages, tmp_path: Path) -> None:
    code = "import sys; print('ERROR: Temporary failure in name resolution'); sys.exit(1)"
    with pytest.raises(SetupError, match="check the network"):
        stages.command([sys.executable, "-c", code])
    assert "Temporary failure" in stages.log.read_text()


def test_a_command_that_does_not_exist_is_named(stages: Stages) -> None:
    with pytest.raises(SetupError, match="no-such-program cannot be started"):
        stages.command(["no-such-program"])


def test_milestones_of_a_command_reach_the_person(stages: Stages, said: list[str]) -> None:
    line = "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)"
    stages.command([sys.executable, "-c", f"print({line!r}); print('Collecting noise')"])
    assert said == ["  torch, 526 MB"]


@pytest.mark.parametrize(
    ("line", "news"),
    [
        ("Downloading numpy-2.2.6-cp310.whl (16.8 MB)", "numpy, 16 MB"),
        ("Downloading filelock-4.1.0-py3-none-any.whl (133 kB)", None),
        ("Downloading blake3-1.0.10.whl (1.2 MB)", None),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("Requirement already satisfied: torch", None),
    ],
)
def test_only_what_takes_long_is_a_milestone(line: str, news: str | None) -> None:
    assert milestone(line) == news


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)'\nNo matching",
            "check the network",
        ),
        ("npm error code ENOTFOUND", "check the network"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "not the one that is pinned"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "-venv"),
        ("Error: Command '['/v/bin/python3', '-m', 'ensurepip', '--upgrade']' returned non-zero exit status 1.", "-venv"),
        ("/usr/bin/python3: No module named venv", "-venv"),
        ("ERROR: No matching distribution found for torch==2.13.0", "torch==2.13.0 was not found for Python"),
        ("something new", "see the end of"),
    ],
)
def test_advice_fits_the_failure(output: str, words: str, tmp_path: Path) -> None:
    said = advice(output, tmp_path / "setup.log")
    assert words in said
    assert "\n" not in said


def test_the_log_keeps_every_command(stages: Stages) -> None:
    stages.command([sys.executable, "-c", "print('one')"])
    stages.command([sys.executable, "-c", "print('two')"])
    log = stages.log.read_text()
    assert log.index("one") < log.index("two")
    assert log.count("$ ") == 2
