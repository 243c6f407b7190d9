//! Swin on ImageNet-1k (arXiv 2103.14030).

use super::source::{rand_augment, Place, Preset, MASKSUB};

const CONFIG: Place = Place::of("microsoft/Swin-Transformer", "config.py");
const START: Place = Place::of("microsoft/Swin-Transformer", "get_started.md");
const MAIN: Place = Place::of("microsoft/Swin-Transformer", "main.py");
const SCHEDULE: Place = Place::of("microsoft/Swin-Transformer", "lr_scheduler.py until 22e57f4");
const OPTIMIZER: Place = Place::of("microsoft/Swin-Transformer", "optimizer.py");
const BUILD: Place = Place::of("microsoft/Swin-Transformer", "data/build.py");
const TINY: Place = Place::of(
    "microsoft/Swin-Transformer",
    "configs/swin/swin_tiny_patch4_window7_224.yaml",
);
const SMALL: Place = Place::of(
    "microsoft/Swin-Transformer",
    "configs/swin/swin_small_patch4_window7_224.yaml",
);
const BASE: Place = Place::of(
    "microsoft/Swin-Transformer",
    "configs/swin/swin_base_patch4_window7_224.yaml",
);

/// Of T, S and B.
const BY_SIZE: [[Preset; 3]; 3] = [
    [
        START.says("batch-size", "1024", "--nproc_per_node 8 x --batch-size 128"),
        START.says("replicas", "8", "--nproc_per_node 8"),
        TINY.says("drop-path", "0.2", "DROP_PATH_RATE: 0.2"),
    ],
    [
        START.says("batch-size", "1024", "--nproc_per_node 8 x --batch-size 128"),
        START.says("replicas", "8", "--nproc_per_node 8"),
        SMALL.says("drop-path", "0.3", "DROP_PATH_RATE: 0.3"),
    ],
    [
        // What is accumulated is mixed by itself, as what another device has.
        START.says(
            "batch-size",
            "1024",
            "--nproc_per_node 8 x --batch-size 64 x --accumulation-steps 2",
        ),
        START.says("replicas", "16", "--nproc_per_node 8 x --accumulation-steps 2"),
        BASE.says("drop-path", "0.5", "DROP_PATH_RATE: 0.5"),
    ],
];

const ALL: [Preset; 22] = [
    BUILD.says("drop-last", "true", "drop_last=True"),
    CONFIG.says("epochs", "300", "_C.TRAIN.EPOCHS = 300"),
    CONFIG.says("optimizer", "adamw", "_C.TRAIN.OPTIMIZER.NAME = 'adamw'"),
    CONFIG.says("eps", "1e-8", "_C.TRAIN.OPTIMIZER.EPS = 1e-8"),
    CONFIG.says("lr", "5e-4", "_C.TRAIN.BASE_LR = 5e-4"),
    MAIN.says(
        "lr-per",
        "512",
        "config.TRAIN.BASE_LR * config.DATA.BATCH_SIZE * dist.get_world_size() / 512.0",
    ),
    CONFIG.says("weight-decay", "0.05", "_C.TRAIN.WEIGHT_DECAY = 0.05"),
    OPTIMIZER.says(
        "decay-on",
        "matrices",
        "len(param.shape) == 1 or name.endswith(\".bias\") or (name in skip_list)",
    ),
    CONFIG.says("clip-grad", "5", "_C.TRAIN.CLIP_GRAD = 5.0"),
    SCHEDULE.says("cosine", "per-step", "t_initial=num_steps, t_in_epochs=False"),
    MAIN.says(
        "lr-delay",
        "1",
        "lr_scheduler.step_update(epoch * num_steps + idx), after the step",
    ),
    CONFIG.says("warmup-epochs", "20", "_C.TRAIN.WARMUP_EPOCHS = 20"),
    CONFIG.says("warmup-lr", "5e-7", "_C.TRAIN.WARMUP_LR = 5e-7"),
    CONFIG.says("min-lr", "5e-6", "_C.TRAIN.MIN_LR = 5e-6"),
    MAIN.says("scale-ends", "true", "linear_scaled_warmup_lr, linear_scaled_min_lr"),
    MAIN.says("loss", "ce", "SoftTargetCrossEntropy()"),
    CONFIG.says("label-smoothing", "0.1", "_C.MODEL.LABEL_SMOOTHING = 0.1"),
    MASKSUB.says("sub-loss", "soft-ce", "CE: softmax of the main logits"),
    CONFIG.says("mixup", "0.8", "_C.AUG.MIXUP = 0.8"),
    CONFIG.says("cutmix", "1", "_C.AUG.CUTMIX = 1.0"),
    CONFIG.says("random-erasing", "0.25", "_C.AUG.REPROB = 0.25"),
    CONFIG.says("color-jitter", "0.4", "_C.AUG.COLOR_JITTER = 0.4"),
];

pub fn training(size: usize) -> Vec<Preset> {
    let rand = rand_augment(CONFIG, "_C.AUG.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'");
    let interpolation = CONFIG.says("interpolation", "bicubic", "_C.DATA.INTERPOLATION = 'bicubic'");
    [&BY_SIZE[size][..], &ALL, &rand, &[interpolation]].concat()
}

pub const DIFFERENCES: [&str; 3] = [
    "since 22e57f4 (October 2022) the source's cosine begins after the warm-up (WARMUP_PREFIX = True), not under it as when \
     its models were trained: --cosine after-warmup",
    "colour jitter is off beside RandAugment, in the source too (timm's create_transform)",
    "the source computes in mixed precision, here everything is f32",
];
