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
from compress.export.bundle import bundle, engine_facts
from compress.export.card import CardFacts
from compress.export.deploy import (
    RESOURCES,
    DeploySettings,
    dns_label,
    from_placement,
    write_deploy,
)
from compress.export.plan import collect_plan
from compress.export.tensorrt import write_dense
from compress.plan.accelerators import table
from tests.export.fakes import quantized
from tests.export.onnx_models import tiny_bert, tiny_encoder
from tests.tiny import tiny_batch, tiny_llama

OUTPUTS = {"batch": 4, "output": "logits", "dims": [-1, 128]}
SETTINGS = [
    {},
    {
        "tensor_parallel": 4,
        "pipeline_parallel": 2,
        "node_label": "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3",
    },
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


@pytest.mark.parametrize("dims", [[-1, 128], [3]])
def test_triton_parses_the_tensorrt_model(tmp_path, dims):
    facts = {**OUTPUTS, "dims": dims}
    place = deployed(tmp_path, target="tensorrt", facts=facts) / "triton" / "small"
    config = text_format.Parse((place / "config.pbtxt").read_text(), model_config())
    assert [value.name for value in config.input] == ["input_ids", "attention_mask"]
    assert list(config.output[0].dims) == dims
    assert config.max_batch_size == 4
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


@pytest.mark.parametrize(("make", "dims"), [
    (tiny_llama, [-1, 128]), (tiny_bert, [3]), (tiny_encoder, [-1, 32])
])  # fmt: skip
def test_outputs_are_those_of_the_engine(make, dims, tmp_path):
    model = make(layers=1).eval()
    write_dense(model, collect_plan(model), tmp_path / "model.onnx")
    assert engine_facts(tmp_path / "model.onnx") == {"output": "logits", "dims": dims}


def test_triton_takes_what_the_engine_is_built_for(tmp_path):
    result = bundle(
        tiny_encoder(), target="tensorrt", path=tmp_path / "out", dtype="float32", batch=2,
        deploy=DeploySettings(name="small"),
    )  # fmt: skip
    place = result.path / "deploy" / "triton" / "small"
    config = text_format.Parse((place / "config.pbtxt").read_text(), model_config())
    assert (config.max_batch_size, list(config.output[0].dims)) == (2, [-1, 32])
    script = (result.path / "trtexec.sh").read_text()
    assert "--maxShapes=input_ids:2x64,attention_mask:2x64" in script


def test_an_engine_is_not_planned_for_what_tensorrt_does_not_run_on(tmp_path):
    other = DeploySettings(name="small", device=RESOURCES["AMD"], image="rocm/vllm:1")
    with pytest.raises(UnsupportedScheme, match=r"NVIDIA alone.*amd\.com/gpu.*target=vllm"):
        bundle(tiny_encoder(), target="tensorrt", path=tmp_path / "out", deploy=other)


def test_a_server_goes_to_nodes_with_its_label_where_one_is_named(tmp_path):
    named = manifest(tmp_path / "a", "deployment.yaml", node_label="nvidia.com/gpu.product=H100")
    pod = named["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert "nodeSelector" not in manifest(tmp_path / "b", "deployment.yaml")["spec"]["template"]


def test_who_planned_for_one_accelerator_is_told_that_any_node_may_get_it(tmp_path):
    told = deployed(tmp_path / "a", accelerator="H100") / "README.md"
    assert "Planned for H100. Any node with `nvidia.com/gpu`" in told.read_text()
    chosen = deployed(tmp_path / "b", accelerator="H100", node_label="a/b=c") / "README.md"
    assert "Any node" not in chosen.read_text()


@pytest.mark.parametrize("label", ["H100", "a/b/c=d", "a=b=c", "=x", "-a=b", "a=b c", "a: b=c"])
def test_what_is_no_label_of_nodes_is_refused(label):
    with pytest.raises(BadInput, match=r"is no label of nodes: KEY=VALUE"):
        DeploySettings(name="small", node_label=label)


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
