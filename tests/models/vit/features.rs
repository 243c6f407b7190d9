//! Features are what the head reads, and what each block leaves.

use candle_core::DType;
use candle_nn::ModuleT;
use masksub::models::vit::{Config, Pool};

use super::{from_values, random_values};
use crate::common::{bits, distance, images, tiny_forms};

#[test]
fn are_what_the_head_reads() {
    for (name, cfg) in tiny_forms(5) {
        let values = random_values(&cfg);
        let (vit, _) = from_values(&cfg, &values, DType::F32);
        let xs = images(2, "features");
        let pooled = vit.features(&xs).unwrap().pooled;
        let head = |module: &str| {
            let (weight, bias) = (&values[&format!("{module}.weight")], &values[&format!("{module}.bias")]);
            let pooled = match (cfg.pool, module) {
                (Pool::ClassAndDistillation, "head") => pooled.get_on_dim(1, 0).unwrap(),
                (Pool::ClassAndDistillation, _) => pooled.get_on_dim(1, 1).unwrap(),
                _ => pooled.clone(),
            };
            let product = pooled.contiguous().unwrap().matmul(&weight.t().unwrap()).unwrap();
            product.broadcast_add(bias).unwrap()
        };
        let logits = match cfg.pool {
            Pool::ClassAndDistillation => ((head("head") + head("head_dist")).unwrap() / 2.0).unwrap(),
            _ if values.contains_key("classifier.weight") => head("classifier"),
            _ => head("head"),
        };
        let error = distance(&logits, &vit.forward_t(&xs, false).unwrap());
        assert!(error < 1e-5, "{name}: {error:.1e}");
    }
}

#[test]
fn of_a_block_are_those_of_a_model_that_ends_there() {
    for (name, cfg) in tiny_forms(5) {
        let values = random_values(&cfg);
        let (vit, _) = from_values(&cfg, &values, DType::F32);
        let xs = images(2, "features");
        let features = vit.features(&xs).unwrap();
        assert_eq!(features.blocks.len(), 2);
        let sequence = cfg.num_prefix_tokens() + 16;
        assert!(features.blocks.iter().all(|tokens| tokens.dims() == [2, sequence, 24]));
        let second = |name: &String| {
            ["blocks.1.", "layer.1.", "layers.1."]
                .iter()
                .any(|block| name.contains(block))
        };
        let mut values = values.clone();
        values.retain(|name, _| !second(name));
        let (shallow, _) = from_values(&Config { depth: 1, ..cfg }, &values, DType::F32);
        let alone = shallow.features(&xs).unwrap();
        assert_eq!(bits(&alone.blocks[0]), bits(&features.blocks[0]), "{name}");
        assert!(distance(&features.blocks[1], &features.blocks[0]) > 1e-3, "{name}");
    }
}
