"""Time and peak memory of making a ViT from a checkpoint, beside PyTorch's torch.load and load_state_dict.

    python benches/peer/load.py --models large huge --endings pth safetensors --rounds 5 --directory /tmp

Writes the files, of random weights, where they are not there yet. Both run in processes of their own, in turn, and
PyTorch in three ways:

- `into`: its model is made before the clock starts, so that its memory is there, and is copied into;
- `whole`: from nothing to the model, as users write it: the model is made, which draws its weights, and filled;
- `assign`: from nothing without drawing or copying: the model is made on the meta device and takes the tensors of the
  file as they are (`assign=True`). Of a .safetensors these are the mapped file, of which nothing is read yet: both are
  timed until each weight was read once (its sum).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SIZES = {"base": "vit_base_patch16_224", "large": "vit_large_patch16_224", "huge": "vit_huge_patch14_224"}


def write(path, model):
    import timm
    import torch
    from safetensors.torch import save_file

    state = timm.create_model(SIZES[model], num_classes=1000).state_dict()
    if path.endswith(".pth"):
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt"})


def peer(path, model, way):
    import resource

    import timm
    import torch
    from safetensors.torch import load_file

    torch.set_grad_enabled(False)
    make = lambda: timm.create_model(SIZES[model], num_classes=1000)  # noqa: E731
    made = make() if way == "into" else None
    start = time.perf_counter()
    if way == "assign":
        with torch.device("meta"):
            made = make()
    made = made or make()
    state = torch.load(path) if path.endswith(".pth") else load_file(path)
    made.load_state_dict(state, assign=way == "assign")
    if way == "assign":
        for weight in made.parameters():
            weight.sum().item()
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "file_bytes": os.path.getsize(path)}))


def run(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["large", "huge"])
    parser.add_argument("--endings", nargs="+", choices=["pth", "safetensors"], default=["pth", "safetensors"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=".")
    parser.add_argument("--ways", nargs="+", choices=["into", "whole", "assign"], default=["into", "whole", "assign"])
    parser.add_argument("--peer", nargs=3, metavar=("FILE", "MODEL", "WAY"), help=argparse.SUPPRESS)
    parser.add_argument("--bench", nargs="+", default=["cargo", "bench", "-q", "--bench", "load", "--"])
    flags = parser.parse_args()
    if flags.peer:
        return peer(*flags.peer)
    for model in flags.models:
        for ending in flags.endings:
            path = os.path.join(flags.directory, f"{SIZES[model]}.{ending}")
            if not os.path.exists(path):
                write(path, model)
            ours, theirs = [], {way: [] for way in flags.ways}
            for _ in range(flags.rounds):
                ours.append(run([*flags.bench, "--file", path, "--model", f"mae-{model}"]))
                for way in flags.ways:
                    theirs[way].append(run([sys.executable, __file__, "--peer", path, model, way]))
            file = ours[0]["file_bytes"]
            median = lambda runs, key: statistics.median(run[key] for run in runs)  # noqa: E731
            print(f"{SIZES[model]}.{ending}, {file >> 20} MiB; peak memory {median(ours, 'peak_bytes') / file:.2f} of it")
            for way, runs in theirs.items():
                key = "read_seconds" if way == "assign" else "seconds"
                ratios = sorted(a[key] / b["seconds"] for a, b in zip(ours, runs))
                print(
                    f"  {way}: {median(ours, key):.2f} s beside {median(runs, 'seconds'):.2f} s, "
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
                    f"peak memory beside {median(runs, 'peak_bytes') / file:.2f}"
                )


if __name__ == "__main__":
    main()
