//! Settings out of range.

use masksub::models::vit::Config;
use masksub::{
    num_keep, BlockMasking, Criterion, DropSub, DropToken, Grid, MaskRatio, MaskSub, Pass, PatchDrop, PathSub,
    RandomMasking, SubModelLoss,
};

use super::{assert_invalid, half, key};
use crate::common::{randn, tiny, vit};

#[test]
fn ratios() {
    for (ratio, value) in [
        (1.0, "1"),
        (1.5, "1.5"),
        (-0.1, "-0.1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        let allowed = "at least 0 and below 1";
        assert_invalid(RandomMasking::new(ratio), "mask_ratio", value, allowed);
        assert_invalid(MaskRatio::fixed(ratio), "mask_ratio", value, allowed);
        assert_invalid(BlockMasking::new(ratio, 2), "mask_ratio", value, allowed);
        assert_invalid(DropSub::new(ratio), "rate", value, allowed);
        assert_invalid(PathSub::new(ratio), "rate", value, allowed);
        let mut pass = Pass::train(key());
        assert_invalid(pass.impose_dropout(ratio), "rate", value, allowed);
        assert_invalid(pass.impose_drop_path(ratio), "rate", value, allowed);
        assert_invalid(num_keep(4, ratio), "mask_ratio", value, allowed);
        assert_invalid(pass.dropout(&randn((2, 2), "xs"), ratio), "dropout", value, allowed);
        assert_invalid(pass.drop_path(&randn((2, 2), "xs"), ratio), "drop_path", value, allowed);
        // Also where nothing would be dropped.
        assert_invalid(
            Pass::eval().dropout(&randn((2, 2), "xs"), ratio),
            "dropout",
            value,
            allowed,
        );
    }
    assert_invalid(num_keep(0, 0.5), "len", "0", "at least 1");
    RandomMasking::new(0.0).unwrap();
    RandomMasking::new(1.0 - f64::EPSILON).unwrap();
}

#[test]
fn temperatures_weights_smoothing() {
    for (t, value) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        assert_invalid(
            SubModelLoss::kl().with_temperature(t),
            "temperature",
            value,
            "above 0 and finite",
        );
    }
    for (w, value) in [(-0.01, "-0.01"), (1.01, "1.01"), (f64::NAN, "NaN")] {
        let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
        let model = MaskSub::unchecked(vit, DropToken::new(half()));
        assert_invalid(model.with_weight(w), "weight", value, "[0, 1]");
        let ce = Criterion::cross_entropy();
        assert_invalid(ce.with_label_smoothing(w), "label_smoothing", value, "[0, 1]");
    }
    for (threshold, value) in [(-0.1, "-0.1"), (1.0, "1"), (f64::NAN, "NaN")] {
        let bce = Criterion::bce_with_logits().with_target_threshold(threshold);
        assert_invalid(bce, "target_threshold", value, "at least 0 and below 1");
    }
    let ce = Criterion::cross_entropy().with_target_threshold(0.2);
    assert_invalid(ce, "target_threshold", "0.2", "for binary cross-entropy only");
}

#[test]
fn blocks_of_nothing() {
    assert_invalid(PatchDrop::new(half(), 0), "block", "0", "at least 1");
    assert_invalid(BlockMasking::new(0.5, 0), "block", "0", "at least 1");
    assert_invalid(
        BlockMasking::with_ratio(MaskRatio::fixed(0.5).unwrap(), 0),
        "block",
        "0",
        "at least 1",
    );
    assert_invalid(Grid::new(4, 4).divided_by(0), "block", "0", "divisor");
}
