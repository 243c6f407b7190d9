//! MAE's fine-tuning (arXiv 2111.06377).

use super::source::{rand_augment, Place, Preset, MASKSUB};

const FINETUNE: Place = Place::of("facebookresearch/mae", "FINETUNE.md");
const MAIN: Place = Place::of("facebookresearch/mae", "main_finetune.py");
const SCHEDULE: Place = Place::of("facebookresearch/mae", "util/lr_sched.py");
const DECAY: Place = Place::of("facebookresearch/mae", "util/lr_decay.py");
const DATASETS: Place = Place::of("facebookresearch/mae", "util/datasets.py");

/// Of B, L and H.
const BY_SIZE: [[Preset; 6]; 3] = [
    [
        FINETUNE.says("batch-size", "1024", "--batch_size 32 x --nodes 4 x 8"),
        FINETUNE.says("replicas", "32", "--nodes 4 x 8"),
        FINETUNE.says("epochs", "100", "--epochs 100"),
        FINETUNE.says("lr", "5e-4", "--blr 5e-4"),
        FINETUNE.says("layer-decay", "0.65", "--layer_decay 0.65"),
        FINETUNE.says("drop-path", "0.1", "--drop_path 0.1"),
    ],
    [
        FINETUNE.says("batch-size", "1024", "--batch_size 32 x --nodes 4 x 8"),
        FINETUNE.says("replicas", "32", "--nodes 4 x 8"),
        FINETUNE.says("epochs", "50", "--epochs 50"),
        FINETUNE.says("lr", "1e-3", "--blr 1e-3"),
        FINETUNE.says("layer-decay", "0.75", "--layer_decay 0.75"),
        FINETUNE.says("drop-path", "0.2", "--drop_path 0.2"),
    ],
    [
        FINETUNE.says("batch-size", "1024", "--batch_size 16 x --nodes 8 x 8"),
        FINETUNE.says("replicas", "64", "--nodes 8 x 8"),
        FINETUNE.says("epochs", "50", "--epochs 50"),
        FINETUNE.says("lr", "1e-3", "--blr 1e-3"),
        FINETUNE.says("layer-decay", "0.75", "--layer_decay 0.75"),
        FINETUNE.says("drop-path", "0.3", "--drop_path 0.3"),
    ],
];

const ALL: [Preset; 18] = [
    MAIN.says("drop-last", "true", "drop_last=True"),
    MAIN.says("optimizer", "adamw", "torch.optim.AdamW"),
    MAIN.says("eps", "1e-8", "torch.optim.AdamW: eps=1e-8"),
    MAIN.says("clip-grad", "0", "--clip_grad default=None"),
    FINETUNE.says("lr-per", "256", "lr = blr * effective batch size / 256"),
    FINETUNE.says("weight-decay", "0.05", "--weight_decay 0.05"),
    DECAY.says("decay-on", "matrices", "p.ndim == 1 or n in no_weight_decay_list"),
    SCHEDULE.says(
        "cosine",
        "after-warmup",
        "(epoch - args.warmup_epochs) / (args.epochs - args.warmup_epochs)",
    ),
    MAIN.says("warmup-epochs", "5", "--warmup_epochs default=5"),
    SCHEDULE.says("warmup-lr", "0", "args.lr * epoch / args.warmup_epochs"),
    MAIN.says("min-lr", "1e-6", "--min_lr default=1e-6"),
    MAIN.says("loss", "ce", "SoftTargetCrossEntropy()"),
    MAIN.says("label-smoothing", "0.1", "--smoothing default=0.1"),
    MASKSUB.says("sub-loss", "soft-ce", "CE: softmax of the main logits"),
    FINETUNE.says("mixup", "0.8", "--mixup 0.8"),
    FINETUNE.says("cutmix", "1", "--cutmix 1.0"),
    FINETUNE.says("random-erasing", "0.25", "--reprob 0.25"),
    DATASETS.says("interpolation", "bicubic", "interpolation='bicubic'"),
];

pub fn finetuning(size: usize) -> Vec<Preset> {
    let rand = rand_augment(MAIN, "--aa default='rand-m9-mstd0.5-inc1'");
    [&BY_SIZE[size][..], &ALL, &rand].concat()
}

pub const DIFFERENCES: [&str; 2] = [
    "the source computes in mixed precision, here everything is f32",
    "MaskSub's authors name a `vit_huge_patch16`, which MAE does not have: its H is cut in patches of 14 pixels",
];
