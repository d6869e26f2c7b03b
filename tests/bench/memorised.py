"""How often the scan for memorised patients errs, and what it finds: `python -m tests.bench.memorised [DRAWS]`.

Losses are drawn. Strangers' are uniform, and so are those of trained patients, but for a share of them, the true advantage, whose loss
lies below everybody's. Columns are shares of rounds (of a federation of ten) in which something is found, and in which the policy's limit
of 0.2 refuses.
"""

from __future__ import annotations

import sys

import numpy as np

from medmesh.federated.memorised import measure

PATIENTS = ((30, 8), (80, 20), (160, 40), (400, 100), (800, 200), (1_000, 1_000))
ADVANTAGES = (0.3, 0.5, 0.8)
ROUNDS, LIMIT = 10, 0.2


def share(trained: int, held_out: int, true: float, limit: float, draws: int) -> float:
    """Of `draws` rounds, those in which more than `limit` is surely found."""
    dice = np.random.default_rng((trained, held_out, round(1000 * true)))

    def found() -> bool:
        losses = np.where(dice.random(trained) < true, -1.0, dice.random(trained))
        return measure(losses, dice.random(held_out), ROUNDS).surely > limit

    return sum(found() for _ in range(draws)) / draws


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print("trained  held out  by chance  " + "  ".join(f"refused at {true}" for true in ADVANTAGES))
    for trained, held_out in PATIENTS:
        refused = (f"{share(trained, held_out, true, LIMIT, draws // 20):14.2f}" for true in ADVANTAGES)
        print(f"{trained:7d}  {held_out:8d}  {share(trained, held_out, 0.0, 0.0, draws):9.4f}  " + "  ".join(refused))


if __name__ == "__main__":
    main()
