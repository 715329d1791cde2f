"""Short runs on the tiny Llama with a teacher that learned the counting task beforehand."""

import functools

import lightning as L
import torch

from compress.data.loader import ResumableLoader
from compress.module import CompressionModule
from compress.teachers.local import LocalTeacher
from tests.tiny import TinyData, tiny_llama


@functools.cache
def trained_state(layers: int, hidden: int) -> dict[str, torch.Tensor]:
    """Weights of a teacher that counts well; trained once a session."""
    model = tiny_llama(layers=layers, hidden=hidden, seed=1)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    tokens = TinyData(rows=128).tokens
    for _ in range(60):
        loss = model(input_ids=tokens, labels=tokens).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.state_dict()


def teacher(*, layers: int = 4, hidden: int = 32) -> LocalTeacher:
    model = tiny_llama(layers=layers, hidden=hidden, seed=1)
    model.load_state_dict(trained_state(layers, hidden))
    return LocalTeacher(model)


def fit(
    callbacks, *, steps=12, ckpt=None, save=None, module=None, max_steps=None, rows=None, **settings
):
    """Train and return (trainer, module); a resumed run goes on at the batch where it stood."""
    torch.manual_seed(0)
    module = module or CompressionModule(
        student=tiny_llama(layers=2, hidden=32), teacher=teacher(),
        learning_rate=3e-3, warmup_steps=2, final_share=1.0, **settings,
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=max_steps or steps, accelerator="cpu", devices=1, callbacks=callbacks,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = ResumableLoader(rows or TinyData(rows=64), batch_size=8)
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=False)
    if save:
        trainer.save_checkpoint(save)
    return trainer, module


class Curve(L.Callback):
    """Keeps a logged value of every step."""

    def __init__(self, key: str) -> None:
        self.key, self.values = key, []

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        self.values.append(float(trainer.callback_metrics[self.key]))


def assert_resume_is_bit_exact(make, tmp_path, *, steps=10, cut=5) -> None:
    """Trained through, and cut and resumed: the same student, bit for bit."""
    whole = fit([make()], steps=steps)[1].student.state_dict()
    path = str(tmp_path / "cut.ckpt")
    fit([make()], steps=steps, max_steps=cut, save=path)
    resumed = fit([make()], steps=steps, ckpt=path)[1].student.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
