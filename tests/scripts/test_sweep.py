"""Claims about sweeps: W&B's files, the search, what survives a kill, the Pareto front."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

from compress.errors import BadInput
from compress.scripts import sweep as sweep_script
from compress.scripts.lib.config import compose
from compress.scripts.lib.sweep_definition import KEYS, Sweep, list_sweeps, read_sweep
from compress.scripts.lib.sweep_folder import prepare_trial
from compress.scripts.lib.sweep_front import pareto, write_front
from compress.scripts.lib.sweep_study import finished_trials, open_study, suggest, take_up
from compress.scripts.lib.sweep_trials import run_trials, trial_words

RECIPES = Path(__file__).parents[2] / "recipes" / "sweep"
FILES = sorted(RECIPES.rglob("*.yaml"))

# stands in for train.py where only the search matters: loss and bytes follow from the settings
PROGRAM = """
import json, pathlib, sys, time
said = dict(word.split("=", 1) for word in sys.argv[1:])
place = pathlib.Path(said["run_dir"]); place.mkdir(parents=True, exist_ok=True)
if said["scheme"] == "bad":
    print("UnsupportedScheme: bad fits no layer:\\n  model.layers.0\\nUse another."); sys.exit(2)
density, begun = float(said["density"]), place / "checkpoints" / "last.ckpt"
steps = range(5, 9) if said.get("ckpt") == "last" else range(1, 9)
for step in steps:
    line = {"step": step, "phase": "train", "val/loss": 4 - density - step / 10}
    with (place / "metrics.jsonl").open("a") as stream: stream.write(json.dumps(line) + "\\n")
    begun.parent.mkdir(exist_ok=True); begun.write_text("x")
    time.sleep(float(said.get("pace", 0.01)))
report = {"quality": {"compressed": 3.2 - density}, "size": {"compressed_bytes": 1e6 * density}}
(place / "report.json").write_text(json.dumps(report))
"""


def definition(folder: Path, **changes) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    raw = {
        "program": str(folder / "program.py"), "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {"scheme": {"values": ["W8A8", "W4A16"]},
                       "density": {"values": [0.25, 0.5, 1.0]}},
    }  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**raw, **changes}))
    return path


def searched(folder: Path, *, trials=None, parallel=2, fixed=None, **changes):
    sweep = read_sweep(str(definition(folder, **changes)))
    fixed = fixed or {}
    study = open_study(sweep, storage=str(folder / "study.log"), seed=0, fixed=fixed)
    take_up(study)
    said: list[str] = []
    run_trials(
        study, sweep, folder=folder, trials=trials, parallel=parallel, fixed=fixed, say=said.append
    )
    return study, sweep, said


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("compress.scripts.lib.sweep_trials.POLL_SECONDS", 0.02)


@pytest.fixture
def main(monkeypatch):
    monkeypatch.setattr(sweep_script, "check_parameters", lambda *_: None)
    return lambda *words: sweep_script.main(list(words))


def test_there_are_sweeps_and_each_opens_with_its_purpose_and_commands():
    assert len(FILES) >= 4 and all(list_sweeps().values())
    for path in FILES:
        text = path.read_text()
        assert f"python scripts/sweep.py sweep={path.stem}" in text
        assert f"wandb sweep recipes/sweep/{path.stem}.yaml" in text and "2 CPU cores" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_is_a_weights_and_biases_definition(path):
    raw = yaml.safe_load(path.read_text())
    assert set(raw) <= set(KEYS) and raw["program"] == "scripts/train.py"
    assert raw["method"] in ("grid", "random", "bayes") and raw["metric"]["name"] == "val/loss"
    assert raw["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    for settings in raw["parameters"].values():
        assert set(settings) <= {"value", "values", "min", "max", "distribution", "q"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_parameter_of_every_sweep_composes(path):
    sweep = read_sweep(path.stem)
    first = {name: p.extremes[0] for name, p in sweep.parameters.items()}
    for name, parameter in sweep.parameters.items():
        for value in parameter.extremes:
            config = compose(trial_words(sweep, {**first, name: value}, {}))
            node = config
            for part in name.split("."):
                node = node[part]
            assert node == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_agent_of_wandb_would_say_the_same_words(path):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = read_sweep(path.stem)
    values = {name: p.extremes[0] for name, p in sweep.parameters.items()}
    args = {name: {"value": v} for name, v in {**sweep.fixed, **values}.items()}
    theirs = utils.create_sweep_command_args({"args": args})["args_no_hyphens"]
    assert theirs == trial_words(sweep, values, {})


def test_the_front_holds_what_no_other_point_beats():
    points = [{"x": 1, "y": 3}, {"x": 2, "y": 2}, {"x": 3, "y": 3}, {"x": 1, "y": 3}, {"x": None}]
    assert pareto(points, ["x", "y"]) == [0, 1, 3]
    assert pareto([], ["x"]) == []


def test_a_grid_runs_each_combination_once_and_ends(tmp_path):
    study, sweep, _ = searched(tmp_path)
    tried = [(t.params["scheme"], t.params["density"]) for t in finished_trials(study)]
    assert sorted(tried) == sorted(itertools.product(["W8A8", "W4A16"], [0.25, 0.5, 1.0]))
    found = write_front(study, sweep, tmp_path)
    assert json.loads((tmp_path / "pareto.json").read_text()) == found
    # loss falls with density while bytes grow: every density is on the front, and both schemes tie
    assert len(found["front"]) == 6 and found["front_over"] == ["quality", "bytes"]
    point = found["points"][0]
    assert point["command"].startswith("python ") and "density=" in point["command"]
    assert (
        "<svg" in (tmp_path / "pareto.svg").read_text()
        and "var(" not in (tmp_path / "pareto.svg").read_text()
    )
    assert point["command"] in (tmp_path / "sweep.html").read_text().replace("&#34;", '"')


def test_a_trial_that_cannot_run_is_told_and_the_others_go_on(tmp_path):
    parameters = {"scheme": {"values": ["bad", "W8A8"]}, "density": {"value": 0.5}}
    study, sweep, said = searched(tmp_path, parameters=parameters)
    found = write_front(study, sweep, tmp_path)
    assert sorted(p["state"] for p in found["points"]) == ["complete", "fail"]
    failed = next(p for p in found["points"] if p["state"] == "fail")
    assert failed["error"] == "UnsupportedScheme: bad fits no layer:" and not failed["on_front"]
    assert any("FAILED (status 2)" in line for line in said)


def test_a_bad_trial_is_stopped_before_its_end(tmp_path):
    study, _, said = searched(
        tmp_path, parallel=1, fixed={"pace": "0.1"},
        parameters={"scheme": {"value": "W8A8"}, "density": {"values": [1.0, 0.9, 0.1, 0.05]}},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
    )  # fmt: skip
    states = {t.params["density"]: t.state.name for t in finished_trials(study)}
    assert "PRUNED" in states.values() and "COMPLETE" in states.values()
    assert any("is stopped early" in line for line in said)


def test_a_search_goes_on_where_it_was_killed(tmp_path):
    sweep = read_sweep(str(definition(tmp_path)))
    storage = str(tmp_path / "study.log")
    study = open_study(sweep, storage=storage, seed=0, fixed={})
    trial = study.ask()  # begun, checkpointed, and then the machine went away
    values = suggest(trial, dict(sweep.parameters))
    trial.set_user_attr("folder", "trial_000")
    (tmp_path / "trial_000" / "checkpoints").mkdir(parents=True)
    (tmp_path / "trial_000" / "checkpoints" / "last.ckpt").write_text("x")
    study, _, said = searched(tmp_path)
    assert said[0].startswith("trial_000 goes on")  # before anything new
    done = finished_trials(study)
    assert len(done) == 6 and len({tuple(sorted(t.params.items())) for t in done}) == 6
    assert any(line.startswith("trial_000 goes on") for line in said)
    steps = [json.loads(x)["step"] for x in (tmp_path / "trial_000/metrics.jsonl").open()]
    assert steps == [5, 6, 7, 8]  # from its checkpoint on
    assert next(t for t in done if t.user_attrs["folder"] == "trial_000").params == values


def test_a_killed_sweep_takes_its_trials_along_and_the_same_command_goes_on(tmp_path):
    words = [f"sweep={definition(tmp_path)}", f"run_dir={tmp_path / 'out'}", "pace=0.2"]
    code = (
        "import sys; from compress.scripts import sweep; sweep.check_parameters = lambda *_: None;"
    )
    command = [sys.executable, "-c", f"{code} sys.exit(sweep.main({words!r}))"]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    begun = tmp_path / "out" / "trial_000" / "checkpoints" / "last.ckpt"
    while not begun.exists():
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    steps = (tmp_path / "out" / "trial_000" / "metrics.jsonl").read_text()
    time.sleep(1.0)
    assert (tmp_path / "out" / "trial_000" / "metrics.jsonl").read_text() == steps
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Goes on: 0 trials have ended, 1 were stopped on their way" in done.stdout
    assert "trial_000 goes on" in done.stdout
    points = json.loads((tmp_path / "out" / "pareto.json").read_text())["points"]
    assert [p["state"] for p in points] == ["complete"] * 6


def test_the_same_sweep_started_twice_is_refused_and_the_first_one_ends_well(tmp_path, capsys):
    words = [f"sweep={definition(tmp_path)}", f"run_dir={tmp_path / 'out'}", "pace=0.2", "trials=1"]
    code = (
        "import sys; from compress.scripts import sweep; sweep.check_parameters = lambda *_: None;"
    )
    command = [sys.executable, "-c", f"{code} sys.exit(sweep.main({words!r}))"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "trial_000" / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and "is in use by another run or sweep" in second.stderr
    first.communicate()
    assert first.returncode == 0
    steps = [json.loads(x)["step"] for x in (tmp_path / "out/trial_000/metrics.jsonl").open()]
    assert steps == list(range(1, 9))


def test_a_trial_that_a_live_run_holds_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.scripts.lib.sweep_folder.LOCK_SECONDS", 0.05)
    sweep = read_sweep(str(definition(tmp_path)))
    study = open_study(sweep, storage=str(tmp_path / "study.log"), seed=0, fixed={})
    trial = study.ask()
    suggest(trial, dict(sweep.parameters))
    trial.set_user_attr("folder", "trial_000")
    place = tmp_path / "trial_000"
    place.mkdir()
    with FileLock(place / ".lock"):
        with pytest.raises(BadInput, match="trial_000 is in use by a live run"):
            searched(tmp_path)
        assert place.exists()
    study, _, said = searched(tmp_path)
    assert said[0].startswith("trial_000 begins") and len(finished_trials(study)) == 6


@pytest.mark.parametrize("words, changes", [
    (["pace=0.02"], {}),  # every trial trains otherwise
    ([], {"parameters": {"scheme": {"value": "W8A8"}, "density": {"values": [0.3, 0.4]}}}),
    (["seed=1"], {}),  # the very same definition, searched anew
])  # fmt: skip
def test_a_new_search_takes_no_trial_of_an_old_one(tmp_path, capsys, main, words, changes):
    out = tmp_path / "out"
    assert main(f"sweep={definition(tmp_path)}", f"run_dir={out}", "trials=1") == 0
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = [f"sweep={definition(tmp_path, **changes)}", f"run_dir={out}", "trials=1", *words]
    assert main(*again, f"storage={out / 'new.log'}") == 2
    told = capsys.readouterr().err
    assert "holds the trials of another search" in told and "give another run_dir=" in told
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    if words != ["seed=1"]:
        assert main(*again) == 2 and "storage= or" not in capsys.readouterr().err
    again[1] = f"run_dir={tmp_path / 'other'}"
    assert main(*again) == 0


def test_trials_of_no_known_search_are_not_taken_over(tmp_path, capsys, main):
    place = tmp_path / "out" / "trial_000" / "checkpoints"
    place.mkdir(parents=True)
    (place / "last.ckpt").write_text("x")
    assert main(f"sweep={definition(tmp_path)}", f"run_dir={tmp_path / 'out'}") == 2
    assert "holds 1 trials that this search did not begin" in capsys.readouterr().err
    assert (place / "last.ckpt").exists()


def test_a_search_does_not_leave_its_trials_behind(tmp_path, capsys, main):
    words = [f"sweep={definition(tmp_path)}", f"storage=sqlite:///{tmp_path / 'study.db'}"]
    assert main(*words, f"run_dir={tmp_path / 'out'}", "trials=1") == 0
    assert main(*words, f"run_dir={tmp_path / 'other'}", "trials=2") == 2
    assert f"run_dir={tmp_path / 'out'}" in capsys.readouterr().err
    (tmp_path / "out").rename(tmp_path / "moved")
    assert main(*words, f"run_dir={tmp_path / 'moved'}", "trials=2") == 0


def test_a_trial_goes_on_only_by_the_words_that_began_it(tmp_path):
    place = tmp_path / "trial_000"
    settings = {"definition": "one", "known": True}
    assert not prepare_trial(place, words=["seed=1", "a=b"], **settings)
    (place / "checkpoints").mkdir()
    (place / "checkpoints" / "last.ckpt").write_text("x")
    assert prepare_trial(place, words=["a=b", "seed=1"], **settings)
    with pytest.raises(BadInput, match=r"other words:\n  seed=1 then\n  seed=2 now\nGive another"):
        prepare_trial(place, words=["seed=2", "a=b"], **settings)
    with pytest.raises(BadInput, match="another search"):
        prepare_trial(place, words=["seed=1", "a=b"], definition="two", known=True)
    (place / "trial.json").unlink()
    with pytest.raises(BadInput, match=r"no trial\.json"):
        prepare_trial(place, words=["seed=1", "a=b"], definition="one", known=False)


def test_a_trials_note_holds_no_secret_and_knows_its_words_again(tmp_path):
    words, place = ["logger.api_key=HIDDEN", "seed=1"], tmp_path / "trial_000"
    for _ in range(2):
        prepare_trial(place, words=words, definition="one", known=False)
    assert "HIDDEN" not in (place / "trial.json").read_text()


def test_a_word_that_names_what_is_varied_is_refused(tmp_path, capsys, main):
    parameters = {"callbacks.qat.scheme": {"values": ["W8A8", "W4A16"]},
                  "student.layers": {"values": [2, 4]}, "pace": {"value": 1}}  # fmt: skip
    sweep = f"sweep={definition(tmp_path, parameters=parameters)}"
    hiding = ["++callbacks.qat.scheme=W8A8", "student={layers: 2}"]
    assert main(sweep, *hiding, "pace=2", f"run_dir={tmp_path / 'out'}") == 2
    told = capsys.readouterr().err
    assert "2 words name what the sweep varies" in told and "pace=2" not in told
    assert all(word in told for word in hiding) and not (tmp_path / "out").exists()
    fixed = {"student": "tiny", "pace": "2", "callbacks.qat.observer": "x"}
    sweep_script.refuse_overrides(read_sweep(sweep.partition("=")[2]), fixed)


def test_a_sweep_ends_at_its_run_cap(tmp_path, capsys, main):
    words = [f"sweep={definition(tmp_path, run_cap=2)}", f"run_dir={tmp_path / 'out'}"]
    assert main(*words) == 0
    assert main(*words, "trials=3") == 0
    assert "2 trials instead of 3: the sweep's run_cap" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "pareto.json").read_text())["points"]) == 2


def test_a_search_that_is_over_runs_nothing_more(tmp_path):
    searched(tmp_path)
    _, _, said = searched(tmp_path)
    assert said == []


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_resumed_search_draws_on_instead_of_drawing_again(tmp_path, method):
    parameters = {"scheme": {"value": "W8A8"}, "density": {"min": 0.1, "max": 1.0}}
    settings = {"method": method, "parameters": parameters, "parallel": 1}
    searched(tmp_path, trials=2, **settings)
    study, _, _ = searched(tmp_path, trials=4, **settings)
    drawn = [t.params["density"] for t in finished_trials(study)]
    assert len(drawn) == 4 and len(set(drawn)) == 4


def test_another_sweep_in_the_same_storage_is_refused(tmp_path):
    searched(tmp_path)
    with pytest.raises(BadInput, match="other parameters"):
        searched(tmp_path, method="random")


def test_a_database_keeps_the_search_too(tmp_path):
    sweep = read_sweep(str(definition(tmp_path)))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(sweep, storage=url, seed=0, fixed={}).ask()
    assert take_up(open_study(sweep, storage=url, seed=0, fixed={})) == 1


@pytest.mark.parametrize("changes, said", [
    ({"method": "guess"}, "guess is unknown"),
    ({"metric": "loss"}, "a name is missing"),
    ({"parameters": {"density": {"min": 0.1, "max": 1.0}}}, "grid cannot walk"),
    ({"parameters": {"density": {"min": 2, "max": 1}}}, "are no range"),
    ({"parameters": {"density": 3}}, "parameters.density"),
    ({"early_terminate": {"type": "envelope"}}, "hyperband"),
    ({"run_cap": 0}, "run_cap: 0 is no number of trials"),
    ({"run_cap": "few"}, "run_cap: few"),
    ({"comand": []}, "Did you mean 'command'?"),
    ({"command": ["python", "x"]}, "key=value"),
    ({"parameters": {"teacher.served.api_key_env": {"value": "X"}}}, "on the command line alone"),
    ({"parameters": {"allow_modules": {"values": ["[os]"]}}}, "on the command line alone"),
])  # fmt: skip
def test_a_definition_that_cannot_run_says_why(tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        read_sweep(str(definition(tmp_path, **changes)))


@pytest.mark.parametrize("words, said", [
    (["sweep=bits_vs_densty"], "Did you mean 'bits_vs_density'?"),
    (["trials=3"], "sweep=NAME is missing"),
    (["sweep=schemes", "trials=few"], "whole number"),
    (["sweep=schemes", "trainer.max_stps=3"], "Did you mean 'max_steps'?"),
    (["schemes"], "no key=value"),
])  # fmt: skip
def test_bad_input_is_told_before_the_first_trial(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sweep_script.main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("trial_*"))


def test_the_script_lists_sweeps_runs_one_and_prints_its_front(tmp_path, capsys, monkeypatch):
    assert sweep_script.main([]) == 0 and "bits_vs_density" in capsys.readouterr().out
    monkeypatch.setattr(sweep_script, "check_parameters", lambda *_: None)
    words = [f"sweep={definition(tmp_path)}", f"run_dir={tmp_path / 'out'}", "trials=3"]
    assert sweep_script.main(words) == 0
    printed = capsys.readouterr().out
    assert "A star marks the Pareto front" in printed and "pareto.json" in printed
    assert f"python {tmp_path / 'program.py'} " in printed


def test_a_sweep_outside_a_checkout_runs_the_installed_program(tmp_path, monkeypatch):
    from compress.scripts.lib.sweep_trials import _program

    monkeypatch.chdir(tmp_path)
    sweep = SimpleNamespace(program="scripts/train.py")
    assert _program(sweep) == [sys.executable, "-m", "compress.scripts.train"]
    with pytest.raises(BadInput, match="there is no"):
        _program(SimpleNamespace(program="scripts/nothing.py"))


def test_a_plain_sweep_needs_no_more_than_its_fields():
    sweep = Sweep(
        name="x", purpose="", program="p", method="grid", metric="m", goal="minimize", parameters={}
    )
    assert sweep.grid_size == 1
