#!/usr/bin/env python3
"""The steps of `cargo bench --bench step` in plain PyTorch: a forward pass, a prediction, a plain step, a MaskSub step.

    python3 benches/peer/step.py --model deit3-small --batch 8 --iters 5

The models are what the crate's are (same sizes, same arithmetic), written the way PyTorch users write them: eager,
scaled-dot-product attention, float32. A step is forward and backward, without an optimizer. Prints one JSON object.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 1000


def drop_path(xs, rate, training):
    """timm's `drop_path` (timm/layers/drop.py): whole samples are multiplied by 0."""
    if rate == 0.0 or not training:
        return xs
    kept = xs.new_empty((len(xs),) + (1,) * (xs.dim() - 1)).bernoulli_(1.0 - rate)
    return xs * kept.div_(1.0 - rate)


class LayerScale(nn.Module):
    def __init__(self, width, init):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, xs):
        return xs * self.gamma


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, xs):
        batch, tokens, width = xs.shape
        qkv = self.qkv(xs).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        ys = F.scaled_dot_product_attention(q, k, v)
        return self.proj(ys.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width, 1e-4)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.ls2 = LayerScale(width, 1e-4)
        self.rate = 0.0

    def forward(self, xs):
        xs = xs + drop_path(self.ls1(self.attn(self.norm1(xs))), self.rate, self.training)
        return xs + drop_path(self.ls2(self.mlp(self.norm2(xs))), self.rate, self.training)


class DeiT3(nn.Module):
    """Sub-branch: tokens dropped after the position embedding."""

    def __init__(self, width, depth, heads, side, patch=16):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images, ratio=0.0):
        xs = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        if ratio > 0:
            batch, length, width = xs.shape
            keep = torch.rand(batch, length).argsort(1)[:, : num_keep(length, ratio)]
            xs = xs.gather(1, keep.unsqueeze(2).expand(-1, -1, width))
        xs = torch.cat([self.cls_token.expand(len(xs), -1, -1), xs], 1)
        return self.head(self.norm(self.blocks(xs))[:, 0])


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, xs):
        ys = F.relu(self.bn1(self.conv1(xs)), inplace=True)
        ys = F.relu(self.bn2(self.conv2(ys)), inplace=True)
        ys = self.bn3(self.conv3(ys))
        shortcut = xs if self.downsample is None else self.downsample(xs)
        return F.relu(ys + shortcut, inplace=True)


def hide_blocks(images, ratio, block=32):
    """Sets blocks of the images to 0."""
    batch, _, height, width = images.shape
    rows, columns = height // block, width // block
    keep = torch.rand(batch, rows * columns).argsort(1)[:, : num_keep(rows * columns, ratio)]
    kept = torch.zeros(batch, rows * columns).scatter_(1, keep, 1.0).reshape(batch, 1, rows, columns)
    return images * F.interpolate(kept, scale_factor=block)


class ResNet50(nn.Module):
    """Sub-branch: blocks of the image set to 0."""

    def __init__(self, _side):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        layers, inputs = [], 64
        for stage, depth in enumerate([3, 4, 6, 3]):
            width = 64 << stage
            for i in range(depth):
                layers.append(Bottleneck(inputs, width, 2 if i == 0 and stage > 0 else 1))
                inputs = 4 * width
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, images, ratio=0.0):
        if ratio > 0:
            images = hide_blocks(images, ratio)
        xs = F.relu(self.bn1(self.conv1(images)), inplace=True)
        xs = self.layers(F.max_pool2d(xs, 3, 2, 1))
        return self.fc(xs.mean((2, 3)))


class WindowAttention(nn.Module):
    def __init__(self, width, heads, window):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])

    def forward(self, xs, mask):
        windows, tokens, width = xs.shape
        qkv = self.qkv(xs).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            bias = bias + mask.repeat(windows // len(mask), 1, 1).unsqueeze(1)
        ys = F.scaled_dot_product_attention(q, k, v, bias)
        return self.proj(ys.transpose(1, 2).reshape(windows, tokens, width))


def windows_of(xs, window):
    batch, side, _, width = xs.shape
    count = side // window
    xs = xs.reshape(batch, count, window, count, window, width).transpose(2, 3)
    return xs.reshape(-1, window * window, width)


def windows_back(xs, window, side):
    count, width = side // window, xs.shape[-1]
    xs = xs.reshape(-1, count, count, window, window, width).transpose(2, 3)
    return xs.reshape(-1, side, side, width)


class SwinBlock(nn.Module):
    def __init__(self, width, heads, side, window, shift):
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        mask = None
        if shift:
            region = torch.zeros(1, side, side, 1)
            spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for i, rows in enumerate(spans):
                for j, columns in enumerate(spans):
                    region[:, rows, columns] = 3 * i + j
            region = windows_of(region, window).squeeze(2)
            mask = (region[:, None] != region[:, :, None]).float() * -100.0
        self.register_buffer("mask", mask)
        self.rate = 0.0

    def forward(self, xs):
        ys = self.norm1(xs)
        if self.shift:
            ys = ys.roll((-self.shift, -self.shift), (1, 2))
        ys = windows_back(self.attn(windows_of(ys, self.window), self.mask), self.window, self.side)
        if self.shift:
            ys = ys.roll((self.shift, self.shift), (1, 2))
        xs = xs + drop_path(ys, self.rate, self.training)
        return xs + drop_path(self.mlp(self.norm2(xs)), self.rate, self.training)


class Merge(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, xs):
        parts = [xs[:, 0::2, 0::2], xs[:, 1::2, 0::2], xs[:, 0::2, 1::2], xs[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class SwinTiny(nn.Module):
    """Sub-branch: blocks of 32 x 32 pixels behind a learned token, after the patch embedding."""

    def __init__(self, side, width=96, window=7):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.norm0 = nn.LayerNorm(width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        layers, side = [], side // 4
        for stage, (depth, heads) in enumerate(zip([2, 2, 6, 2], [3, 6, 12, 24])):
            if stage:
                layers.append(Merge(width))
                width, side = 2 * width, side // 2
            small = side <= window
            for i in range(depth):
                layers.append(SwinBlock(width, heads, side, window, 0 if small or i % 2 == 0 else window // 2))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images, ratio=0.0, block=32):
        xs = self.norm0(self.patch_embed(images).permute(0, 2, 3, 1))
        if ratio > 0:
            batch, side = len(xs), xs.shape[1]
            count = images.shape[2] // block
            keep = torch.rand(batch, count**2).argsort(1)[:, : num_keep(count**2, ratio)]
            kept = torch.zeros(batch, count**2).scatter_(1, keep, 1.0).reshape(batch, 1, count, count)
            kept = F.interpolate(kept, size=(side, side)).permute(0, 2, 3, 1)
            xs = xs * kept + self.mask_token * (1 - kept)
        return self.head(self.norm(self.layers(xs)).mean((1, 2)))


class PatchDrop(nn.Module):
    """In the place of timm's: the positions of the smallest noise are kept, those in front stay."""

    def __init__(self, prefix, with_indices):
        super().__init__()
        self.prefix, self.with_indices, self.ratio = prefix, with_indices, 0.0

    def forward(self, tokens):
        front, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        keep = None
        if self.ratio > 0:
            keep = torch.rand(patches.shape[:2]).argsort(1)[:, : num_keep(patches.shape[1], self.ratio)]
            patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([front, patches], 1)
        return (tokens, keep) if self.with_indices else tokens


class Timm(nn.Module):
    """timm's own model of a size. Sub-branch: dropped tokens in a ViT, hidden blocks in a ConvNeXt."""

    def __init__(self, name, side, **arguments):
        super().__init__()
        import timm

        sides = {} if "convnext" in name else {"img_size": side}
        self.model = timm.create_model(name, num_classes=CLASSES, **sides, **arguments)
        self.drops = hasattr(self.model, "patch_drop")
        if self.drops:
            self.model.patch_drop = PatchDrop(self.model.num_prefix_tokens, type(self.model).__name__ == "Eva")

    def forward(self, images, ratio=0.0):
        if self.drops:
            self.model.patch_drop.ratio = ratio
        elif ratio > 0:
            assert hasattr(self.model, "stem"), "timm's BEiT cannot drop tokens: --what plain"
            images = hide_blocks(images, ratio)
        return self.model(images)


def timms(name, **arguments):
    return lambda side: Timm(name, side, **arguments)


MODELS = {
    "deit-tiny-distilled": timms("deit_tiny_distilled_patch16_224"),
    "deit-small-distilled": timms("deit_small_distilled_patch16_224"),
    "dinov2-small": timms("vit_small_patch14_dinov2"),  # (with a head on the class token alone)
    "dinov2-reg4-small": timms("vit_small_patch14_reg4_dinov2"),
    "siglip-base": timms("vit_base_patch16_siglip_224", act_layer="gelu_tanh"),
    "beitv2-base": timms("beitv2_base_patch16_224"),
    "eva02-tiny": timms("eva02_tiny_patch14_224"),
    "eva02-small": timms("eva02_small_patch14_224"),
    "dinov3-small": timms("vit_small_patch16_dinov3", global_pool="token"),
    "convnext-tiny": timms("convnext_tiny"),
    "convnextv2-nano": timms("convnextv2_nano"),
    "deit3-tiny": lambda side: DeiT3(192, 12, 3, side),
    "deit3-small": lambda side: DeiT3(384, 12, 6, side),
    "deit3-base": lambda side: DeiT3(768, 12, 12, side),
    "deit3-large": lambda side: DeiT3(1024, 24, 16, side),
    "deit3-huge": lambda side: DeiT3(1280, 32, 16, side, patch=14),
    "resnet50": ResNet50,
    "swin-tiny": SwinTiny,
}


def set_drop_path(model, rate):
    """The same rate in every block of a ViT, growing to it in a Swin, as the recipes have it."""
    blocks = [block for block in model.modules() if isinstance(block, (Block, SwinBlock))]
    assert blocks or rate == 0.0, "--drop-path is for a ViT or a Swin"
    for i, block in enumerate(blocks):
        block.rate = rate if isinstance(block, Block) else rate * i / (len(blocks) - 1)


def num_keep(length, ratio):
    return max(1, int(length * (1 - ratio) + 1e-6))


def soft_cross_entropy(logits, target):
    return -(target.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def step(what, model, images, labels, ratio):
    if what == "forward":
        return model(images)
    if what == "evaluate":
        with torch.no_grad():
            return model(images)
    # Gradients anew in every step, as the crate gives them.
    model.zero_grad(set_to_none=True)
    main = model(images)
    weight = 0.5 if what == "masksub" else 1.0
    (weight * F.cross_entropy(main, labels)).backward()
    if what == "masksub":
        (weight * soft_cross_entropy(model(images, ratio), main.detach())).backward()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="deit3-small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--iters", type=int, default=5)
    parser.add_argument("--what", choices=["forward", "evaluate", "plain", "masksub"], default="masksub")
    flags = parser.parse_args()

    torch.manual_seed(0)
    model = MODELS[flags.model](flags.image_size).train(flags.what != "evaluate")
    set_drop_path(model, flags.drop_path)
    images = torch.rand(flags.batch, 3, flags.image_size, flags.image_size) * 2 - 1
    labels = torch.arange(flags.batch)
    seconds = []
    for i in range(flags.iters + 1):
        start = time.perf_counter()
        step(flags.what, model, images, labels, flags.ratio)
        if i > 0:  # the first warms up
            seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "what": flags.what,
                "model": flags.model,
                "batch": flags.batch,
                "ratio": flags.ratio,
                "drop_path": flags.drop_path,
                "median_s": statistics.median(seconds),
                "min_s": min(seconds),
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
