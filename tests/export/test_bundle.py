"""Bundles: every manifest is what its schema allows, and says what the plan and the export say."""

import importlib.util
import json
from importlib.metadata import distribution
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format

from compress.errors import BadInput, UnsupportedScheme
from compress.export.bundle import bundle, served_outputs
from compress.export.card import CardFacts
from compress.export.deploy import (
    RESOURCES,
    DeploySettings,
    dns_label,
    from_placement,
    write_deploy,
)
from compress.plan.accelerators import table
from tests.export.fakes import quantized
from tests.export.onnx_models import tiny_bert
from tests.tiny import tiny_batch, tiny_llama

OUTPUTS = {"generates": True, "outputs": 128}
SETTINGS = [
    {},
    {"tensor_parallel": 4, "pipeline_parallel": 2, "accelerator": "NVIDIA-H100-80GB-HBM3"},
    {"mig": "1g.10gb", "max_model_len": 4096, "quantization": "modelopt"},
    {"device": "amd.com/gpu", "image": "rocm/vllm:1", "namespace": "123", "claim": "0"},
    {"name": "on"},
]


def deployed(tmp_path, *, target="vllm", facts=OUTPUTS, **settings):
    filled = DeploySettings(**{"name": "small", **settings})
    write_deploy(tmp_path, filled, target=target, facts=facts)
    return tmp_path / "deploy"


def manifest(tmp_path, file, **settings):
    return yaml.safe_load((deployed(tmp_path, **settings) / "kubernetes" / file).read_text())


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("file", ["deployment.yaml", "service.yaml", "hpa.yaml"])
def test_kubernetes_takes_the_manifests_strictly(tmp_path, file, settings):
    kubernetes_validate.validate(manifest(tmp_path, file, **settings), "1.33", strict=True)


def test_the_schema_would_refuse_a_misspelt_field(tmp_path):
    wrong = manifest(tmp_path, "deployment.yaml")
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


# KEDA's own schema is in no package: this one is ours, of the fields that its documentation names
# for ScaledObject (keda.sh/v1alpha1) and its prometheus trigger, and allows no others
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
KEDA = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {"name": TEXT, "kind": TEXT, "apiVersion": TEXT},
                },
                "pollingInterval": COUNT,
                "cooldownPeriod": COUNT,
                "minReplicaCount": COUNT,
                "maxReplicaCount": COUNT,
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"const": "prometheus"},
                            "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
                            "metadata": {
                                "type": "object",
                                "required": ["serverAddress", "query", "threshold"],
                                "additionalProperties": TEXT,
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_the_scaled_object_has_kedas_documented_fields_and_asks_for_the_queue(tmp_path):
    import jsonschema

    found = manifest(tmp_path, "keda-scaledobject.yaml", waiting_requests=7)
    jsonschema.validate(found, KEDA)
    (trigger,) = found["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'sum(vllm:num_requests_waiting{model_name="small"})'
    assert trigger["metadata"]["threshold"] == "7"
    assert found["spec"]["scaleTargetRef"]["name"] == "small"


def test_degrees_and_slice_of_the_plan_reach_the_server(tmp_path):
    spec = manifest(tmp_path, "deployment.yaml", tensor_parallel=4, pipeline_parallel=2)
    container = spec["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["vllm", "serve", "/models/model"]
    assert {"--tensor-parallel-size=4", "--pipeline-parallel-size=2"} <= set(container["args"])
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_a_mig_slice_takes_the_place_of_a_gpu(tmp_path):
    placement = SimpleNamespace(tensor_parallel=1, pipeline_parallel=1, mig="2g.20gb")
    settings = from_placement("small", placement)
    write_deploy(tmp_path, settings, target="vllm", facts=OUTPUTS)
    spec = yaml.safe_load((tmp_path / "deploy/kubernetes/deployment.yaml").read_text())
    container = spec["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/mig-2g.20gb": "1"}
    assert "strategy `mixed`" in (tmp_path / "deploy/README.md").read_text()


def test_services_and_autoscalers_point_at_the_deployment(tmp_path):
    deployment = manifest(tmp_path, "deployment.yaml")
    service = manifest(tmp_path, "service.yaml")
    hpa = manifest(tmp_path, "hpa.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert hpa["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def model_config():
    """Triton's own message, by file: the package around it wants grpc."""
    place = distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(place))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig()


def test_triton_parses_the_streaming_model(tmp_path):
    place = deployed(tmp_path, tensor_parallel=2) / "triton" / "small"
    config = text_format.Parse((place / "config.pbtxt").read_text(), model_config())
    assert config.backend == "vllm"
    assert config.model_transaction_policy.decoupled
    settings = json.loads((place / "1" / "model.json").read_text())
    assert settings["tensor_parallel_size"] == 2


@pytest.mark.parametrize(("generates", "dims"), [(True, [-1, 128]), (False, [3])])
def test_triton_parses_the_tensorrt_model(tmp_path, generates, dims):
    facts = {"generates": generates, "outputs": dims[-1]}
    place = deployed(tmp_path, target="tensorrt", facts=facts) / "triton" / "small"
    config = text_format.Parse((place / "config.pbtxt").read_text(), model_config())
    assert [value.name for value in config.input] == ["input_ids", "attention_mask"]
    assert list(config.output[0].dims) == dims
    assert (place / "1").is_dir()
    assert not (tmp_path / "deploy" / "kubernetes").exists()


def test_what_no_cluster_takes_is_refused_at_once():
    with pytest.raises(BadInput) as refusal:
        DeploySettings(
            name="Small_1", tensor_parallel=16, mig="1g.10gb", min_replicas=3, max_replicas=2
        )
    for said in (
        "'Small_1' is no DNS label",
        "slices do not work together",
        "16",
        "max_replicas=2",
    ):
        assert said in str(refusal.value)


def test_other_makers_devices_are_asked_for_by_their_own_names(tmp_path):
    spec = manifest(tmp_path, "deployment.yaml", device=RESOURCES["AMD"], image="rocm/vllm:1")
    pod = spec["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"amd.com/gpu": "1"}
    assert pod["tolerations"][0]["key"] == "amd.com/gpu"


def test_every_maker_of_the_planners_table_has_a_device_plugin():
    assert {device.vendor for device in table()[1].values()} == set(RESOURCES)


def test_the_container_of_another_maker_must_be_named():
    with pytest.raises(BadInput, match=r"runs on NVIDIA alone.*amd\.com/gpu.*image="):
        DeploySettings(name="small", device="amd.com/gpu")


def test_a_service_of_the_name_vllm_does_not_disturb_the_server(tmp_path):
    spec = manifest(tmp_path, "deployment.yaml", name="vllm")
    assert spec["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_names_of_services_begin_with_a_letter():
    with pytest.raises(BadInput, match=r"name='8b'.*a letter first"):
        DeploySettings(name="8b")


@pytest.mark.parametrize("text", ["runs/Distill_QAT v2", "___", "a" * 80, "é", "8" * 80, "-9-"])
def test_any_name_becomes_a_label(text):
    DeploySettings(name=dns_label(text))


def test_outputs_are_read_from_the_model():
    assert served_outputs(tiny_llama(layers=1)) == {"generates": True, "outputs": 128}
    assert served_outputs(tiny_bert()) == {"generates": False, "outputs": 3}


def bundled(tmp_path, target="vllm", scheme="W8A8"):
    return bundle(
        quantized(tiny_llama(), scheme), target=target, path=tmp_path / "out",
        deploy=DeploySettings(name="small"), example_batch=tiny_batch(), dtype="float32",
        card=CardFacts(licence="mit", data="stories", quality={"loss": "1.2 [1.1, 1.3]"},
                       speed={"latency": "0.4x [0.3, 0.5]"}),
    )  # fmt: skip


def test_a_bundle_has_weights_card_and_deployment(tmp_path):
    result = bundled(tmp_path)
    card = (result.path / "README.md").read_text()
    for said in ("license: mit", "stories", "W8A8", "1.2 [1.1, 1.3]", "0.4x [0.3, 0.5]",
                 "bytes", "from_pretrained", "deploy/README.md"):  # fmt: skip
        assert said in card
    assert (result.path / "model.safetensors").is_file()
    assert (result.path / "deploy" / "kubernetes" / "deployment.yaml").is_file()


def test_modelopt_is_named_to_the_server(tmp_path):
    result = bundled(tmp_path, target="modelopt", scheme="FP8")
    text = (result.path / "deploy" / "kubernetes" / "deployment.yaml").read_text()
    assert "--quantization=modelopt" in text


def test_a_bundle_without_a_server_is_refused(tmp_path):
    with pytest.raises(UnsupportedScheme, match="target=vllm"):
        bundled(tmp_path, target="transformers")
    assert list(tmp_path.iterdir()) == []
