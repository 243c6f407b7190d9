#!/usr/bin/env python3
"""The MaskSub step of `benches/ranks.rs` under PyTorch's DistributedDataParallel, with gloo.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benches/peer/ranks.py --model deit3-tiny --batch 8 --iters 5

The main half's backward adds its gradients locally (no_sync), the sub half's sends the sum while it runs.
"""

import argparse
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from step import MODELS, soft_cross_entropy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="deit3-tiny")
    parser.add_argument("--batch", type=int, default=8, help="images of all ranks")
    parser.add_argument("--iters", type=int, default=5)
    flags = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = torch.nn.parallel.DistributedDataParallel(MODELS[flags.model](224).train())
    batch = flags.batch // dist.get_world_size()
    images, labels = torch.rand(batch, 3, 224, 224) * 2 - 1, torch.arange(batch)
    seconds = []
    for i in range(flags.iters + 1):
        dist.barrier()
        start = time.perf_counter()
        model.zero_grad(set_to_none=True)
        with model.no_sync():
            main = model(images)
            (0.5 * F.cross_entropy(main, labels)).backward()
        (0.5 * soft_cross_entropy(model(images, 0.5), main.detach())).backward()
        if i > 0:  # the first warms up
            seconds.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        print(f"{flags.model} batch {flags.batch} on {dist.get_world_size()} ranks: median {statistics.median(seconds):.4f} s a step")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
