"""`scripts/export.py`: a trained run becomes any target's folder, equal to what was trained."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import onnx
import pytest
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from compress.errors import BadInput
from compress.export.tensorrt_calibration import read_cache
from compress.export.write import WRITERS
from compress.scripts.evaluate import main as evaluate
from compress.scripts.export import HELP, TARGETS, main
from compress.scripts.lib.export_run import deploy_settings
from compress.scripts.lib.settings import read_settings
from tests.scripts.small_run import small_run
from tests.tiny import tiny_llama

STATIC = "callbacks.qat.activations=static"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with static INT8, exported for TensorRT by the train script itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("runs") / "static"
        status, report = small_run(folder, "recipe=qat", STATIC, "target=tensorrt")
        assert status == 0
        yield folder, report


def test_the_train_script_exports_for_tensorrt_itself(trained):
    folder, report = trained
    (entry,) = report["exports"]
    assert (entry["target"], entry["scheme"], entry["verified"]) == ("tensorrt", "W8A8", True)
    onnx.checker.check_model(str(folder / entry["path"] / "model.onnx"), full_check=True)
    assert (folder / entry["path"] / "trtexec.sh").is_file()


def test_dynamic_inputs_are_refused_before_training(trained, tmp_path, capsys):
    status, report = small_run(tmp_path / "dynamic", "recipe=qat", "target=tensorrt")
    assert status == 2
    assert "activations=static" in capsys.readouterr().err
    assert report["status"] == "failed"
    assert not (tmp_path / "dynamic" / "checkpoints" / "last.ckpt").exists()


def test_a_bundle_for_vllm_has_the_trained_codes_a_measured_card_and_manifests(trained, capsys):
    folder, _ = trained
    words = [f"run_dir={folder}", "target=vllm", "bundle=true", "gpu=H100", "licence=mit",
             "name=Tiny One"]  # fmt: skip
    assert main(words) == 0
    assert "codes, scales and zeros equal" in capsys.readouterr().out
    place = folder / "export" / "vllm"
    card = (place / "README.md").read_text()
    assert "license: mit" in card
    assert "this export (95% interval" in card
    assert "[" in card.partition("this export")[2].partition("\n")[0]
    spec = yaml.safe_load((place / "deploy/kubernetes/deployment.yaml").read_text())
    assert spec["metadata"]["name"] == "tiny-one"
    resource = spec["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert next(iter(resource)).startswith("nvidia.com/mig-")
    same_codes(place, folder / "export" / "tensorrt")


def same_codes(vllm, tensorrt):
    """Two exports of one run hold one set of codes."""
    tensors = load_file(vllm / "model.safetensors")
    graph = onnx.load(tensorrt / "model.onnx").graph
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    name = "model.layers.0.mlp.down_proj"
    assert (found[f"{name}/weight"] == tensors[f"{name}.weight"].numpy().T).all()
    assert (found[f"{name}/input_scale"] == tensors[f"{name}.input_scale"].numpy()).all()


def test_the_report_lists_every_export_once(trained):
    folder, _ = trained
    for _ in range(2):
        assert main([f"run_dir={folder}", "target=transformers"]) == 0
    paths = [e["path"] for e in json.loads((folder / "report.json").read_text())["exports"]]
    assert paths.count("export/transformers") == 1
    assert "export/tensorrt" in paths


def test_the_card_of_a_named_checkpoint_claims_none_of_the_runs_losses(trained, tmp_path):
    folder, _ = trained
    named = shutil.copy(folder / "checkpoints" / "last.ckpt", tmp_path / "named.ckpt")
    for words, told in (((), True), ((f"checkpoint={named}",), False)):
        place = tmp_path / str(told)
        assert main([f"run_dir={folder}", "target=transformers", f"path={place}", *words]) == 0
        assert ("loss (nats/token)" in (place / "README.md").read_text()) is told


def test_the_card_holds_no_secret_of_the_command(trained, tmp_path):
    words = [f"run_dir={trained[0]}", "target=transformers", "claim=sk-HIDDENHIDDEN"]
    assert main([*words, f"path={tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "HIDDEN" not in card and "claim=" in card


def test_calibration_is_written_beside_and_the_engine_is_as_large_as_asked(trained, tmp_path):
    folder, _ = trained
    words = [f"run_dir={folder}", "target=tensorrt", "calibration=true", f"path={tmp_path / 'out'}"]
    assert main([*words, "batch=3", "length=9"]) == 0
    assert "--maxShapes=input_ids:3x9," in (tmp_path / "out" / "trtexec.sh").read_text()
    assert read_cache((tmp_path / "out" / "implicit" / "calibration.cache").read_text())


@pytest.fixture(scope="module")
def program(trained):
    """What the export of a program printed, and its folder."""
    folder, _ = trained
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([f"run_dir={folder}", "target=pt2"]) == 0
    return said.getvalue(), folder / "export" / "pt2"


def test_an_exported_program_runs_by_the_three_lines_that_are_printed(program):
    lines, held = program[0].partition("next, in Python:\n")[2].splitlines(), {}
    assert len(lines) == 3
    exec("\n".join(lines), held)
    assert held["logits"].shape[:2] == held["tokens"].input_ids.shape
    assert held["logits"].isfinite().all()


def test_evaluate_measures_the_program_as_it_measures_the_run(trained, program, tmp_path):
    words = [f"model={program[1]}", f"baseline={trained[0]}", "max_batches=2"]
    assert evaluate([*words, f"out={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["models"]["model"]["kind"] == "pt2"
    against = found["measures"]["language"]["against_baseline"]
    assert abs(against["loss_difference"]["value"]) < 1e-3
    assert against["token_agreement"]["value"] > 0.98


def test_what_a_program_cannot_hold_is_refused_before_training(trained, tmp_path, capsys):
    words = ("recipe=qat", "callbacks.qat.scheme=FP8_DYNAMIC", "target=pt2")
    assert small_run(tmp_path / "fp8", *words)[0] == 2
    assert "integer codes, not FP8 or FP4" in capsys.readouterr().err
    assert not (tmp_path / "fp8" / "checkpoints" / "last.ckpt").exists()


def test_modelopt_refuses_int8_and_leaves_no_folder(trained, capsys):
    folder, _ = trained
    assert main([f"run_dir={folder}", "target=modelopt"]) == 2
    assert "scheme=FP8 or scheme=NVFP4" in capsys.readouterr().err
    assert not (folder / "export" / "modelopt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["target=vllm"], "run_dir must be given"),
        (["run_dir=nowhere", "target=tensort"], "Did you mean 'tensorrt'"),
        (["run_dir=nowhere"], "no run folder"),
        (["run_dir=nowhere", "bundel=true"], "Did you mean 'bundle'"),
        (["run_dir=nowhere", "target=vllm", "calibration=true"], "is for target=tensorrt"),
        (["run_dir=nowhere", "length=0"], "length=0: must be at least 1"),
        (["run_dir=nowhere", "batch=few"], "batch=few: a whole number or null is expected"),
        (["run_dir=nowhere", "level=1.5"], "level=1.5: a share between 0 and 1"),
        (["run_dir=nowhere", "licence=do what"], "one SPDX name is expected"),
    ],
)
def test_bad_input_is_told_with_the_way_out(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_is_told(trained, tmp_path, capsys):
    folder, _ = trained
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes()[:2000])
    assert main([f"run_dir={folder}", "target=vllm", f"checkpoint={damaged}"]) == 2
    assert "damaged.ckpt" in capsys.readouterr().err


def test_an_export_does_not_take_the_place_of_its_own_run(trained, capsys):
    folder, _ = trained
    assert main([f"run_dir={folder}", "target=transformers", f"path={folder}"]) == 2
    assert "holds what no export wrote" in capsys.readouterr().err
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_settings_of_a_cluster_are_refused_before_anything_is_measured(trained, capsys):
    words = [f"run_dir={trained[0]}", "target=vllm", "bundle=true"]
    assert main([*words, "min_replicas=9", "image=a b", "prometheus=here"]) == 2
    said = capsys.readouterr().err
    assert "max_replicas=8 < min_replicas=9" in said
    assert "image='a b' names no image" in said and "prometheus='here' is no address" in said


def deployed(gpu, model=None, **words):
    asked = [f"gpu={gpu}", "name=small", *(f"{key}={value}" for key, value in words.items())]
    settings = read_settings(asked, name="export", required=())
    return deploy_settings(settings, model or SimpleNamespace(student=tiny_llama()), {})


@pytest.mark.parametrize(
    ("gpu", "resource"),
    [("MI300X", "amd.com/gpu"), ("Gaudi2", "habana.ai/gaudi"), ("TPUv4", "google.com/tpu"),
     ("Ascend910B", "huawei.com/Ascend910"), ("L4", "nvidia.com/gpu")],
)  # fmt: skip
def test_a_plan_asks_for_the_devices_it_was_made_for(gpu, resource):
    found = deployed(gpu, image="here/vllm:1", node_label="pool=big")
    assert (found.resource, found.accelerator, found.node_label) == (resource, gpu, "pool=big")


def test_another_makers_container_is_asked_for_before_anything_is_measured(trained, capsys):
    words = [f"run_dir={trained[0]}", "target=vllm", "bundle=true", "gpu=MI300X"]
    assert main(words) == 2
    assert "runs on NVIDIA alone" in capsys.readouterr().err


def test_a_student_that_was_never_saved_is_planned_as_what_it_is(monkeypatch):
    from compress import plan

    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    encoder, seen = BertForSequenceClassification(config), []
    monkeypatch.setattr(plan, "serving_memory", lambda shape, **_: seen.append(shape))
    monkeypatch.setattr(plan, "place_serving", lambda *_: None)
    with pytest.raises(BadInput, match="does not fit"):
        deployed("L4", SimpleNamespace(student=encoder))
    assert (seen[0].name, seen[0].generates) == ("BertForSequenceClassification", False)
    assert not encoder.config.architectures


def copied(run, place):
    """A run's folder again, to be damaged."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("export"))
    return place


@pytest.mark.parametrize("text", ["{", "[]", '{"quality": 3}'])
def test_a_damaged_report_is_told(text, trained, tmp_path, capsys):
    folder = copied(trained[0], tmp_path / "run")
    (folder / "report.json").write_text(text)
    assert main([f"run_dir={folder}", "target=transformers"]) == 2
    assert "report.json is" in capsys.readouterr().err


def test_a_checkpoint_of_another_student_is_told(trained, tmp_path, capsys):
    folder = copied(trained[0], tmp_path / "run")
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["student"]["layers"] = 1
    file.write_text(yaml.safe_dump(config))
    assert main([f"run_dir={folder}", "target=transformers"]) == 2
    assert "of another student than these settings build" in capsys.readouterr().err


def test_the_script_names_the_targets_that_there_are(capsys):
    assert set(TARGETS) == set(WRITERS)
    assert main(["--help"]) == 0
    assert all(target in HELP for target in TARGETS)
