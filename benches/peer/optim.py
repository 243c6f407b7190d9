#!/usr/bin/env python3
"""The optimizer steps of `cargo bench --bench optim` in PyTorch, and both in turn.

    python3 benches/peer/optim.py --optimizer adamw --iters 10
    cargo bench --bench optim --no-run
    python3 benches/peer/optim.py --alternate --optimizer adamw lamb --rounds 5

AdamW and SGD are PyTorch's, fused and foreach; LAMB is timm's; clip is `clip_grad_norm_` with foreach; ema is timm's
`ModelEmaV3`. Parameters have the shapes of a ViT-B/16, in float32.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def shapes(width=768, depth=12, classes=1000):
    yield from [(width, 3, 16, 16), (width,), (1, 1, width), (1, 196, width)]
    for _ in range(depth):
        yield from [(width,)] * 2 + [(3 * width, width), (3 * width,), (width, width), (width,), (width,)]
        yield from [(width,)] * 2 + [(4 * width, width), (4 * width,), (width, 4 * width), (width,), (width,)]
    yield from [(width,), (width,), (classes, width), (classes,)]


def measure(kind, iters):
    import torch

    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes()]
    for param in params:
        param.grad = torch.randn_like(param)
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    name, _, version = kind.partition("-")
    how = {version: True} if version else {}
    if name == "adamw":
        step = torch.optim.AdamW(groups, lr=1e-3, **how).step
    elif name == "sgd":
        step = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, **how).step
    elif name == "lamb":
        from timm.optim import Lamb

        step = Lamb(groups, lr=1e-3).step
    elif name == "clip":
        step = lambda: torch.nn.utils.clip_grad_norm_(params, 1e-9, foreach=True)
    else:
        from timm.utils import ModelEmaV3

        model = torch.nn.ParameterList(params)
        ema = ModelEmaV3(model, decay=0.9998)
        step = lambda: ema.update(model)
    seconds = []
    for _ in range(iters + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]
    count = sum(p.numel() for p in params)
    return {"optimizer": kind, "parameters": count, "median_s": statistics.median(seconds), "min_s": min(seconds)}


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])["median_s"]


def bench_executable():
    found = [p for p in (ROOT / "target/release/deps").glob("optim-*") if not p.suffix and os.access(p, os.X_OK)]
    benches = [p for p in found if b"median_s" in p.read_bytes()]
    if not benches:
        sys.exit("no bench found: run `cargo bench --bench optim --no-run` first")
    return str(max(benches, key=lambda p: p.stat().st_mtime))


def alternate(kind, iters, rounds):
    versions = [f"{kind}-fused", f"{kind}-foreach"] if kind in ("adamw", "sgd") else [kind]
    ours = [bench_executable(), "--optimizer", kind, "--iters", str(iters)]
    peer = [sys.executable, __file__, "--iters", str(iters), "--optimizer"]
    times = [(run(ours), [run(peer + [version]) for version in versions]) for _ in range(rounds)]
    line = {"optimizer": kind, "crate": round(statistics.median(own for own, _ in times), 4)}
    for i, version in enumerate(versions):
        line[version] = round(statistics.median(theirs[i] for _, theirs in times), 4)
        line[f"crate/{version}"] = round(statistics.median(own / theirs[i] for own, theirs in times), 3)
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="+", default=["adamw"], help="adamw, sgd (-fused, -foreach), lamb, clip, ema")
    parser.add_argument("--iters", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alternate", action="store_true", help="run the crate's bench and this in turn")
    flags = parser.parse_args()
    for kind in flags.optimizer:
        line = alternate(kind, flags.iters, flags.rounds) if flags.alternate else measure(kind, flags.iters)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
