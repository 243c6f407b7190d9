//! Convolutional networks.

use candle_core::ModuleT;
use candle_transformers::models::{convmixer, convnext, efficientnet, mobilenetv4, mobileone, repvgg, resnet, vgg};

use super::{model, Entry, FROZEN, FUSED, NORM, OWN_BRANCHES, OWN_COPY, OWN_TRAIN, PLAIN};

pub fn entries() -> Vec<Entry> {
    vec![
        Entry {
            name: "convnext atto",
            build: |vb| model(convnext::convnext(&convnext::Config::atto(), 10, vb)?),
            with_gradient: "2 of 152",
            found: "severed",
            cause: NORM,
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "efficientnet b0",
            image: 16,
            batches: &[2],
            build: |vb| model(efficientnet::EfficientNet::new(vb, efficientnet::MBConvConfig::b0(), 10)?),
            with_gradient: "213 of 213",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
        Entry {
            name: "mobilenetv4 small",
            batches: &[2],
            build: |vb| model(mobilenetv4::mobilenetv4(&mobilenetv4::Config::small(), 10, vb)?),
            // Depthwise convolutions of kernel size 0, and the hybrids' layer scale.
            absent: |name| {
                let start = |block| name.starts_with(&format!("blocks.{block}.dw_start"));
                let blocks = ["2.1", "2.2", "2.3", "2.4", "3.2", "3.3", "3.4", "3.5"];
                blocks.into_iter().any(start) || name.starts_with("blocks.2.5.dw_mid") || name.contains("layer_scale")
            },
            with_gradient: "140 of 140",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
        Entry {
            name: "mobileone s0",
            batches: &[2],
            build: |vb| model(mobileone::mobileone(&mobileone::Config::s0(), 10, vb)?),
            absent: |name| name.contains(".attn."),
            with_gradient: "643 of 643",
            found: "batch norm frozen, updates are lost in part",
            cause: FUSED,
            remedy: OWN_BRANCHES,
            ..PLAIN
        },
        Entry {
            name: "repvgg a0",
            batches: &[2],
            build: |vb| model(repvgg::repvgg(&repvgg::Config::a0(), 10, vb)?),
            with_gradient: "168 of 168",
            found: "batch norm frozen, updates are lost in part",
            cause: FUSED,
            remedy: OWN_BRANCHES,
            ..PLAIN
        },
        Entry {
            name: "resnet18",
            build: |vb| model(resnet::resnet18(10, vb)?),
            with_gradient: "–",
            found: "fails, batch norm frozen",
            cause: "`max_pool2d` has a backward where kernel = stride only; the source passes `train = false` to `BatchNorm`",
            remedy: "`masksub::ops::max_pool2d` in its source, or `masksub::models::resnet`, same weights and names",
            ..PLAIN
        },
        Entry {
            name: "vgg13",
            image: 224,
            build: |vb| {
                let vgg = vgg::Vgg::new(vb, vgg::Models::Vgg13)?;
                // It adds the batch dimension itself.
                Ok(Box::new(move |xs, train| match xs.dim(0)? {
                    1 => vgg.forward_t(&xs.squeeze(0)?, train),
                    _ => vgg.forward_t(xs, train),
                }))
            },
            with_gradient: "26 of 26 at 1",
            found: "batch of 1 only, wrong gradient",
            cause: "written for one image; the backward of `max_pool2d` divides by the window's size: 4, five times",
            remedy: "own copy with `masksub::ops::max_pool2d`",
            ..PLAIN
        },
        Entry {
            name: "convmixer 1024, 20 blocks",
            // The smallest of its sizes on a single patch: candle runs a convolution for each of 20 x 1024 channels.
            image: 14,
            batches: &[1],
            build: |vb| model(convmixer::c1024_20(10, vb)?),
            with_gradient: "166 of 166 at 1",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
    ]
}
