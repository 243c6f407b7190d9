//! Mixed precision: weights in f32, factors of products in bf16 or f16.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::VarBuilder;
use masksub::models::convnext::{self, ConvNeXt};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{self, VisionTransformer};
use masksub::models::Recompute;
use masksub::ops::{attention_branch, mlp_branch, Activation, Affine, AttentionBranch, MlpBranch, Positions, Tokens};
use masksub::{DropToken, Error, Forward, MaskSub, MaskToken, Params, PatchDrop, Seed, SubBranch, Weights};

use super::random;
use crate::common::{
    bits, by_name, distance, gradient_distance, images, labels, randn, small_resnet, small_swin, tiny_forms, CPU,
};

/// Half the distance between 1 and the next number: what rounding is off by at most, as a share.
const HALF_STEPS: [(DType, f64); 2] = [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)];

/// A step, all of it f32, and the logits of an evaluation.
struct Step {
    logits: Tensor,
    evaluated: Tensor,
    losses: [f64; 2],
    grads: BTreeMap<String, Tensor>,
}

/// A MaskSub step of a model of weights that are the same in all.
fn step<M: Forward>(model: impl Fn(VarBuilder) -> M, branch: impl SubBranch<M>, images: &Tensor) -> Step {
    let weights = Weights::seeded(Seed::new(0));
    let model = model(weights.var_builder(DType::F32, &CPU));
    // Norms, biases and scales, too, which begin as ones and zeros.
    for (name, var) in weights.varmap().data().lock().unwrap().iter() {
        if !name.contains("running") {
            let noise = (randn(var.shape(), name) * 0.1).unwrap();
            var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
        }
    }
    let params = Params::from_varmap(weights.varmap());
    let labels = labels(images.dim(0).unwrap(), 5);
    let model = MaskSub::new(model, branch, params.clone());
    let evaluated = model.model().forward_pass(images, &mut masksub::Pass::eval()).unwrap();
    let step = model
        .backward(images, Seed::new(3).at(0), |logits| cross_entropy(logits, &labels))
        .unwrap();
    let grads = by_name(&step.grads, &params);
    let all = grads.values().chain([&evaluated, &step.main_logits]);
    all.for_each(|tensor| assert_eq!(tensor.dtype(), DType::F32));
    assert_eq!(grads.len(), params.iter().count());
    Step {
        logits: step.main_logits,
        evaluated,
        losses: [step.main_loss, step.sub_loss.unwrap()],
        grads,
    }
}

type AtDtype = Box<dyn Fn(Option<DType>) -> Step>;

/// All models, tiny, by the dtype of their products.
fn all_models() -> Vec<(String, AtDtype)> {
    let mut all: Vec<(String, AtDtype)> = vec![];
    for (name, form) in tiny_forms(5) {
        let run = move |compute_dtype| {
            let cfg = vit::Config {
                compute_dtype,
                drop_path: 0.4,
                ..form.clone()
            };
            let vit = |vb: VarBuilder| VisionTransformer::new(&cfg, vb).unwrap();
            step(vit, DropToken::new(random(0.5)), &images(4, "mixed"))
        };
        all.push((name.into(), Box::new(run)));
    }
    let run = |compute_dtype| {
        let cfg = swin::Config {
            compute_dtype,
            drop_path: 0.4,
            ..small_swin()
        };
        let swin = |vb: VarBuilder| SwinTransformer::new(&cfg, vb).unwrap();
        let images = randn((4, 3, 32, 64), "mixed");
        step(swin, MaskToken::new(random(0.5), 8).unwrap(), &images)
    };
    all.push(("swin".into(), Box::new(run)));
    for kind in [BlockKind::Basic, BlockKind::Bottleneck] {
        let run = move |compute_dtype| {
            let cfg = resnet::Config {
                compute_dtype,
                drop_path: 0.4,
                ..small_resnet(kind)
            };
            let resnet = |vb: VarBuilder| ResNet::new(&cfg, vb).unwrap();
            let images = randn((4, 3, 64, 64), "mixed");
            step(resnet, PatchDrop::new(random(0.5), 16).unwrap(), &images)
        };
        all.push((format!("{kind:?}"), Box::new(run)));
    }
    for form in [convnext::Config::tiny(5), convnext::Config::v2_atto(5)] {
        let name = format!("convnext, {:?}", form.layer_scale);
        let run = move |compute_dtype| {
            let cfg = convnext::Config {
                compute_dtype,
                depths: [1; 4],
                dims: [8, 12, 16, 24],
                drop_path: 0.4,
                ..form.clone()
            };
            let convnext = |vb: VarBuilder| ConvNeXt::new(&cfg, vb).unwrap();
            let images = randn((4, 3, 64, 64), "mixed");
            step(convnext, PatchDrop::new(random(0.5), 32).unwrap(), &images)
        };
        all.push((name, Box::new(run)));
    }
    all
}

/// A logit has some dozen roundings behind it, each off by a third of a half step in the mean and in either direction; a
/// gradient twice as many, and the worst of all parameters counts.
#[test]
fn products_in_half_precision_are_near_those_in_f32() {
    let mut wrong = vec![];
    for (name, step) in all_models() {
        let exact = step(None);
        for (dtype, half_step) in HALF_STEPS {
            let rounded = step(Some(dtype));
            let errors = [
                (distance(&rounded.logits, &exact.logits), 8.0),
                (distance(&rounded.evaluated, &exact.evaluated), 8.0),
                (gradient_distance(&rounded.grads, &exact.grads), 32.0),
                ((rounded.losses[0] - exact.losses[0]).abs(), 8.0),
                ((rounded.losses[1] - exact.losses[1]).abs(), 8.0),
            ];
            let errors = errors.map(|(error, most)| (error / half_step, most));
            println!("{name}, {dtype:?}: {errors:.2?} half steps");
            // Batch norms of a few values and ReLUs make much of little: of a ResNet's training the operations' own tests
            // tell. In f16 small gradients become 0: there is no loss scaling.
            let is_resnet = name == "Basic" || name == "Bottleneck";
            let checked: Vec<_> = (0..errors.len())
                .filter(|&i| !(is_resnet && i != 1 || dtype == DType::F16 && i == 2))
                .map(|i| errors[i])
                .collect();
            let is_rounded = errors[..3].iter().all(|&(error, _)| error > 0.125);
            if !is_rounded || checked.iter().any(|&(error, most)| error >= most) {
                wrong.push((name.clone(), dtype, errors));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:.2?}");
}

/// The dtype of the weights is what there was before: the same to the bit.
#[test]
fn products_in_the_dtype_of_the_weights_are_what_they_are_without() {
    for (name, step) in all_models() {
        let (without, with) = (step(None), step(Some(DType::F32)));
        assert_eq!(bits(&with.logits), bits(&without.logits), "{name}");
        assert_eq!(bits(&with.evaluated), bits(&without.evaluated), "{name}");
        for (param, grad) in &without.grads {
            assert_eq!(bits(&with.grads[param]), bits(grad), "{name}: {param}");
        }
    }
}

fn refusal(cfg: &vit::Config, dtype: DType) -> String {
    let weights = Weights::seeded(Seed::new(0));
    let error = VisionTransformer::new(cfg, weights.var_builder(dtype, &CPU)).unwrap_err();
    Error::from(error).to_string()
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let with = |compute_dtype, recompute| vit::Config {
        compute_dtype: Some(compute_dtype),
        recompute,
        ..vit::Config::deit3_tiny(5)
    };
    assert_eq!(
        refusal(&with(DType::U8, Recompute::Never), DType::F32),
        "compute_dtype is Some(U8), but must be None, F32, BF16 or F16 for weights in F32"
    );
    assert_eq!(
        refusal(&with(DType::BF16, Recompute::Never), DType::F64),
        "compute_dtype is Some(BF16), but must be None or F64 for weights in F64"
    );
    assert_eq!(
        refusal(&with(DType::BF16, Recompute::EveryBlock), DType::F32),
        "recompute is EveryBlock with a compute_dtype, but must be Never"
    );
}

/// Dropout takes the operations one by one, at a rate that drops nothing those of the branch.
#[test]
fn operations_one_by_one_round_what_the_branch_rounds() {
    for (name, form) in tiny_forms(5) {
        let run = |dropout| {
            let cfg = vit::Config {
                compute_dtype: Some(DType::BF16),
                dropout,
                ..form.clone()
            };
            let vit = |vb: VarBuilder| VisionTransformer::new(&cfg, vb).unwrap();
            step(vit, DropToken::new(random(0.5)), &images(4, "mixed"))
        };
        let (branch, one_by_one) = (run(0.0), run(1e-12));
        let error = distance(&one_by_one.logits, &branch.logits);
        println!("{name}: {error:.1e}");
        // Some numbers are rounded another way, once less or once more.
        assert!(error < 2.0 / 256.0, "{name}: {error:.1e}");
    }
}

/// Attention and MLP of a block as timm's give them under PyTorch's autocast, forward and backward
/// (`fixtures/autocast/write.py`).
#[test]
fn a_block_gives_what_pytorchs_autocast_gives() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/autocast/vit_block.safetensors");
    let recorded = candle_core::safetensors::load(path, &CPU).unwrap();
    let names = recorded
        .keys()
        .filter(|name| recorded.contains_key(&format!("grad/{name}")));
    let vars: BTreeMap<&str, Var> = names
        .map(|name| (name.as_str(), Var::from_tensor(&recorded[name]).unwrap()))
        .collect();
    let run = |dtype: DType| {
        let layer =
            |name: &str| ["weight", "bias"].map(|part| vars[&*format!("{name}.{part}")].to_dtype(dtype).unwrap());
        let [qkv, proj, fc1, fc2] = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"].map(layer);
        let norm = |name: &str| ["weight", "bias"].map(|part| vars[&*format!("{name}.{part}")].as_tensor().clone());
        let (norm1, norm2) = (norm("norm1"), norm("norm2"));
        let attention = AttentionBranch {
            norm: of(&norm1),
            eps: 1e-5,
            qkv: of(&qkv),
            num_heads: 2,
            proj: of(&proj),
            gamma: Some(&vars["ls1.gamma"]),
            recompute: false,
        };
        let mlp = MlpBranch {
            norm: of(&norm2),
            eps: 1e-5,
            fc1: of(&fc1),
            activation: Activation::Gelu,
            fc2: of(&fc2),
            gamma: Some(&vars["ls2.gamma"]),
            recompute: false,
        };
        let xs = attention_branch(&vars["input"], &attention, Tokens::All, &Positions::default(), None).unwrap();
        let ys = mlp_branch(&xs, &mlp, None).unwrap();
        let loss = (&ys * &recorded["upstream"]).unwrap().sum_all().unwrap();
        (ys, loss.backward().unwrap())
    };
    let ((ours, our_grads), (exact, exact_grads)) = (run(DType::BF16), run(DType::F32));
    let output = &recorded["output"];
    println!(
        "output {:.1e}, of {:.1e}",
        distance(&ours, output),
        distance(&exact, output)
    );
    for (name, var) in &vars {
        let theirs = &recorded[&format!("grad/{name}")];
        let [ours, exact] = [&our_grads, &exact_grads].map(|grads| distance(grads.get(var).unwrap(), theirs));
        println!("{name} {ours:.1e}, of {exact:.1e}");
        assert!(ours < 2.0 / 256.0, "{name}: {ours:.1e}");
        // The bias of keys has a gradient of rounding alone.
        assert!(
            ours < exact || name == &"attn.qkv.bias",
            "{name}: {ours:.1e} of {exact:.1e}"
        );
    }
}

fn of(layer: &[Tensor; 2]) -> Affine<'_> {
    Affine {
        weight: &layer[0],
        bias: &layer[1],
    }
}
