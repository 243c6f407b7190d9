#!/usr/bin/env python3
"""The input pipelines of `cargo bench --bench pipeline` with torchvision: Pillow images, its DataLoader, as recipes do.

    python3 benches/peer/pipeline.py --data TREE --recipe three-augment --threads 2

The tree is one that the bench made (`--data TREE`). 3-Augment is composed of torchvision's transforms and Pillow's blur,
as DeiT-III's code has it; RandAugment and random erasing are timm's, as in the fine-tuning recipes, since torchvision's own
draw from other operations. `--threads` is the number of the loader's worker processes. Prints one JSON object.
"""

import argparse
import json
import random
import statistics
import time

import torch
from PIL import ImageFilter, ImageOps
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class GaussianBlur:
    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def recipe(name):
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [
        transforms.RandomResizedCrop(SIDE, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
    ]
    if name == "crop":
        return crop + to_tensor
    if name == "three-augment":
        one = [transforms.Grayscale(3), transforms.RandomSolarize(128, p=1.0), GaussianBlur()]
        return crop + [transforms.RandomChoice(one), transforms.ColorJitter(0.3, 0.3, 0.3)] + to_tensor
    if name == "rand-augment":
        from timm.data import auto_augment
        from timm.data.random_erasing import RandomErasing

        # Pillow 13 no longer takes the 0 bits that timm asks for at magnitude 10.
        auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: ImageOps.posterize(image, max(bits, 1))
        fill = tuple(round(255 * mean) for mean in MEAN)
        settings = {"translate_const": int(SIDE * 0.45), "img_mean": fill, "interpolation": 3}  # bicubic
        rand_augment = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", settings)
        return crop + [rand_augment] + to_tensor + [RandomErasing(0.25, mode="pixel", device="cpu")]
    resize = transforms.Resize(int(SIDE / 0.875), interpolation=InterpolationMode.BICUBIC)
    return [resize, transforms.CenterCrop(SIDE)] + to_tensor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", choices=["crop", "three-augment", "rand-augment", "eval"], required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--iters", type=int, default=3)
    flags = parser.parse_args()

    data = datasets.ImageFolder(f"{flags.data}/train", transforms.Compose(recipe(flags.recipe)))
    # Workers that stay, and one batch ahead of each: its fastest setting.
    loader = torch.utils.data.DataLoader(
        data, flags.batch, shuffle=True, num_workers=flags.threads, persistent_workers=True
    )
    rates = []
    for epoch in range(flags.iters + 1):
        start = time.perf_counter()
        images = sum(len(labels) for _, labels in loader)
        if epoch > 0:  # the first starts the workers
            rates.append(images / (time.perf_counter() - start))
    rate = statistics.median(rates)
    line = {"recipe": flags.recipe, "threads": flags.threads, "images": len(data), "images_per_s": rate}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
