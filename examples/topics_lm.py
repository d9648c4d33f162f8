"""Trains a small character transformer on the text of Python's own help topics.

trackside submit examples/topics_lm.py -- --steps 1000
python examples/topics_lm.py            # by itself; run it again after Ctrl-C and it goes on where it was
"""

import argparse
import time
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import trackside
from trackside.sdk.determinism import deterministic, sample_generator

BATCH, CONTEXT, WIDTH, LAYERS = 16, 64, 64, 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--step-ms", type=float, default=0.0, help="least time a step takes, to slow a demo down")
    return parser.parse_args()


class Transformer(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, WIDTH)
        self.places = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [batch, place] -> [batch, place, character]
        hidden = self.layers(self.characters(x) + self.places, mask=self.mask, is_causal=True)
        scores: torch.Tensor = self.head(hidden)
        return scores


def windows(text: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
    at = starts + torch.arange(CONTEXT + 1)  # [batch, place], one more place than is read: the last is only predicted
    return text[at[:, :-1]], text[at[:, 1:]]


def main() -> None:
    args = arguments()
    run = trackside.init()
    deterministic(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text])
    train, test = numbers[: len(numbers) * 9 // 10], numbers[len(numbers) * 9 // 10 :]

    model = Transformer(len(alphabet)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(args.steps, 1))
    run.checkpointer(model=model, optimizer=optimizer, schedule=schedule, every=args.every)

    model.train()
    for step in run.steps(args.steps):
        began = time.monotonic()
        x, y = windows(train, sample_generator(args.seed, 0, step))
        loss = cross_entropy(model(x.to(device)).flatten(0, 1), y.to(device).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss, lr=schedule.get_last_lr()[0])
        schedule.step()
        time.sleep(max(0.0, args.step_ms / 1000 - (time.monotonic() - began)))

    model.eval()
    with torch.no_grad():
        losses = []
        for part in range(20):
            x, y = windows(test, sample_generator(args.seed, 1, part))
            losses.append(cross_entropy(model(x.to(device)).flatten(0, 1), y.to(device).flatten()))
    run.summary["test_loss"] = torch.stack(losses).mean()
    torch.save(model.state_dict(), run.dir / "model.pt")


if __name__ == "__main__":
    main()
