#!/usr/bin/env python3
"""Steps of candle-transformers' models with masksub::nn, beside this crate's own models and PyTorch's, in turn.

    .ci/drop-in EMPTY_DIRECTORY                       # builds target/release/run
    python3 benches/peer/drop_in.py --rounds 5

A step is forward and backward on two threads, in a process of its own, as `.ci/drop-in DIR --time` has it. PyTorch's models
are timm's (`convnext_tiny`, `efficientnet_b0`) and transformers' (`BertModel`), eager, in float32, with nothing dropped.
Prints medians, and the median of the rounds' ratios with their range: below 1 the model with masksub::nn is faster or
smaller.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Beside whom: the crate's own model, or PyTorch's.
BESIDE = {"vit-s": "own", "resnet50": "own", "convnext-t": "torch", "efficientnet-b0": "torch", "bert-base": "torch"}
STEPS = 5


def peer(name):
    """Times PyTorch's model in this process: seconds of a step, MiB of the process."""
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    if name == "bert-base":
        import transformers

        config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model, xs = transformers.BertModel(config, add_pooling_layer=False), torch.randint(30522, (8, 128))
        logits = lambda: model(input_ids=xs).last_hidden_state
    else:
        import timm

        model = timm.create_model({"convnext-t": "convnext_tiny", "efficientnet-b0": "efficientnet_b0"}[name])
        xs = torch.randn(4 if name == "convnext-t" else 8, 3, 224, 224)
        logits = lambda: model(xs)
    model.train()
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        model.zero_grad(set_to_none=True)
        logits().square().sum().backward()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([statistics.median(times[1:]), peak]))


def run(command):
    environment = {**os.environ, "RAYON_NUM_THREADS": "2", "CANDLE_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BESIDE), choices=list(BESIDE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch, timm and transformers")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.peer:
        return peer(flags.peer)
    ours = str(ROOT / "target/release/run")
    print("| model | with masksub::nn | beside | time | memory |\n|---|---:|---:|---:|---:|")
    for name in flags.models:
        rounds = []
        for _ in range(flags.rounds):
            stand_in = [float(number) for number in run([ours, "--time", name, "stand-in"]).split()]
            if BESIDE[name] == "own":
                other = [float(number) for number in run([ours, "--time", name, "own"]).split()]
            else:
                other = json.loads(run([flags.python, __file__, "--peer", name]))
            rounds.append((stand_in, other))
        cells = []
        for which in (0, 1):
            seconds, mib = (statistics.median(both[which][i] for both in rounds) for i in (0, 1))
            cells.append(f"{seconds:.3f} s, {mib:.0f} MiB")
        for i in (0, 1):
            ratios = [a[i] / b[i] for a, b in rounds]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {name} | {cells[0]} | {BESIDE[name]}: {cells[1]} | {cells[2]} | {cells[3]} |", flush=True)


if __name__ == "__main__":
    main()
