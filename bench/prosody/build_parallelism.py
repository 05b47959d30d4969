"""Learn from couplets which characters face one another, and write parallelism.npz.

    python bench/prosody/build_parallelism.py ../shared/data/couplet_pairs.jsonl

The smoothed pointwise mutual information log((n + k) / (e + k)) of facing characters (n seen, e expected by chance)
in couplets of regular tones, as a symmetric matrix over the frequent characters, cut to its strongest eigenvectors and
rounded to bytes.  One pair in fifty, by a hash of its text, is set aside: bench/prosody/measure.py judges on those.
No text leaves the corpus.
"""

import json
import random
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / "src/tunesmith/prosody/data"
CHARACTERS, DIMENSIONS, SMOOTHING = 5000, 96, 0.3


def is_held_out(pair: dict) -> bool:
    """Say whether a pair (``u``, ``l``) is set aside for judging."""
    return zlib.crc32((pair["u"] + pair["l"]).encode()) % 50 == 0


def learn(pairs: list[dict], size: int = CHARACTERS, dimensions: int = DIMENSIONS) -> dict[str, np.ndarray]:
    """Return the arrays of the file: characters, vectors (bytes), scale and sign of each dimension, chance level."""
    frequency = Counter(character for pair in pairs for character in pair["u"] + pair["l"])
    characters = [character for character, _ in frequency.most_common(size)]
    number = {character: index for index, character in enumerate(characters)}
    size = len(characters)
    seen = np.zeros((size, size), np.float32)
    for pair in pairs:
        facing = [
            (number[a], number[b]) for a, b in zip(pair["u"], pair["l"], strict=True) if a in number and b in number
        ]
        for a, b in facing:
            seen[a, b] += 1
            seen[b, a] += 1
    each = seen.sum(1)
    expected = np.outer(each, each) / each.sum()
    information = np.log((seen + SMOOTHING) / (expected + SMOOTHING))
    values, vectors = np.linalg.eigh(information)
    strongest = np.argsort(-abs(values))[:dimensions]
    scaled = vectors[:, strongest] * np.sqrt(abs(values[strongest]))
    scale = abs(scaled).max(0) / 127
    arrays = {
        "characters": np.array(["".join(characters)]),
        "vectors": np.rint(scaled / scale).astype(np.int8),
        "weights": (np.sign(values[strongest]) * scale**2).astype(np.float32),
    }
    arrays["chance"] = chance(arrays, pairs)
    return arrays


def chance(arrays: dict[str, np.ndarray], pairs: list[dict]) -> np.ndarray:
    """Return mean and deviation of one facing pair of characters when lines are put together at random."""
    number = {character: index for index, character in enumerate(str(arrays["characters"][0]))}
    shuffled = random.Random(0)
    sample = shuffled.sample(pairs, min(len(pairs), 40000))
    sums, lengths = [], []
    by_length = {length: [pair["l"] for pair in sample if len(pair["l"]) == length] for length in (5, 7)}
    for pair in sample:
        lower = shuffled.choice(by_length[len(pair["u"])])
        facing = [(number[a], number[b]) for a, b in zip(pair["u"], lower, strict=True) if a in number and b in number]
        a, b = np.array(facing, dtype=int).reshape(-1, 2).T
        vectors = arrays["vectors"]
        sums.append(float((vectors[a].astype(np.float32) * vectors[b] * arrays["weights"]).sum()))
        lengths.append(len(facing))
    total, count = np.array(sums), np.array(lengths)
    mean = total.sum() / count.sum()
    deviation = np.sqrt(((total - mean * count) ** 2).sum() / count.sum())
    return np.array([mean, deviation], np.float32)


def main() -> None:
    """Write the file."""
    pairs = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    learnt = [pair for pair in pairs if pair["ok"] and not is_held_out(pair)]
    arrays = learn(learnt)
    path = DATA / "parallelism.npz"
    np.savez_compressed(path, **arrays)
    print(f"{len(learnt):,} pairs learnt, {path.stat().st_size:,} bytes, chance {arrays['chance']}")


if __name__ == "__main__":
    main()
