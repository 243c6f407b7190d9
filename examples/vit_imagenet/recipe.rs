//! The training recipes of the paper, as flags: what each sets for a model.
//!
//! MaskSub (arXiv 2306.11339) keeps each recipe as it is published and adds the sub-branch. The values are those of
//! DeiT-III (arXiv 2204.07118), MAE (2111.06377), FT-CLIP (2212.06138, with what its scripts leave at their defaults),
//! ResNet strikes back (A2 of 2110.00476) and Swin (2103.14030). What input each model takes, its normalisation and the
//! share that evaluation crops are the model's, not the recipe's.

use clap::ValueEnum;

/// Whose settings are the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Recipe {
    /// AdamW on plain images: what the digits are trained by
    Plain,
    /// DeiT-III on ImageNet-1k for 400 epochs; with --epochs 800 its longer version
    Deit3,
    /// DeiT-III's fine-tuning at 224 pixels
    Deit3Finetune,
    /// MAE's fine-tuning
    MaeFinetune,
    /// FT-CLIP's fine-tuning
    ClipFinetune,
    /// ResNet strikes back, A2
    ResnetRsb,
    /// Swin on ImageNet-1k
    Swin,
}

/// The models of the paper, smallest first: where a value differs by model, values stand in this order.
const DEIT3: [&str; 4] = ["deit3-small", "deit3-base", "deit3-large", "deit3-huge"];
const MAE: [&str; 3] = ["mae-base", "mae-large", "mae-huge"];
const CLIP: [&str; 2] = ["clip-base", "clip-large"];
const SWIN: [&str; 3] = ["swin-tiny", "swin-small", "swin-base"];

/// What the recipes have in common, beside what a flag's default says.
const COMMON: &str = "--decay-on matrices";
/// timm's `rand-m9-mstd0.5-inc1`, and the targets that go with it.
const RAND_AUGMENT: &str =
    "--auto-augment rand-augment --magnitude 9 --loss ce --label-smoothing 0.1 --sub-loss soft-ce";
const MIXED: &str = "--mixup 0.8 --cutmix 1";

impl Recipe {
    /// The networks that the paper trains by it, the smallest first.
    pub fn models(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Deit3 | Self::Deit3Finetune => &DEIT3,
            Self::MaeFinetune => &MAE,
            Self::ClipFinetune => &CLIP,
            Self::ResnetRsb => &["resnet50", "resnet101", "resnet152"],
            Self::Swin => &SWIN,
        }
    }

    /// The flags that the recipe stands for, with `model`; `epochs` are those asked for. A model that the paper does not
    /// train by it has the values of the smallest that it does.
    pub fn flags(self, model: &str, epochs: Option<usize>) -> String {
        let place = |models: &[&str]| models.iter().position(|name| *name == model).unwrap_or(0);
        match self {
            Self::Plain => String::new(),
            Self::Deit3 => deit3(place(&DEIT3), epochs.is_some_and(|epochs| epochs >= 800)),
            Self::Deit3Finetune => deit3_finetune(place(&DEIT3), DEIT3.contains(&model)),
            Self::MaeFinetune => mae_finetune(place(&MAE)),
            Self::ClipFinetune => clip_finetune(place(&CLIP)),
            Self::ResnetRsb => resnet_rsb(),
            Self::Swin => swin(place(&SWIN)),
        }
    }
}

/// Binary cross-entropy in which every class that was mixed in is 1.
const DEIT3_LOSS: &str = "--loss bce-hard --label-smoothing 0 --sub-loss bce";

fn deit3(size: usize, long: bool) -> String {
    let (epochs, decay, drop_path) = if long {
        (800, 0.05, [0.05, 0.2, 0.45, 0.6])
    } else {
        (400, 0.03, [0.0, 0.1, 0.4, 0.5])
    };
    let (lr, drop_path) = ([4e-3, 3e-3, 3e-3, 3e-3][size], drop_path[size]);
    format!(
        "{COMMON} --batch-size 2048 --epochs {epochs} --optimizer lamb --eps 1e-8 --lr {lr} --weight-decay {decay} \
         --cosine per-epoch --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5 {DEIT3_LOSS} --drop-path {drop_path} {MIXED} \
         --auto-augment three-augment --color-jitter 0.3 --repeated-augment 3 --ema 0.99996"
    )
}

fn deit3_finetune(size: usize, of_paper: bool) -> String {
    // Not published for S, which is trained at 224 pixels from the start.
    let drop_path = [0.0, 0.2, 0.45, 0.55][size];
    let image_size = if of_paper { "--image-size 224" } else { "" };
    format!(
        "{COMMON} {image_size} --batch-size 512 --epochs 20 --optimizer adamw --eps 1e-8 --lr 1e-5 --weight-decay 0.1 \
         --cosine per-epoch --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5 {RAND_AUGMENT} --drop-path {drop_path} {MIXED} \
         --ema 0.99996"
    )
}

fn mae_finetune(size: usize) -> String {
    let (epochs, lr) = ([100, 50, 50][size], [5e-4, 1e-3, 1e-3][size]);
    let (layer_decay, drop_path) = ([0.65, 0.75, 0.75][size], [0.1, 0.2, 0.3][size]);
    format!(
        "{COMMON} --batch-size 1024 --epochs {epochs} --optimizer adamw --eps 1e-8 --lr {lr} --lr-per 256 \
         --weight-decay 0.05 --layer-decay {layer_decay} --cosine after-warmup --warmup-epochs 5 --warmup-lr 0 --min-lr 1e-6 \
         {RAND_AUGMENT} --drop-path {drop_path} {MIXED} --random-erasing 0.25"
    )
}

fn clip_finetune(size: usize) -> String {
    let (epochs, warmup, lr, layer_decay) = ([50, 30][size], [10, 5][size], [6e-4, 4e-4][size], [0.6, 0.65][size]);
    format!(
        "{COMMON} --batch-size 2048 --epochs {epochs} --optimizer adamw --eps 1e-8 --lr {lr} --weight-decay 0.05 \
         --layer-decay {layer_decay} --cosine after-warmup --warmup-epochs {warmup} --warmup-lr 1e-6 --min-lr 1e-6 \
         {RAND_AUGMENT} --drop-path 0 --mixup 0 --cutmix 0 --random-erasing 0.25 --ema 0.9998"
    )
}

fn resnet_rsb() -> String {
    format!(
        "{COMMON} --batch-size 2048 --epochs 300 --optimizer lamb --eps 1e-6 --lr 5e-3 --weight-decay 0.02 --cosine per-epoch \
         --warmup-epochs 5 --warmup-lr 1e-4 --min-lr 1e-6 --loss bce --label-smoothing 0 --sub-loss bce --drop-path 0.05 \
         --mixup 0.1 --cutmix 1 --auto-augment rand-augment --magnitude 7 --interpolation random --repeated-augment 3"
    )
}

fn swin(size: usize) -> String {
    let drop_path = [0.2, 0.3, 0.5][size];
    format!(
        "{COMMON} --batch-size 1024 --epochs 300 --optimizer adamw --eps 1e-8 --lr 5e-4 --lr-per 512 --weight-decay 0.05 \
         --clip-grad 5 --cosine per-step --warmup-epochs 20 --warmup-lr 5e-7 --min-lr 5e-6 --scale-ends true {RAND_AUGMENT} \
         --drop-path {drop_path} {MIXED} --random-erasing 0.25 --color-jitter 0.4"
    )
}
