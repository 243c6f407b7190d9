//! Images of other channels than the three that models are published for.

use candle_core::Tensor;
use candle_nn::ModuleT;
use masksub::models::convnext::{self, ConvNeXt};
use masksub::models::resnet::{self, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::Config;
use masksub::pretrained::Pretrained;
use masksub::{Error, Seed};

use super::{model_file, refusal, timm_vit, vb, vit, weights};
use crate::common::{distance, randn};

/// The network of a recorded checkpoint for images of so many channels, and what was done.
fn network(name: &str, in_channels: usize) -> (Box<dyn ModuleT>, Vec<String>) {
    let weights = match name {
        "timm_convnext" => {
            let path = model_file("timm_convnext.safetensors");
            Pretrained::open(path).unwrap().weights(Seed::new(0))
        }
        _ => weights(name),
    };
    let model: Box<dyn ModuleT> = match name {
        "timm_vit" => Box::new(vit(
            &Config {
                in_channels,
                ..timm_vit(9)
            },
            &weights,
        )),
        "timm_swin" => {
            let cfg = swin::Config {
                weight_names: swin::WeightNames::Timm,
                image_size: (64, 64),
                embed_dim: 16,
                depths: vec![2, 2],
                num_heads: vec![2, 4],
                window_size: 4,
                in_channels,
                ..swin::Config::tiny(9)
            };
            Box::new(SwinTransformer::new(&cfg, vb(&weights)).unwrap())
        }
        "timm_convnext" => {
            let cfg = convnext::Config {
                depths: [1; 4],
                dims: [8, 16, 24, 32],
                in_channels,
                ..convnext::Config::tiny(9)
            };
            Box::new(ConvNeXt::new(&cfg, vb(&weights)).unwrap())
        }
        _ => {
            let cfg = resnet::Config {
                depths: [1, 1, 2, 1],
                channels: [8, 16, 24, 32],
                in_channels,
                ..resnet::Config::resnet18(9)
            };
            Box::new(ResNet::new(&cfg, vb(&weights)).unwrap())
        }
    };
    weights.check_exact(|_| false).unwrap();
    (model, weights.notes())
}

// A kernel summed over its channels sees in a grey image what the whole one sees in three alike; one that is repeated and
// scaled sees in two images behind one another their mean.
#[test]
fn see_what_three_would() {
    for (name, side, key) in [
        ("timm_vit", 32, "patch_embed.proj.weight"),
        ("timm_swin", 64, "patch_embed.proj.weight"),
        ("resnet", 64, "conv1.weight"),
        ("timm_convnext", 64, "stem.0.weight"),
    ] {
        let (three, plain) = network(name, 3);
        let grey = randn((2, 1, side, side), "grey");
        let (one, notes) = network(name, 1);
        let alike = three.forward_t(&grey.repeat((1, 3, 1, 1)).unwrap(), false).unwrap();
        let error = distance(&one.forward_t(&grey, false).unwrap(), &alike);
        assert!(error < 1e-5, "{name}: {error:e}");
        assert_eq!(notes[1], format!("{key}: 3 -> 1 channels, summed"));
        assert!(plain.iter().all(|line| !line.contains("channels")), "{plain:?}");

        let (six, notes) = network(name, 6);
        let [first, second] = ["first", "second"].map(|image| randn((2, 3, side, side), image));
        let mean = ((&first + &second).unwrap() / 2.0).unwrap();
        let both = Tensor::cat(&[first, second], 1).unwrap();
        let error = distance(
            &six.forward_t(&both, false).unwrap(),
            &three.forward_t(&mean, false).unwrap(),
        );
        assert!(error < 1e-5, "{name}: {error:e}");
        assert_eq!(notes[1], format!("{key}: 3 -> 6 channels, repeated and scaled"));
    }
}

#[test]
fn that_are_not_three_in_the_file_are_misshapen() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = super::tensors("timm_vit");
    tensors.insert("patch_embed.proj.weight".into(), randn((48, 4, 8, 8), "kernel"));
    let path = super::saved(directory.path(), &tensors);
    let pretrained = Pretrained::open(path).unwrap();
    let cfg = Config {
        in_channels: 1,
        ..timm_vit(9)
    };
    let error = refusal(&cfg, &pretrained.weights(Seed::new(0)));
    let of_kernel = matches!(&error, Error::MisshapenWeight { path, .. } if path == "patch_embed.proj.weight");
    assert!(of_kernel, "{error}");
}

#[test]
fn that_no_memory_holds_are_refused() {
    let kernel = (48, 1usize << 40, 8, 8);
    let error = vb(&weights("timm_vit")).get(kernel, "patch_embed.proj.weight");
    let error = Error::from(error.unwrap_err());
    let of_channels = matches!(
        &error,
        Error::InvalidArgument {
            argument: "in_channels",
            ..
        }
    );
    assert!(of_channels, "{error}");
}
