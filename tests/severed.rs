//! Layers that candle cannot differentiate: found and named in other people's models, and absent from ours.

mod common;

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use candle_transformers::models::{resnet, vit as candle_vit};
use common::{images, labels, randn, small_resnet, small_swin, tiny_forms, vit, CPU};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::VisionTransformer;
use masksub::{
    grad, DropToken, Error, Forward, MaskSub, MaskToken, Params, PatchDrop, Plain, RandomMasking, Seed, Step, StepKey,
    SubBranch, Weights,
};

fn key() -> StepKey {
    Seed::new(1).at(0)
}

fn patch_drop() -> PatchDrop<RandomMasking> {
    PatchDrop::new(RandomMasking::new(0.5).unwrap(), 8).unwrap()
}

fn step<M, S: SubBranch<M>>(model: &MaskSub<M, S>, xs: &Tensor) -> masksub::Result<Step> {
    let ys = labels(xs.dim(0).unwrap(), 5);
    model.backward(xs, key(), |logits| cross_entropy(logits, &ys))
}

mod in_candle_transformers {
    use super::*;

    /// The parameters that a step through its two-layer ViT reports as cut off, and how many there are.
    fn severed(batch: usize) -> (Vec<String>, usize) {
        let cfg = candle_vit::Config {
            hidden_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            intermediate_size: 48,
            image_size: 16,
            patch_size: 4,
            ..candle_vit::Config::vit_base_patch16_224()
        };
        assert!(cfg.qkv_bias);
        let weights = Weights::seeded(Seed::new(0));
        let vit = candle_vit::Model::new(&cfg, 5, weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::wrap(candle_nn::func(move |xs| vit.forward(xs)), patch_drop(), params);
        let error = step(&model, &images(batch, "severed")).unwrap_err();
        for remedy in ["masksub::nn", "layer_norm", "softmax_last_dim", "allow_missing"] {
            assert!(error.to_string().contains(remedy), "{error}");
        }
        let text = error.to_string();
        let Error::MissingGradients { names, trained } = error else {
            panic!("{error}");
        };
        assert!(text.contains(&format!("{} of {trained}", names.len())), "{text}");
        // The names come last, those of all blocks as one; of this model it is known what to take instead.
        let (remedy, listed) = text.split_once("Without a gradient: ").unwrap();
        assert!(remedy.contains("masksub::models::vit"), "{text}");
        assert!(listed.contains(".layer.*.") && listed.contains("(2)"), "{text}");
        (names, trained)
    }

    #[test]
    fn the_vit_loses_queries_keys_and_layer_norms() {
        let (names, trained) = severed(4);
        assert_eq!((names.len(), trained), (16, 40));
        let mut expected = vec![];
        for layer in 0..2 {
            for part in [
                "attention.attention.key",
                "attention.attention.query",
                "layernorm_after",
                "layernorm_before",
            ] {
                for kind in ["bias", "weight"] {
                    expected.push(format!("vit.encoder.layer.{layer}.{part}.{kind}"));
                }
            }
        }
        assert_eq!(names, expected);
    }

    #[test]
    fn the_vit_loses_all_but_its_head_at_batch_size_1() {
        let (names, trained) = severed(1);
        assert_eq!((names.len(), trained), (38, 40));
        assert!(!names.iter().any(|name| name.starts_with("classifier.")), "{names:?}");
    }

    #[test]
    fn the_resnet_stops_at_its_max_pooling() {
        let weights = Weights::seeded(Seed::new(0));
        let net = resnet::resnet18(5, weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::wrap(net, patch_drop(), params);
        let error = step(&model, &images(2, "resnet")).unwrap_err();
        let text = error.to_string();
        let Error::BackwardUnsupported { branch, reason, remedy } = error else {
            panic!("{error}");
        };
        assert_eq!(branch, "main");
        assert!(reason.contains("maxpool2d"), "{reason}");
        assert!(
            remedy.contains("masksub::ops::max_pool2d") && remedy.contains("masksub::models::resnet"),
            "{remedy}"
        );
        assert!(
            text.contains("main") && text.contains(remedy) && text.contains(&reason),
            "{text}"
        );
        // One sentence, not a backtrace.
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

mod in_ours {
    use super::*;

    fn assert_whole<M: Forward, S: SubBranch<M>>(name: &str, model: &MaskSub<M, S>, params: &Params) {
        for batch in [1, 4] {
            let step = step(model, &images(batch, "whole")).unwrap();
            let audit = grad::audit(&step.grads, params).unwrap();
            assert!(audit.is_ok(), "{name} at batch {batch}: {audit}");
            assert_eq!(audit.trained, params.len());
            // In exact arithmetic a key bias shifts all scores of a query alike, so its gradient is zero.
            let unexplained = |name: &&String| !name.ends_with("key.bias") && !name.ends_with("k_proj.bias");
            let all_zero: Vec<_> = audit.all_zero.iter().filter(unexplained).collect();
            assert!(all_zero.is_empty(), "{name} at batch {batch}: {all_zero:?}");
        }
    }

    /// Every weight random, since many begin at 0 or 1.
    fn randomised(weights: &Weights) {
        for (name, var) in weights.varmap().data().lock().unwrap().iter() {
            let noise = (randn(var.shape(), name) * 0.3).unwrap();
            // Variances are positive.
            let value = if name.ends_with("running_var") {
                noise.abs().unwrap() + 0.5
            } else {
                Ok(noise)
            };
            var.set(&value.unwrap()).unwrap();
        }
    }

    fn every_gradient_is_one<M: Forward, S: SubBranch<M>>(model: M, branch: S, weights: &Weights, xs: &Tensor) {
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(model, branch, &params);
        let step = step(&model, xs).unwrap();
        let audit = grad::audit(&step.grads, &params).unwrap();
        assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
        assert_eq!(audit.trained, params.len());
    }

    #[test]
    fn nothing_is_in_a_swin_or_a_resnet_either() {
        for kind in [BlockKind::Basic, BlockKind::Bottleneck] {
            let weights = Weights::seeded(Seed::new(0));
            let resnet = ResNet::new(&small_resnet(kind), weights.var_builder(DType::F32, &CPU)).unwrap();
            randomised(&weights);
            every_gradient_is_one(resnet, patch_drop(), &weights, &randn((4, 3, 48, 32), "resnet"));
        }
        let weights = Weights::seeded(Seed::new(0));
        let swin = SwinTransformer::new(&small_swin(), weights.var_builder(DType::F32, &CPU)).unwrap();
        randomised(&weights);
        let mask_token = MaskToken::new(RandomMasking::new(0.5).unwrap(), 8).unwrap();
        every_gradient_is_one(swin, mask_token, &weights, &randn((2, 3, 32, 64), "swin"));
        for (_, cfg) in tiny_forms(5)
            .into_iter()
            .filter(|(name, _)| ["deit3", "mae, mean"].contains(name))
        {
            let weights = Weights::seeded(Seed::new(0));
            let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
            randomised(&weights);
            every_gradient_is_one(vit, patch_drop(), &weights, &images(2, "vit"));
        }
    }

    #[test]
    fn nothing_is() {
        for (name, cfg) in tiny_forms(5) {
            let (vit, params) = vit(&cfg, 2);
            let drop_token = DropToken::new(RandomMasking::new(0.5).unwrap());
            assert_whole(name, &MaskSub::new(&vit, drop_token, &params), &params);
            assert_whole(name, &MaskSub::new(&vit, patch_drop(), &params), &params);
            // As any candle module, which it is.
            let wrapped: MaskSub<Plain<_>, _> = MaskSub::wrap(vit, patch_drop(), &params);
            assert_whole(name, &wrapped, &params);
        }
    }
}
