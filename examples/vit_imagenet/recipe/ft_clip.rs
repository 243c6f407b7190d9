//! FT-CLIP's fine-tuning (arXiv 2212.06138).

use super::source::{rand_augment, Place, Preset, MASKSUB};

const B16: Place = Place::of("LightDXY/FT-CLIP", "scripts/bash_fine_Openai_CLIP_P16.sh");
const B16_384: Place = Place::of("LightDXY/FT-CLIP", "scripts/bash_fine_Openai_CLIP_P16_384_FT_ZIP.sh");
const L14: Place = Place::of("LightDXY/FT-CLIP", "scripts/bash_fine_Openai_CLIP_Large_P14.sh");
const L14_336: Place = Place::of("LightDXY/FT-CLIP", "scripts/bash_fine_Openai_CLIP_Large_P14_336.sh");
const L14_336_LOG: Place = Place::of("LightDXY/FT-CLIP", "logs/CLIP_L14_336.log");
const MAIN: Place = Place::of("LightDXY/FT-CLIP", "run_class_finetuning.py");
const MODEL: Place = Place::of("LightDXY/FT-CLIP", "models/finetune_clip.py");
const OPTIM: Place = Place::of("LightDXY/FT-CLIP", "optim_factory.py");
const UTILS: Place = Place::of("LightDXY/FT-CLIP", "utils.py");

const PATCHES: &str = "clip.vision_model.embeddings.patch_embedding";

/// Of B/16 at 224 and 384 pixels, L/14 at 224 and 336.
const BY_SIZE: [[Preset; 5]; 4] = [
    [
        B16.says(
            "batch-size",
            "2048",
            "--nproc_per_node=8 x --batch_size 256 x --update_freq 1",
        ),
        B16.says("epochs", "50", "--epochs 50"),
        B16.says("lr", "6e-4", "--lr 6e-4"),
        B16.says("warmup-epochs", "10", "--warmup_epochs 10"),
        B16.says("layer-decay", "0.6", "--layer_decay 0.6"),
    ],
    [
        B16_384.says(
            "batch-size",
            "2048",
            "--nproc_per_node=8 x --batch_size 64 x --update_freq 4",
        ),
        B16_384.says("epochs", "50", "--epochs 50"),
        B16_384.says("lr", "7e-4", "--lr 7e-4"),
        B16_384.says("warmup-epochs", "10", "--warmup_epochs 10"),
        B16_384.says("layer-decay", "0.6", "--layer_decay 0.6"),
    ],
    [
        L14.says(
            "batch-size",
            "2048",
            "--nproc_per_node=8 x --batch_size 64 x --update_freq 4",
        ),
        L14.says("epochs", "30", "--epochs 30"),
        L14.says("lr", "4e-4", "--lr 4e-4"),
        L14.says("warmup-epochs", "5", "--warmup_epochs 5"),
        L14.says("layer-decay", "0.65", "--layer_decay 0.65"),
    ],
    [
        // 24 devices x 20 x 4: the script leaves the number of nodes to the environment.
        L14_336_LOG.says("batch-size", "1920", "Batch size = 1920"),
        L14_336.says("epochs", "30", "--epochs 30"),
        L14_336.says("lr", "6e-4", "--lr 6e-4"),
        L14_336.says("warmup-epochs", "5", "--warmup_epochs 5"),
        L14_336.says("layer-decay", "0.65", "--layer_decay 0.65"),
    ],
];

const ALL: [Preset; 18] = [
    MAIN.says("drop-last", "true", "drop_last=True"),
    MAIN.says("optimizer", "adamw", "--opt default='adamw'"),
    MAIN.says("eps", "1e-8", "--opt_eps default=1e-8"),
    MAIN.says("clip-grad", "0", "--clip_grad default=None"),
    B16.says("weight-decay", "0.05", "--weight_decay 0.05"),
    OPTIM.says(
        "decay-on",
        "matrices",
        "len(param.shape) == 1 or name.endswith(\".bias\") or name in skip_list",
    ),
    UTILS.says(
        "cosine",
        "after-warmup",
        "np.arange(epochs * niter_per_ep - warmup_iters)",
    ),
    UTILS.says("warmup-lr", "0", "start_warmup_value=0"),
    MAIN.says("min-lr", "1e-6", "--min_lr default=1e-6"),
    MAIN.says("loss", "ce", "LabelSmoothingCrossEntropy"),
    MAIN.says("label-smoothing", "0.1", "--smoothing default=0.1"),
    MASKSUB.says("sub-loss", "soft-ce", "CE: softmax of the main logits"),
    B16.says("drop-path", "0", "--drop_path 0"),
    B16.says("mixup", "0", "--mixup 0"),
    B16.says("cutmix", "0", "--cutmix 0"),
    MAIN.says("random-erasing", "0.25", "--reprob default=0.25"),
    MAIN.says("interpolation", "bicubic", "--train_interpolation default='bicubic'"),
    B16.says("ema", "0.9998", "--model_ema_decay 0.9998"),
];

/// A model of another name has the values of the first, but for what is frozen.
pub fn finetuning(size: Option<usize>) -> Vec<Preset> {
    let rand = rand_augment(MAIN, "--aa default='rand-m9-mstd0.5-inc1'");
    let freeze = match size {
        Some(0 | 2) => MODEL.says("freeze", PATCHES, "freeze_conv1: bool = True"),
        _ => MODEL.says("freeze", "", "'freeze_conv1': False"),
    };
    [&BY_SIZE[size.unwrap_or(0)][..], &[freeze], &ALL, &rand].concat()
}

pub const DIFFERENCES: [&str; 3] = [
    "the source computes in f16 (DeepSpeed), here everything is f32",
    "the source's warm-up comes to its highest rate at its last step (linspace), here one step later",
    "--warmup_lr 1e-6 is read by the source and never handed to its schedule, so that it is 0 there, too",
];
