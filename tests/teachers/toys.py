"""A teacher of two tensors that counts its calls: enough to test what surrounds a teacher."""

import torch

from compress.contract import DenseSignal, Head, Want


class ToyTeacher:
    """Hidden states are an embedding of the token and of its position."""

    name_or_path = "toy"

    def __init__(self, *, vocab_size: int = 50, hidden: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(vocab_size, hidden, generator=generator)
        self.places = torch.randn(64, hidden, generator=generator)
        self.head = Head(weight_VH=torch.randn(vocab_size, hidden, generator=generator))
        self.vocab_size, self.rows_asked = vocab_size, 0

    def signal(self, batch, want: Want) -> DenseSignal:
        tokens = batch["input_ids"]
        self.rows_asked += len(tokens)
        hidden = self.embedding[tokens] + self.places[: tokens.shape[1]]
        return DenseSignal(
            hidden_SLH=hidden, head=self.head, features={n: hidden for n in want.features}
        )

    def log_probs(self, batch) -> torch.Tensor:
        signal = self.signal(batch, Want(logits=True))
        return torch.log_softmax(signal.head(signal.hidden_SLH), -1)


def rows(count: int, *, length: int = 12, vocab_size: int = 50, seed: int = 0):
    """Random sequences without labels."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, vocab_size, (count, length), generator=generator)}
