"""Claims about LightningCLI: its users name the callbacks in YAML, checked by jsonargparse."""

import lightning as L
import pytest
import torch
import yaml

import compress.callbacks
from compress.module import CompressionModule
from compress.transforms import transformed_layers
from tests.tiny import TinyData, tiny_llama

cli = pytest.importorskip("lightning.pytorch.cli")
pytest.importorskip("jsonargparse")


class Mine(CompressionModule):
    """A module whose settings a command line can give."""

    def __init__(self, layers: int = 2, learning_rate: float = 1e-2) -> None:
        super().__init__(student=tiny_llama(layers=layers), learning_rate=learning_rate)


class Data(L.LightningDataModule):
    """Counting sequences."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(TinyData(), batch_size=4)


@pytest.fixture(autouse=True)
def no_words_of_pytest(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train"])


def parsed(tmp_path, callbacks, run=False):
    config = {
        "model": {"layers": 1},
        "trainer": {"callbacks": callbacks, "max_steps": 2, "accelerator": "cpu", "logger": False,
                    "enable_checkpointing": False, "enable_progress_bar": False},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return cli.LightningCLI(
        Mine, Data, args=["--config", str(path)], run=run, save_config_callback=None
    )


def test_a_run_named_in_yaml_trains_the_quantised_student(tmp_path):
    named = [
        {"class_path": "compress.callbacks.DynamicSparsity",
         "init_args": {"density": 0.5, "start": 0, "stop": 1, "every": 1}},
        {"class_path": "compress.callbacks.QuantizationAwareTraining",
         "init_args": {"scheme": "W4A16", "group_size": 32}},
    ]  # fmt: skip
    made = parsed(tmp_path, named)
    made.trainer.fit(made.model, made.datamodule)
    assert made.trainer.global_step == 2
    weight = next(layer for _, layer in transformed_layers(made.model.student)).weight
    assert (weight == 0).float().mean() >= 0.49


def test_a_misspelt_setting_is_refused(tmp_path, capsys):
    wrong = {"class_path": "compress.callbacks.DynamicSparsity", "init_args": {"densty": 0.5}}
    with pytest.raises(SystemExit):
        parsed(tmp_path, [wrong])
    assert "densty" in capsys.readouterr().err


@pytest.mark.parametrize("name", compress.callbacks.__all__)
def test_every_callback_can_be_named(tmp_path, name):
    made = parsed(tmp_path, [{"class_path": f"compress.callbacks.{name}"}])
    kind = getattr(compress.callbacks, name)
    assert any(isinstance(callback, kind) for callback in made.trainer.callbacks)
