//! DeiT-III (arXiv 2204.07118): training on ImageNet-1k, and fine-tuning at 224 pixels.

use super::source::{rand_augment, Place, Preset, MASKSUB};

const README: Place = Place::of("facebookresearch/deit", "README_revenge.md");
const MAIN: Place = Place::of("facebookresearch/deit", "main.py");
const ENGINE: Place = Place::of("facebookresearch/deit", "engine.py");
const SAMPLERS: Place = Place::of("facebookresearch/deit", "samplers.py");
const AUGMENT: Place = Place::of("facebookresearch/deit", "augment.py");
const TIMM: Place = Place::of("timm 0.3.2", "optim/optim_factory.py");
/// DeiT-III for 400 epochs, by MaskSub's first author, for another paper (arXiv 2403.13298); there is no H.
const ROPE: Place = Place::of("naver-ai/rope-vit", "deit/README.md");

/// Of S, B, L and H.
type BySize = [Preset; 4];

const BATCH: BySize = [
    README.says("batch-size", "2048", "--batch 256 x --nodes 1 x --ngpus 8"),
    README.says("batch-size", "2048", "--batch 256 x --nodes 1 x --ngpus 8"),
    README.says("batch-size", "2048", "--batch 64 x --nodes 4 x --ngpus 8"),
    README.says("batch-size", "2048", "--batch 64 x --nodes 4 x --ngpus 8"),
];
const REPLICAS: BySize = [
    README.says("replicas", "8", "--nodes 1 x --ngpus 8"),
    README.says("replicas", "8", "--nodes 1 x --ngpus 8"),
    README.says("replicas", "32", "--nodes 4 x --ngpus 8"),
    README.says("replicas", "32", "--nodes 4 x --ngpus 8"),
];
const LR: BySize = [
    README.says("lr", "4e-3", "--lr 4e-3"),
    README.says("lr", "3e-3", "--lr 3e-3"),
    README.says("lr", "3e-3", "--lr 3e-3"),
    README.says("lr", "3e-3", "--lr 3e-3"),
];
/// Epochs, weight decay and drop path of S, B, L and H where training is short.
const SHORT: [[Preset; 3]; 4] = [
    short(ROPE.says("drop-path", "0", "--drop-path 0.0")),
    short(ROPE.says("drop-path", "0.1", "--drop-path 0.1")),
    short(ROPE.says("drop-path", "0.4", "--drop-path 0.4")),
    [
        MASKSUB.says("epochs", "400", "epochs 400"),
        MASKSUB.says("weight-decay", "0.03", "400 epochs: weight decay .03"),
        MASKSUB.says("drop-path", "0.5", "400 epochs, H: drop path .5"),
    ],
];
const fn short(drop_path: Preset) -> [Preset; 3] {
    [
        ROPE.says("epochs", "400", "--epochs 400"),
        ROPE.says("weight-decay", "0.03", "--weight-decay 0.03"),
        drop_path,
    ]
}
const DROP_PATH_800: BySize = [
    README.says("drop-path", "0.05", "--drop-path 0.05"),
    README.says("drop-path", "0.2", "--drop-path 0.2"),
    README.says("drop-path", "0.45", "--drop-path 0.45"),
    README.says("drop-path", "0.6", "--drop-path 0.6"),
];

/// What training and fine-tuning have in common.
const BOTH: [Preset; 13] = [
    MAIN.says("drop-last", "true", "drop_last=True"),
    TIMM.says("decay-on", "matrices", "filter_bias_and_bn=True"),
    MAIN.says("eps", "1e-8", "--opt-eps default=1e-8"),
    MAIN.says("clip-grad", "0", "--clip-grad default=None"),
    README.says("cosine", "per-epoch", "--sched cosine"),
    MAIN.says("lr-delay", "1", "lr_scheduler.step(epoch), after the epoch"),
    README.says("warmup-epochs", "5", "--warmup-epochs 5"),
    README.says("warmup-lr", "1e-6", "--warmup-lr 1e-6"),
    MAIN.says("min-lr", "1e-5", "--min-lr default=1e-5"),
    README.says("mixup", "0.8", "--mixup .8"),
    README.says("cutmix", "1", "--cutmix 1.0"),
    README.says("random-erasing", "0", "--reprob 0.0"),
    MAIN.says("ema", "0.99996", "--model-ema-decay default=0.99996"),
];

pub fn training(size: usize, long: bool) -> Vec<Preset> {
    let [epochs, decay, drop_path] = if long {
        let decay = README.says("weight-decay", "0.05", "--weight-decay 0.05");
        [README.says("epochs", "800", "--epochs 800"), decay, DROP_PATH_800[size]]
    } else {
        SHORT[size]
    };
    let own = [
        BATCH[size],
        REPLICAS[size],
        epochs,
        README.says("optimizer", "lamb", "--opt fusedlamb"),
        LR[size],
        decay,
        // Binary cross-entropy in which every class that was mixed in is 1.
        ENGINE.says("loss", "bce-hard", "--bce-loss: targets.gt(0.0)"),
        README.says("label-smoothing", "0", "--smoothing 0.0"),
        MASKSUB.says("sub-loss", "bce", "BCE: sigmoid of the main logits"),
        drop_path,
        README.says("auto-augment", "three-augment", "--ThreeAugment"),
        README.says("color-jitter", "0.3", "--color-jitter 0.3"),
        AUGMENT.says("interpolation", "bicubic", "interpolation='bicubic'"),
        SAMPLERS.says("repeated-augment", "3", "num_repeats: int = 3"),
    ];
    [&own[..], &BOTH].concat()
}

const FINETUNE_BATCH: [[Preset; 3]; 3] = [
    [
        README.says("batch-size", "512", "--batch 64 x --nodes 1 x --ngpus 8"),
        README.says("replicas", "8", "--nodes 1 x --ngpus 8"),
        README.says("drop-path", "0.2", "--drop-path 0.2"),
    ],
    [
        README.says("batch-size", "512", "--batch 64 x --nodes 1 x --ngpus 8"),
        README.says("replicas", "8", "--nodes 1 x --ngpus 8"),
        README.says("drop-path", "0.45", "--drop-path 0.45"),
    ],
    [
        README.says("batch-size", "512", "--batch 32 x --nodes 2 x --ngpus 8"),
        README.says("replicas", "16", "--nodes 2 x --ngpus 8"),
        README.says("drop-path", "0.55", "--drop-path 0.55"),
    ],
];

/// Of B, L and H.
pub fn finetuning(size: usize, of_deit3: bool) -> Vec<Preset> {
    let own = [
        README.says("epochs", "20", "--epochs 20"),
        README.says("optimizer", "adamw", "--opt adamw"),
        README.says("lr", "1e-5", "--lr 1e-5"),
        README.says("weight-decay", "0.1", "--weight-decay 0.1"),
        MAIN.says("loss", "ce", "SoftTargetCrossEntropy()"),
        README.says("label-smoothing", "0.1", "--smoothing 0.1"),
        MASKSUB.says("sub-loss", "soft-ce", "CE: softmax of the main logits"),
        MAIN.says("interpolation", "bicubic", "--train-interpolation default='bicubic'"),
        README.says("repeated-augment", "1", "--no-repeated-aug"),
    ];
    let image_size = [README.says("image-size", "224", "--input-size 224")];
    let image_size = if of_deit3 { &image_size[..] } else { &[] };
    let rand = rand_augment(README, "--aa rand-m9-mstd0.5-inc1");
    [image_size, &FINETUNE_BATCH[size], &own, &rand, &BOTH].concat()
}

pub const DIFFERENCES: [&str; 3] = [
    FINETUNE_DIFFERENCES[0],
    "the source's LAMB is apex's FusedLAMB, which clips gradients to a norm of 1 as timm's LAMB here does",
    "the source's README writes `--repeated-aug--bce-loss` for S, without the space: read as for B, L and H",
];

pub const FINETUNE_DIFFERENCES: [&str; 1] = ["the source computes in mixed precision, here everything is f32"];
