//! ResNet strikes back, A2 (arXiv 2110.00476).

use super::source::{Place, Preset, MASKSUB};

const PAPER: Place = Place::of("ResNet strikes back", "arXiv 2110.00476, table 2, A2");
const TRAIN: Place = Place::of("timm 0.5.4", "train.py");
const LAMB: Place = Place::of("timm 0.5.4", "optim/lamb.py");
const OPTIM: Place = Place::of("timm 0.5.4", "optim/optim_factory.py");
const LOADER: Place = Place::of("timm 0.5.4", "data/loader.py");
const SAMPLER: Place = Place::of("timm 0.5.4", "data/distributed_sampler.py");

pub const A2: [Preset; 25] = [
    PAPER.says("batch-size", "2048", "Batch size 2048"),
    LOADER.says("drop-last", "true", "drop_last=is_training"),
    TRAIN.says("dist-bn", "reduce", "--dist-bn default='reduce'"),
    PAPER.says("epochs", "300", "Epochs 300"),
    PAPER.says("optimizer", "lamb", "Optimizer LAMB"),
    LAMB.says("eps", "1e-6", "eps=1e-6"),
    TRAIN.says("clip-grad", "0", "--clip-grad default=None"),
    PAPER.says("lr", "5e-3", "LR 5e-3"),
    PAPER.says("weight-decay", "0.02", "Weight decay 0.02"),
    OPTIM.says("decay-on", "matrices", "filter_bias_and_bn=True"),
    TRAIN.says("cosine", "per-epoch", "lr_scheduler.step(epoch + 1), after the epoch"),
    PAPER.says("warmup-epochs", "5", "Warmup epochs 5"),
    TRAIN.says("warmup-lr", "1e-4", "--warmup-lr default=0.0001"),
    TRAIN.says("min-lr", "1e-6", "--min-lr default=1e-6"),
    PAPER.says("loss", "bce", "BCE loss"),
    PAPER.says("label-smoothing", "0", "Label smoothing: none"),
    MASKSUB.says("sub-loss", "bce", "BCE: sigmoid of the main logits"),
    PAPER.says("drop-path", "0.05", "Stochastic depth 0.05"),
    PAPER.says("mixup", "0.1", "Mixup alpha 0.1"),
    PAPER.says("cutmix", "1", "Cutmix alpha 1.0"),
    MASKSUB.says("auto-augment", "rand-augment", "the ResNet script's rand-m7-mstd0.5"),
    MASKSUB.says("magnitude", "7", "the ResNet script's rand-m7-mstd0.5"),
    MASKSUB.says("increasing", "false", "the ResNet script's rand-m7-mstd0.5"),
    TRAIN.says("interpolation", "random", "--train-interpolation default='random'"),
    SAMPLER.says("repeated-augment", "3", "num_repeats=3"),
];

pub const DIFFERENCES: [&str; 4] = [
    "RandAugment is `rand-m7-mstd0.5`, MaskSub's authors'; most public scripts of A2 have `rand-m7-mstd0.5-inc1`: \
     --increasing true",
    "on how many devices a batch was trained is not told: --replicas N",
    "the source computes in mixed precision, here everything is f32",
    "the source averages running statistics after an epoch's last step, each rank's from its own last update: with \
     MaskSub's two passes a step, that is of the sub pass there and of both passes here",
];
