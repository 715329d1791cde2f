"""Deployment files of an export: Kubernetes, autoscaling and Triton, from templates.

What an engine needs of a GPU comes from a plan; everything a cluster decides (namespace, image,
volume) is a setting with a default that says what to change.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from compress.errors import BadInput

FOLDER = "deploy"
KUBERNETES = ("deployment.yaml", "service.yaml", "keda-scaledobject.yaml", "hpa.yaml")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SERVICE_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
IMAGE_NAME = re.compile(r"[a-z0-9][\w./:-]*(@sha256:[0-9a-f]{64})?", re.IGNORECASE)
NODE_LABEL = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[a-z0-9]([-\w.]{0,61}[a-z0-9])?"
    r"=[a-z0-9]([-\w.]{0,61}[a-z0-9])?",
    re.IGNORECASE | re.ASCII,
)
IMAGE = "vllm/vllm-openai:latest"
GPUS_A_NODE = 8

RESOURCES = {
    "NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu", "Intel": "habana.ai/gaudi",
    "Google": "google.com/tpu", "Huawei": "huawei.com/Ascend910", "Cambricon": "cambricon.com/mlu",
}  # fmt: skip
"""Vendor of the planner's table -> what its device plugin calls one device."""


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """What the files are filled with.

    Args:
        name: of the Deployment, the Service and the served model; a DNS label.
        image: a container that has `vllm`; pin it by digest in production.
        model_path: where the checkpoint lies inside the container.
        claim: the PersistentVolumeClaim that holds it.
        namespace: of every object.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: groups of GPUs that hold some layers each.
        mig: a slice such as `1g.10gb` in place of a whole GPU; None takes whole GPUs.
        device: what the cluster's device plugin calls one of them.
        accelerator: what the degrees were planned for, for those who read the files.
        node_label: KEY=VALUE of the nodes that serve, such as
            `nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3`; None takes any node with the resource.
        min_replicas: servers that always run.
        max_replicas: at the highest load.
        waiting_requests: queued requests a server at which another one starts.
        max_model_len: tokens of a prompt and its answer; None takes the model's limit.
        quantization: of `vllm serve`; None lets it read the checkpoint's configuration.
        prometheus: address that the autoscaler asks.
    """

    name: str
    image: str = IMAGE
    model_path: str = "/models/model"
    claim: str = "models"
    namespace: str = "default"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    mig: str | None = None
    device: str = RESOURCES["NVIDIA"]
    accelerator: str | None = None
    node_label: str | None = None
    min_replicas: int = 1
    max_replicas: int = 8
    waiting_requests: int = 5
    max_model_len: int | None = None
    quantization: str | None = None
    prometheus: str = "http://prometheus.monitoring.svc:9090"

    def __post_init__(self) -> None:
        """Refuses what a cluster would refuse.

        Raises:
            BadInput: lists every setting that is wrong.
        """
        wrong = [
            *_labels(self), *_node(self), *_counts(self), *_parallel(self), *_image(self),
            *_address(self),
        ]  # fmt: skip
        if wrong:
            raise BadInput("deploy settings:\n  " + "\n  ".join(wrong))

    @property
    def gpus(self) -> int:
        """Devices a server takes."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def resource(self) -> str:
        """The resource a pod asks for: whole GPUs or a MIG slice."""
        return f"nvidia.com/mig-{self.mig}" if self.mig else self.device


def _labels(settings: DeploySettings) -> list[str]:
    return [
        f"{key}={value!r} is no DNS label: small letters, digits and -, at most 63{more}"
        for key, label, more in (
            ("name", SERVICE_LABEL, ", a letter first"),
            ("namespace", DNS_LABEL, ""),
            ("claim", DNS_LABEL, ""),
        )
        if not label.fullmatch(value := getattr(settings, key))
    ]


def _node(settings: DeploySettings) -> list[str]:
    if settings.node_label is None or NODE_LABEL.fullmatch(settings.node_label):
        return []
    return [
        f"node_label={settings.node_label!r} is no label of nodes: KEY=VALUE, such as "
        "nvidia.com/gpu.product=NVIDIA-L4 (`kubectl get nodes --show-labels` lists them)"
    ]


def _counts(settings: DeploySettings) -> list[str]:
    counted = (
        "tensor_parallel", "pipeline_parallel", "min_replicas", "max_replicas", "waiting_requests",
    )  # fmt: skip
    wrong = [
        f"{k}={getattr(settings, k)} must be 1 or more" for k in counted if getattr(settings, k) < 1
    ]
    if settings.max_replicas < settings.min_replicas:
        wrong.append(f"max_replicas={settings.max_replicas} < min_replicas={settings.min_replicas}")
    return wrong


def _parallel(settings: DeploySettings) -> list[str]:
    wrong = []
    if settings.mig and settings.gpus > 1:
        wrong.append(
            f"mig={settings.mig}: slices do not work together, but {settings.gpus} are asked"
        )
    if settings.gpus > GPUS_A_NODE:
        wrong.append(
            f"tensor_parallel x pipeline_parallel = {settings.gpus}: one pod has at most "
            f"{GPUS_A_NODE} GPUs; spread a server over nodes with LeaderWorkerSet and Ray"
        )
    return wrong


def _address(settings: DeploySettings) -> list[str]:
    if re.fullmatch(r"https?://[^\s/]+(/\S*)?", settings.prometheus):
        return []
    return [f"prometheus={settings.prometheus!r} is no address such as http://prometheus:9090"]


def _image(settings: DeploySettings) -> list[str]:
    if not IMAGE_NAME.fullmatch(settings.image):
        return [f"image={settings.image!r} names no image: registry/name:tag or name@sha256:..."]
    if settings.image != IMAGE or settings.device == RESOURCES["NVIDIA"]:
        return []
    return [
        f"image={IMAGE} runs on NVIDIA alone, and the server is planned for {settings.device}: "
        "name the vendor's container with vLLM, image=..."
    ]


def from_placement(name: str, placement: Any, **settings: Any) -> DeploySettings:
    """Settings with the degrees and the slice that the planner chose.

    Args:
        name: of the served model.
        placement: has `tensor_parallel`, `pipeline_parallel` and `mig` (`compress.plan`).
        settings: the rest.
    """
    return DeploySettings(
        name=name, tensor_parallel=placement.tensor_parallel,
        pipeline_parallel=placement.pipeline_parallel, mig=placement.mig, **settings,
    )  # fmt: skip


def dns_label(text: str) -> str:
    """The nearest DNS label that begins with a letter, as the names of Services must.

    >>> dns_label("runs/Distill_QAT v2"), dns_label("8B")
    ('runs-distill-qat-v2', 'model-8b')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
    return (plain if plain[0].isalpha() else f"model-{plain}")[:63].strip("-")


def write_deploy(
    folder: Path, settings: DeploySettings, *, target: str, facts: Mapping[str, Any]
) -> list[Path]:
    """Write `deploy/` into an export's folder; the files.

    Args:
        folder: of the export.
        settings: what the files are filled with.
        target: of the export: Kubernetes files serve checkpoints that vLLM reads, a Triton model
            repository both those and TensorRT engines.
        facts: of an engine, for Triton: `batch`, the most sequences at once, and `output` and
            `dims` of the file; none of a checkpoint.
    """
    place = folder / FOLDER
    values = {**asdict(settings), "gpus": settings.gpus, "resource": settings.resource, **facts}
    values["node"] = settings.node_label.split("=") if settings.node_label else None
    triton = place / "triton" / settings.name
    files = {place / "README.md": "README.md"}
    if target == "tensorrt":
        files[triton / "config.pbtxt"] = "triton-tensorrt.pbtxt"
    else:
        files |= {place / "kubernetes" / name: name for name in KUBERNETES}
        files |= {
            triton / "config.pbtxt": "triton-vllm.pbtxt", triton / "1" / "model.json": "model.json"
        }  # fmt: skip
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(template, {**values, "target": target}))
    if target == "tensorrt":
        (triton / "1").mkdir()
        (triton / "1" / "PUT_MODEL_PLAN_HERE").touch()
    return list(files)


def render(template: str, values: Mapping[str, Any]) -> str:
    """One template filled in; a value it names and is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compress.export", "templates"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template(f"{template}.jinja").render(**values)


SETTINGS = tuple(field.name for field in fields(DeploySettings))
