"""The character LSTM's training epoch against its floor, and its sampling.

    python -m benchmarks.char_lm_epoch

The loop by hand is char-rnn's recipe on ``nn.LSTM`` of two layers; the sampling by hand calls the same network one
character at a time and draws with ``torch.multinomial``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floor import against_floor, command_line, device, now, training_seconds
from benchmarks.harness import interleaved, options, ratios, report, verdict
from experiments.run_folder import REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs" / "char_lm" / "tiny_shakespeare.yaml"), "--data.source", "python"]
HIDDEN, LAYERS, ROWS, STEPS = 128, 2, 50, 50


class ByHand(nn.Module):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.symbols = symbols
        self.lstm = nn.LSTM(symbols, HIDDEN, LAYERS, batch_first=True)
        self.decoder = nn.Linear(HIDDEN, symbols)

    def forward(self, codes: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, state = self.lstm(F.one_hot(codes, self.symbols).float(), state)
        return self.decoder(outputs), state


def train_by_hand(codes: Tensor, symbols: int, steps: int, epochs: int) -> float:
    """Seconds of an epoch of ``steps`` over the rows ``codes`` (R, N): the median of ``epochs``, with one before."""
    model = ByHand(symbols).to(device())
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95)
    seconds = []
    for _ in range(epochs + 1):
        start, state = now(), None
        for k in range(steps):
            window = codes[:, k * STEPS : (k + 1) * STEPS + 1].to(device())
            state = None if state is None else (state[0].detach(), state[1].detach())
            logits, state = model(window[:, :-1], state)
            loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 5)
            optimizer.step()
        seconds.append(now() - start)
    return median(seconds[1:])


def by_hand(epochs: int, limit_batches: int | None) -> tuple[Callable[[], float], int]:
    """The case that trains by hand, and the steps of its epoch."""
    with command_line(CONFIG) as cli:
        data = cli.datamodule
        data.setup("fit")
        steps = len(data.train_dataloader())
        row = steps * STEPS + 1
        codes = torch.from_numpy(data.codes[: ROWS * row].astype("int64")).view(ROWS, row)
        symbols = len(data.vocab)
    if limit_batches is not None:
        steps = min(steps, limit_batches)
    return lambda: train_by_hand(codes, symbols, steps, epochs), steps


def sampling(length: int = 1000) -> dict[str, Callable[[], float]]:
    """Seconds of drawing ``length`` characters."""
    with command_line(CONFIG) as cli:
        model = cli.model.to(device()).eval()
    hand = ByHand(len(model.vocab)).to(device()).eval()

    def ours() -> float:
        start = time.perf_counter()
        model.sample("def ", length, seed=0)
        return time.perf_counter() - start

    @torch.inference_mode()
    def fused() -> float:
        start = time.perf_counter()
        logits, state = hand(model.to_codes("def ")[None], None)
        codes = []
        for _ in range(length):
            code = torch.multinomial(logits[:, -1].softmax(1), 1)
            codes.append(code)
            logits, state = hand(code, state)
        "".join(model.vocab[code] for code in torch.cat(codes, 1)[0].tolist())
        return time.perf_counter() - start

    return {"sample": ours, "fused loop": fused}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--epochs", type=int, default=1, help="timed in each round (default: 1)")
    parser.add_argument("--limit-batches", type=int, default=150, help="in an epoch (default: 150)")
    args = parser.parse_args()
    hand, steps = by_hand(args.epochs, args.limit_batches)
    times = against_floor(lambda: training_seconds(CONFIG, args.epochs, args.limit_batches), hand, steps, args.repeats)
    report(f"char_lm: {steps} training steps", times, "floor")
    drawn = interleaved(sampling(), args.repeats)
    print()
    report("char_lm: 1,000 characters drawn", drawn, "fused loop")
    return verdict(ratios(times, "floor")["train.py"], args.check)


if __name__ == "__main__":
    raise SystemExit(main())
