"""What ``studio.py`` decides before it calls pip; the set-up itself is what runs these tests on a fresh machine."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import lora_atelier.studio as studio
import pytest
from lora_atelier.demo import checks, setting_up
from lora_atelier.demo.command_line import arguments_of
from lora_atelier.demo.hosts import HostError
from lora_atelier.demo.stages import SetupError
from packaging.requirements import Requirement


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with a workflow and nothing else."""
    (tmp_path / "clone" / "workflows").mkdir(parents=True)
    (tmp_path / "clone" / "workflows" / "train_then_test.json").write_text('{"version": 1}')
    return tmp_path / "clone"


def test_it_starts_with_the_standard_library_alone(root: Path) -> None:
    line = [sys.executable, "-S", "-E", str(root / "studio.py"), "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "demo,train,serve,test,check,bench,setup,workflows" in shown


def test_a_python_that_is_too_old_can_still_read_why(root: Path) -> None:
    source = (root / "studio.py").read_text(encoding="utf-8")
    check = next(node for node in ast.parse(source, feature_version=(3, 7)).body if isinstance(node, ast.If))
    first_import_of_ours = source.index("from lora_atelier.demo")
    assert ast.unparse(check.test) == "sys.version_info < (3, 10)"
    assert source.index("sys.version_info < (3, 10)") < first_import_of_ours


def test_test_and_bench_hand_their_arguments_on() -> None:
    known, rest = arguments_of(["test", "tests/demo", "-k", "stages", "-x", "--comfyui", "/c"], None)
    assert (known.command, known.comfyui, rest) == ("test", "/c", ["tests/demo", "-k", "stages", "-x"])
    known, rest = arguments_of(["bench", "step_time", "--json", "--steps", "3"], None)
    assert (known.name, rest) == ("step_time", ["--json", "--steps", "3"])


def test_gpu_is_an_option_of_test_alone(capsys: pytest.CaptureFixture[str]) -> None:
    known, rest = arguments_of(["test", "--gpu", "tests/nodes", "-x"], None)
    assert (known.gpu, rest) == (True, ["tests/nodes", "-x"])
    with pytest.raises(SystemExit):
        arguments_of(["serve", "--gpu"], None)
    assert "--gpu" in capsys.readouterr().err


class TestWhatTestRuns:
    """The commands of ``studio.py test``, none of which is really started."""

    Runs = list[tuple[list[str], dict[str, str]]]

    @pytest.fixture
    def made(self, clone: Path, monkeypatch: pytest.MonkeyPatch) -> setting_up.Studio:
        """On a machine without a GPU, where one can be pretended."""
        place = setting_up.Place(Path("python"), Path("comfyui"), Path("base"), cpu=None)
        monkeypatch.setattr(setting_up.Studio, "test_environment", lambda *_given, **_named: (place, {"HOME": "/h"}))
        monkeypatch.setattr(setting_up, "has_nvidia", lambda: False)
        monkeypatch.setattr(checks, "cannot_pretend", lambda *_given: "")
        monkeypatch.delenv("CI", raising=False)
        return setting_up.Studio(clone)

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> Runs:
        """Every pytest: its arguments and its variables. Those on a GPU, pretended or not, fail."""
        found: TestWhatTestRuns.Runs = []

        def run(line: list[str], env: dict[str, str], **_more: object) -> subprocess.CompletedProcess[str]:
            if line[:3] == ["python", "-m", "pytest"]:
                found.append((line[3:], env))
            else:
                assert tuple(line[2:]) in checks.CHECKS
            return subprocess.CompletedProcess(line, int("ATELIER_TEST_GPU" in env))

        monkeypatch.setattr(subprocess, "run", run)
        return found

    def test_the_whole_suite_goes_on_to_a_pretended_gpu(
        self, made: setting_up.Studio, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert checks.run_tests(made, None, []) == 1
        (usual, variables), (pretended, others) = runs
        assert others == {**variables, "ATELIER_TEST_GPU": "pretend"} and "ATELIER_TEST_GPU" not in variables
        assert usual[:1] == ["--numprocesses"] and usual[-1] == "--cov"
        assert pretended == [*checks.PRETENDED_TESTS, *usual[:-1]]
        assert capsys.readouterr().err.endswith("Failed: pytest on a pretended GPU\n")

    def test_a_part_of_it_does_not(self, made: setting_up.Studio, runs: Runs) -> None:
        assert checks.run_tests(made, None, ["tests/training", "-x"]) == 0
        assert runs == [(["tests/training", "-x"], {"HOME": "/h"})]

    def test_check_runs_what_comes_before_the_tests(
        self, made: setting_up.Studio, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert checks.run_checks(made, None) == 0
        checked = capsys.readouterr().err
        assert checks.run_tests(made, None, ["tests/training"]) == 0
        assert capsys.readouterr().err.startswith(checked.removesuffix("All passed.\n"))
        assert len(runs) == 1

        monkeypatch.setattr(
            subprocess, "run", lambda line, **_: subprocess.CompletedProcess(line, int(line[2:] == ["mypy", "benchmarks"]))
        )
        assert checks.run_checks(made, None) == 1
        assert capsys.readouterr().err.endswith("Failed: mypy benchmarks\n")

    def test_without_a_compiler_it_is_left_out_with_a_sentence_but_not_unnoticed_in_ci(
        self, made: setting_up.Studio, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(checks, "cannot_pretend", lambda *_given: "a C++ compiler is needed")
        assert checks.run_tests(made, None, []) == 0
        assert "The tests on a pretended GPU are left out: a C++ compiler is needed\n" in capsys.readouterr().err
        monkeypatch.setenv("CI", "true")
        assert checks.run_tests(made, None, []) == 1
        assert len(runs) == 2

    @pytest.mark.parametrize(("there", "kind"), [(True, "1"), (False, "pretend")])
    def test_on_a_gpu_that_is_there_or_on_a_pretended_one(
        self,
        made: setting_up.Studio,
        runs: Runs,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        there: bool,
        kind: str,
    ) -> None:
        monkeypatch.setattr(setting_up, "has_nvidia", lambda: there)
        assert checks.run_gpu_tests(made, None, []) == 1
        assert checks.run_gpu_tests(made, None, ["tests/nodes", "-x"]) == 1
        assert [variables["ATELIER_TEST_GPU"] for _, variables in runs] == [kind, kind]
        assert runs[0][0][: len(checks.GPU_TESTS)] == [*checks.GPU_TESTS] and runs[1][0] == ["tests/nodes", "-x"]
        assert ("There is no NVIDIA GPU here" in capsys.readouterr().err) == (not there)

    def test_where_none_can_be_pretended_it_says_so(
        self, made: setting_up.Studio, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "cannot_pretend", lambda *_given: "a C++ compiler is needed")
        with pytest.raises(SetupError, match=r"no NVIDIA GPU here, and none can be pretended: a C\+\+ compiler"):
            checks.run_gpu_tests(made, None, [])
        assert runs == []


def test_what_runs_on_a_pretended_gpu_is_there(root: Path) -> None:
    assert [name for name in (*checks.GPU_TESTS, *checks.PRETENDED_TESTS) if not (root / name.partition("::")[0]).exists()] == []


def test_whether_a_gpu_can_be_pretended_is_asked_of_its_own_program(
    root: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setting_up.Studio(clone)
    (clone / "tests" / "pretend_gpu").mkdir(parents=True)
    for name in ("__init__.py", "backend.cpp"):
        (clone / "tests" / "pretend_gpu" / name).write_bytes((root / "tests" / "pretend_gpu" / name).read_bytes())
    monkeypatch.setenv("CXX", "/bin/false")
    assert "C++ compiler" in checks.cannot_pretend(made, Path(sys.executable))


def test_the_other_commands_refuse_what_they_do_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments_of(["demo", "--jsno"], None)
    assert "--jsno" in capsys.readouterr().err


def test_an_unknown_benchmark_is_answered_with_the_known_ones(clone: Path) -> None:
    (clone / "benchmarks").mkdir()
    (clone / "benchmarks" / "step_time.py").touch()
    with pytest.raises(SetupError, match="no benchmark step; there are: step_time"):
        checks.run_bench(setting_up.Studio(clone), None, "step", [])


def test_the_demo_without_its_model_says_so(clone: Path, tmp_path: Path) -> None:
    assert setting_up.Studio(clone).build_checkpoint(Path(sys.executable)) is None


def test_an_environment_of_another_python_is_told(tmp_path: Path) -> None:
    assert not setting_up.made_by_another_python(tmp_path)
    config = tmp_path / "pyvenv.cfg"
    config.write_text(f"home = /usr/bin\nversion = {sys.version_info.major}.{sys.version_info.minor}.99\n")
    assert not setting_up.made_by_another_python(tmp_path)
    config.write_text("home = /usr/bin\nversion = 3.1.4\n")
    assert setting_up.made_by_another_python(tmp_path)


def test_a_new_environment_forgets_what_was_installed_in_the_old_one(clone: Path) -> None:
    """The stages that fill an environment carry its birth mark, so a deleted one is filled again."""
    made = setting_up.Studio(clone)
    made.make_venv(made.venv, "venv")
    first = made.birth()
    made.make_venv(made.venv, "venv")
    assert made.birth() == first
    (made.venv / setting_up.BIRTH).unlink()
    (made.venv / "half-of-pip").touch()
    made.make_venv(made.venv, "venv")
    assert made.birth() != first
    assert made.python.is_file()
    assert not (made.venv / "half-of-pip").exists()


def test_requirement_files_are_read_without_comments(root: Path) -> None:
    lines = setting_up.Studio(root).requirement_lines("requirements.txt")
    assert "torch>=2.4" in lines
    assert not [line for line in lines if "#" in line]


def test_the_pack_s_requirements_and_its_metadata_agree(root: Path) -> None:
    metadata = (root / "pyproject.toml").read_text(encoding="utf-8")
    listed = metadata.partition("dependencies = [")[2].partition("]")[0]
    assert setting_up.Studio(root).requirement_lines("requirements.txt") == [
        line.strip().strip('",') for line in listed.split("\n") if line.strip()
    ]


def test_every_tool_of_the_developers_is_pinned(root: Path) -> None:
    """Once for every Python, so that nobody's checks differ from another's; what the pack asks of a person stays a range."""
    pins = [Requirement(line) for line in setting_up.Studio(root).requirement_lines("requirements-dev.txt")]
    assert [str(pin) for pin in pins if not re.fullmatch(r"==[0-9.]+", str(pin.specifier))] == []
    for python in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        names = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        assert sorted(names) == sorted({pin.name for pin in pins}), python
    ranges = [Requirement(line) for line in setting_up.Studio(root).requirement_lines("requirements.txt")]
    assert [str(found) for found in ranges if "==" in str(found)] == []


def test_the_tools_are_within_what_the_pack_s_extras_allow(root: Path) -> None:
    metadata = (root / "pyproject.toml").read_text(encoding="utf-8")
    listed = metadata.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    extras = {found.name: found.specifier for found in map(Requirement, re.findall(r'"([^"]+)"', listed))}
    pins = [Requirement(line) for line in setting_up.Studio(root).requirement_lines("requirements-dev.txt")]
    shared = [pin for pin in pins if pin.name in extras]
    tried_where_it_is = {"bitsandbytes", "cvttf-notosanscjk-regular"}  # one needs a GPU, the other is 10 MB of letters
    assert {pin.name for pin in shared} == extras.keys() - tried_where_it_is
    assert [str(pin) for pin in shared if str(pin.specifier).removeprefix("==") not in extras[pin.name]] == []


class TestOfferedWorkflow:
    """The workflow in the canvas's list follows the repository until the person changes it."""

    def offered(self, clone: Path) -> Path:
        return clone / ".studio" / "home" / "user" / "default" / "workflows" / "train_then_test.json"

    def test_it_is_put_there_and_follows_the_repository(self, clone: Path) -> None:
        made = setting_up.Studio(clone)
        made.offer_workflow()
        assert self.offered(clone).read_text() == '{"version": 1}'
        (clone / "workflows" / "train_then_test.json").write_text('{"version": 2}')
        made.offer_workflow()
        assert self.offered(clone).read_text() == '{"version": 2}'

    def test_the_person_s_changes_are_kept(self, clone: Path) -> None:
        made = setting_up.Studio(clone)
        made.offer_workflow()
        self.offered(clone).write_text('{"mine": true}')
        made.offer_workflow()
        assert self.offered(clone).read_text() == '{"mine": true}'

    def test_a_file_that_was_there_before_is_kept(self, clone: Path) -> None:
        self.offered(clone).parent.mkdir(parents=True)
        self.offered(clone).write_text('{"mine": true}')
        setting_up.Studio(clone).offer_workflow()
        assert self.offered(clone).read_text() == '{"mine": true}'


class TestPersonsComfyUI:
    """Only things that are not there are added to a person's ComfyUI, and only after its Python was found to run it."""

    @pytest.fixture
    def theirs(self, tmp_path: Path) -> Path:
        folder = tmp_path / "ComfyUI"
        (folder / "comfy").mkdir(parents=True)
        (folder / "custom_nodes").mkdir()
        (folder / "main.py").touch()
        (folder / "comfy" / "cli_args.py").touch()
        return folder

    def test_a_folder_without_comfyui_is_refused(self, clone: Path) -> None:
        with pytest.raises(HostError, match="there is no ComfyUI in"):
            setting_up.Studio(clone).place(str(clone))

    def test_a_python_that_cannot_run_it_is_named_and_nothing_is_added(self, clone: Path, theirs: Path) -> None:
        python = theirs / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        with pytest.raises(SetupError, match=r"venv.bin.python cannot run the ComfyUI"):
            setting_up.Studio(clone).place(str(theirs))
        assert list((theirs / "custom_nodes").iterdir()) == []

    def test_another_copy_of_the_pack_is_not_replaced(self, clone: Path, theirs: Path) -> None:
        copy = theirs / "custom_nodes" / "lora-atelier"
        copy.mkdir()
        (copy / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="lora-atelier is in the way"):
            setting_up.Studio(clone).place(str(theirs))
        assert (copy / "mine.txt").read_text() == "mine"

    def test_a_link_to_another_copy_is_not_replaced(self, clone: Path, theirs: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        link = theirs / "custom_nodes" / "lora-atelier"
        link.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        with pytest.raises(FileExistsError, match="lora-atelier is in the way"):
            setting_up.Studio(clone).place(str(theirs))
        assert link.resolve() == (tmp_path / "elsewhere").resolve()


def test_workflows_get_the_widgets_that_the_nodes_have_now(clone: Path) -> None:
    (clone / "js").mkdir()
    (clone / "js" / "presets.json").write_text('{"fast": {"steps": 4}}')
    path = clone / "workflows" / "train_then_test.json"
    path.write_text(json.dumps({"nodes": [{"type": "Recipe", "widgets_values": ["fast", 20]}], "links": []}))
    specs = {"preset": [["fast"], {}], "steps": ["INT", {"default": 20}], "new": ["BOOLEAN", {"default": True}]}
    info = {"Recipe": {"input": {"required": specs}}}
    assert studio.store_workflows(clone, info) == [path.name]
    assert json.loads(path.read_text())["nodes"][0]["widgets_values"] == ["fast", 4, True]
    assert studio.store_workflows(clone, info) == []


def test_main_turns_a_problem_into_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert studio.main(["setup", "--comfyui", str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("studio.py stopped: there is no ComfyUI in")


def test_demo_model_paths_are_yaml(tmp_path: Path) -> None:
    import yaml

    models = {"lora_atelier_demo": {"base_path": r"C:\Users\ä b\home\models", "checkpoints": "checkpoints"}}
    assert yaml.safe_load(json.dumps(models)) == models


def test_what_fails_before_comfyui_is_started_ends_with_a_line_of_json_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_self: setting_up.Studio, _comfyui: str | None) -> None:
        raise SetupError("pip is missing")

    monkeypatch.setattr(setting_up.Studio, "place", stop)
    assert studio.main(["train", str(tmp_path / "some.json"), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == {"success": False, "error": "pip is missing", "loras": [], "grids": []}
    assert "pip is missing" in said.err
    assert studio.main(["train", str(tmp_path / "some.json")]) == 1 and not capsys.readouterr().out
