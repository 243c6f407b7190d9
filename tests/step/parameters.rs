//! Parameters: which of them must have a gradient, and which are trained.

use candle_core::{DType, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::{Optimizer, SGD};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{Error, MaskSub, Params, Seed, Step, Weights};

use super::{drop_token, key};
use crate::common::{bits, images, labels, tiny, vit, CPU};

fn step(params: Params, vit: &VisionTransformer) -> masksub::Result<Step> {
    let model = MaskSub::new(vit, drop_token(), params);
    model.backward(&images(2, "parameters"), key(), |logits| {
        cross_entropy(logits, &labels(2, 5))
    })
}

#[test]
fn without_a_gradient_are_named() {
    let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 9);
    let spare = |name: &str| (name.to_string(), Var::zeros(2, DType::F32, &CPU).unwrap());
    let vars = params.iter().map(|(name, var)| (name.to_string(), var.clone()));
    let with_spares = Params::new(vars.chain([spare("aux.weight"), spare("aux.bias"), spare("auxiliary")]));
    let error = step(with_spares.clone(), &vit).unwrap_err();
    let Error::MissingGradients { names, trained } = &error else {
        panic!("{error}");
    };
    assert_eq!(names, &["aux.bias", "aux.weight", "auxiliary"]);
    assert_eq!(*trained, params.len() + 3);
    for part in ["aux.bias", "3 of", "allow_missing"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // Exempted by name, and what lies below the name, but not what merely begins alike.
    let error = step(with_spares.clone().allow_missing("aux"), &vit).unwrap_err();
    assert!(
        matches!(&error, Error::MissingGradients { names, .. } if names == &["auxiliary"]),
        "{error}"
    );
    step(with_spares.allow_missing("aux").allow_missing("auxiliary"), &vit).unwrap();
}

#[test]
fn that_are_frozen_get_no_gradient_and_do_not_move() {
    let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 9);
    let head = params.clone().filter(|name| name.starts_with("head."));
    let step = step(head.clone(), &vit).unwrap();
    assert_eq!(step.grads.get_ids().count(), 2);
    let before: Vec<_> = params.vars().iter().map(|var| bits(var)).collect();
    // Even to an optimizer over all of them.
    SGD::new(params.vars(), 0.1).unwrap().step(&step.grads).unwrap();
    for ((name, var), before) in params.iter().zip(before) {
        assert_eq!(bits(var) != before, name.starts_with("head."), "{name}");
    }
}

#[test]
fn alone_are_in_the_step() {
    // The image itself is a variable here; its gradient is nobody's business.
    let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 9);
    let xs = Var::from_tensor(&images(2, "variable")).unwrap();
    let model = MaskSub::new(&vit, drop_token(), &params);
    let step = model
        .backward(&xs, key(), |logits| cross_entropy(logits, &labels(2, 5)))
        .unwrap();
    assert_eq!(step.grads.get_ids().count(), params.len());
    assert!(step.grads.get(&xs).is_none());
    // Without parameters, all variables that were reached, and no inputs of the graph.
    let model = MaskSub::unchecked(&vit, drop_token());
    let xs = images(2, "variable");
    let step = model
        .backward(&xs, key(), |logits| cross_entropy(logits, &labels(2, 5)))
        .unwrap();
    assert_eq!(step.grads.get_ids().count(), params.len());
}

#[test]
fn of_a_varmap_are_without_running_statistics() {
    let weights = Weights::seeded(Seed::new(0));
    let vb = weights.var_builder(DType::F32, &CPU);
    candle_nn::batch_norm(3, 1e-5, vb.pp("bn")).unwrap();
    candle_nn::batch_norm(3, 1e-5, vb.clone()).unwrap();
    candle_nn::linear(3, 3, vb.pp("running_mean_of_nothing")).unwrap();
    let params = Params::from_varmap(weights.varmap());
    assert_eq!(
        params.names().collect::<Vec<_>>(),
        [
            "bias",
            "bn.bias",
            "bn.weight",
            "running_mean_of_nothing.bias",
            "running_mean_of_nothing.weight",
            "weight"
        ]
    );
    assert_eq!((params.len(), params.num_elements()), (6, 3 * 5 + 9));
}

#[test]
fn can_be_frozen_by_name_and_by_module() {
    let (vit, params) = vit(&tiny(Config::ft_clip_base(5)), 9);
    let patches = "clip.vision_model.embeddings.patch_embedding";
    let frozen = params.clone().freeze([patches, "head.bias"]).unwrap();
    let gone: Vec<_> = params.names().filter(|name| frozen.get(name).is_none()).collect();
    assert_eq!(gone, [&format!("{patches}.weight"), "head.bias"]);
    let step = step(frozen.clone(), &vit).unwrap();
    assert_eq!(step.grads.get_ids().count(), params.len() - 2);
    assert_eq!(params.clone().freeze([""; 0]).unwrap().len(), params.len());

    let refused = |name: &str| params.clone().freeze([name]).unwrap_err().to_string();
    // A module is a whole element of the path.
    let message = refused("clip.vision_model.embeddings.patch");
    assert!(message.starts_with("freeze is clip.vision_model.embeddings.patch, but must be a parameter or a module: "));
    assert!(message.contains(patches), "{message}");
    assert!(refused("haed.weight").contains(": head.weight, "));
    assert_eq!(
        params
            .clone()
            .freeze(["clip", "fc_norm", "head"])
            .unwrap_err()
            .to_string(),
        "freeze is clip, fc_norm, head, but must be less than all parameters"
    );
}
