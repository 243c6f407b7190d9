//! Outside training, MaskSub is the bare model.

use candle_nn::ModuleT;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{DropSub, Error, MaskSub, PatchDrop, PathSub, SubBranch};

use super::{drop_token, dropping, half};
use crate::common::{bits, images, tiny, tiny_forms, vit};

#[test]
fn is_the_bare_model_bit_for_bit() {
    let xs = images(3, "evaluation");
    for (name, form) in tiny_forms(5) {
        let (vit, _) = vit(&dropping(form), 6);
        let bare = bits(&vit.forward_t(&xs, false).unwrap());
        let branches: [Box<dyn SubBranch<VisionTransformer>>; 4] = [
            Box::new(drop_token()),
            Box::new(PatchDrop::new(half(), 8).unwrap()),
            Box::new(DropSub::new(0.3).unwrap()),
            Box::new(PathSub::new(0.3).unwrap()),
        ];
        for branch in branches {
            let model = MaskSub::unchecked(vit.clone(), branch);
            assert_eq!(bits(&model.forward_t(&xs, false).unwrap()), bare, "{name}");
        }
    }
}

#[test]
fn in_training_mode_a_model_that_draws_is_refused() {
    let xs = images(2, "no key");
    for (dropout, drop_path, what) in [(0.1, 0.0, "dropout"), (0.0, 0.1, "drop path")] {
        let cfg = Config {
            dropout,
            drop_path,
            ..tiny(Config::deit3_tiny(5))
        };
        let (vit, _) = vit(&cfg, 6);
        let from_model = vit.forward_t(&xs, true).unwrap_err();
        let from_wrapper = MaskSub::unchecked(vit, drop_token()).forward_t(&xs, true).unwrap_err();
        for error in [from_model, from_wrapper] {
            let error = Error::from(error);
            assert!(
                matches!(error, Error::DrawsWithoutKey { what: w } if w == what),
                "{error}"
            );
        }
    }
    let (quiet, _) = vit(&tiny(Config::deit3_tiny(5)), 6);
    let trained = MaskSub::unchecked(&quiet, drop_token()).forward_t(&xs, true).unwrap();
    assert_eq!(bits(&trained), bits(&quiet.forward_t(&xs, false).unwrap()));
}
